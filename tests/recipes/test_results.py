"""docs/results.md says what the committed numbers say, and their verdicts are those of the numbers."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from benchmarks.paper import PAGE, RESULTS, kept, table
from graphaug.errors import DataError

FILES = sorted(RESULTS.glob("*.json"))


def a_run(setting, seed, value, **other):
    numbers = {"linear": value, "few_labels.mean": value, "knn": value}
    return {"setting": setting, "seed": seed, **numbers, "diverged": None, "failed": None, **other}


def test_the_table_is_of_the_runs():
    none = {"linear": None, "few_labels.mean": None, "knn": None, "diverged": "nan"}
    runs = [a_run("SimCLR", s, 0.7 + 0.01 * s) for s in range(3)]
    runs += [a_run("site 4", s, 0.75 + 0.01 * s) for s in range(3)]
    runs += [a_run("site 5", s, 0.75) for s in range(2)] + [a_run("site 5", 2, 0.0, **none)]
    measures = {"linear": "linear probe", "few_labels.mean": "few labels", "knn": "nearest neighbours"}
    baseline = {"site 4": "SimCLR", "site 5": "SimCLR"}
    chosen = {"choice": "SimCLR, its site chosen", "baseline": "SimCLR", "p_ahead": 0.01234}
    chosen |= {"accuracy": {"0": 0.75, "1": 0.77}, "difference": {"0": 0.05, "1": 0.05}}
    found = {"runs": runs, "claims": [], "measures": measures, "baseline": baseline, "choices": [chosen]}
    shown = table(found)
    # 12.7 is Student's quantile with one degree of freedom; over the root of two, times their deviation
    assert "| SimCLR, its site chosen | 76.0 ± 12.7 | SimCLR | +5.0 ± 0.0 | 0.012 |" in shown
    assert "linear probe, to SimCLR by seed" in shown
    # 2.48 is the 97.5 % quantile of Student's t with two degrees of freedom, 4.303, over the root of three
    assert "| SimCLR | 3 | 71.0 ± 2.5 | 71.0 ± 2.5 | 71.0 ± 2.5 |  |" in shown
    assert "| site 4 | 3 | 76.0 ± 2.5 | 76.0 ± 2.5 | 76.0 ± 2.5 | +5.0 ± 0.0 |" in shown
    assert "| site 5 | 2 of 3 | 75.0 ± 0.0 | 75.0 ± 0.0 | 75.0 ± 0.0 |  |" in shown


def test_paths_of_the_machine_stay_there_and_unfinished_sweeps_are_refused():
    found = {"runs": [a_run("SimCLR", 0, 0.7)], "settings": {"SimCLR": {"data": "idx:/home/me/data/fashion"}}}
    assert kept(found)["settings"]["SimCLR"]["data"] == "idx:fashion"
    found["settings"]["SimCLR"]["data"] = "/home/me/data/nci.smi"
    assert kept(found)["settings"]["SimCLR"]["data"] == "nci.smi"
    for path in ("idx:../data/fashion/", "idx:~/fashion", "idx:./fashion"):
        found["settings"]["SimCLR"] = {"data": path, "model": "org/model", "sources": [path]}
        found["runs"] = [a_run("SimCLR", 0, 0.7, said=f"read from {path}, 1/2 of it", note="/ is a slash")]
        cut = kept(found)
        assert cut["settings"]["SimCLR"]["data"] == "idx:fashion"
        assert cut["settings"]["SimCLR"]["sources"] == ["idx:fashion"]
        assert cut["settings"]["SimCLR"]["model"] == "org/model"
        assert cut["runs"][0]["said"] == "read from idx:fashion, 1/2 of it"
        assert cut["runs"][0]["note"] == "/ is a slash"
    with pytest.raises(DataError, match="SimCLR, seed 0"):
        kept({"runs": [a_run("SimCLR", 0, None, failed="disk")], "settings": {}})


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_the_page_has_the_committed_numbers(file: Path):
    results = json.loads(file.read_text(encoding="utf-8"))
    assert table(results) in PAGE.read_text(encoding="utf-8")
    values = {(r["setting"], r["seed"]): r[next(iter(results["measures"]))] for r in results["runs"]}
    seeds = sorted({seed for _, seed in values})
    for claim in results["claims"]:
        for member in claim["members"]:
            a, b = ([values[name, s] for s in seeds] for name in (member["setting"], member["against"]))
            if None in (*a, *b):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of differences that do not vary there is no p-value
                p = ttest_rel(a, b, alternative="greater").pvalue
            assert math.isnan(p) or member["ahead"] >= p - 1e-9  # of several comparisons the largest counts
