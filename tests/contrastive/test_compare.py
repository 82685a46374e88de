"""Runs side by side, against scipy's own interval and rows written down by hand."""

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import graphaug as ga
from graphaug.contrastive.runs.compare import Run, _shown, interval, one_spelling


def write_run(path, result=None, **settings):
    path.mkdir(parents=True)
    settings = {"at": [], "rate": 0.5, "seed": 0, "model": "resnet18-cifar", **settings}
    (path / "config.yaml").write_text(yaml.safe_dump({**settings, "resolved": {}, "versions": {}}))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    return path


@pytest.fixture
def sweep(tmp_path):
    """Two sites, three seeds each."""
    runs = {}
    for at, base in (("layer3", 0.5), ("layer4", 0.6)):
        for seed in range(3):
            result = {"linear": base + seed / 100, "few_labels": {"mean": base / 2}, "classes": 10}
            runs[at, seed] = write_run(tmp_path / f"{at}-{seed}", result, at=[at], seed=seed)
    return runs


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_the_interval_is_scipys(values):
    middle, half = interval(values)
    if not half > 1e-9:
        return
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert middle - half == pytest.approx(oracle.low, rel=1e-6, abs=1e-6)
    assert middle + half == pytest.approx(oracle.high, rel=1e-6, abs=1e-6)


def test_a_single_value_has_no_interval():
    assert interval([0.5])[0] == 0.5
    assert math.isnan(interval([0.5])[1])


@pytest.mark.parametrize(
    ("middle", "half", "shown"),
    [
        (51.1111, 132.4, "51 ± 132"),
        (83.3333, 0.5234, "83.33 ± 0.52"),
        (83.3333, 5.234, "83.3 ± 5.2"),
        (0.25, 1.2e-9, "0.25 ± 1.2e-09"),
        (0.25, 0.0, "0.25 ± 0"),
        (51.1111, math.nan, "51.11"),
        (math.nan, math.nan, ""),
    ],
)
def test_a_mean_has_the_digits_that_its_interval_leaves(middle, half, shown):
    assert _shown(middle, half) == shown


def test_one_row_a_setting(graphaug, sweep, tmp_path):
    code, out, _ = graphaug("compare", *sweep.values(), "--json", tmp_path / "table.json")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["at", "seeds", "linear", "(%)", "few_labels.mean", "(%)"]
    # seeds 0.50, 0.51, 0.52: standard error 0.01/sqrt(3), t of 2 degrees 4.303
    assert lines[2] == ["layer3", "3", "51.0", "±", "2.5", "25", "±", "0"]
    assert lines[3] == ["layer4", "3", "61.0", "±", "2.5", "30", "±", "0"]
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["at"] for row in rows] == [["layer3"], ["layer4"]]
    assert rows[0]["linear"]["mean"] == pytest.approx(0.51)
    assert rows[0]["linear"]["half_width"] == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)


def test_there_is_no_mean_over_different_settings(graphaug, sweep, tmp_path):
    other = write_run(tmp_path / "other", {"linear": 0.9}, at=["layer3"], rate=0.2, seed=7)
    code, out, _ = graphaug("compare", *sweep.values(), other)
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[2:5]] == [
        ["layer3", "0.5", "3"],
        ["layer4", "0.5", "3"],
        ["layer3", "0.2", "1"],
    ]
    code, _, err = graphaug("compare", *sweep.values(), other, "--by", "at")
    assert code == 2
    assert "differ in rate too" in err
    assert "--by: rate" in err


def test_with_the_seed_among_the_settings_each_run_has_a_row(graphaug, sweep):
    code, out, _ = graphaug("compare", *sweep.values(), "--by", "at,seed")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [[at, str(seed)] for at, seed in sweep]


def test_a_spread_within_a_run_is_shown_where_it_is_asked_for(graphaug, tmp_path):
    few = [{"few_labels": {"mean": 0.1 * i, "std": 0.01 * i}} for i in (1, 2)]
    runs = [write_run(tmp_path / str(i), result, at=["layer3"], seed=i) for i, result in enumerate(few)]
    assert "std" not in graphaug("compare", *runs)[1]
    assert "1.5 ±" in graphaug("compare", *runs, "--show", "few_labels.std")[1]


def test_a_copy_is_no_new_seed(graphaug, sweep, tmp_path):
    copy = write_run(tmp_path / "copy", {"linear": 0.5}, at=["layer3"], seed=1)
    code, _, err = graphaug("compare", *sweep.values(), copy)
    assert code == 2
    assert "the same seed" in err
    assert "layer3-1" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "att"], "did you mean 'at'"),
        (["--by", "foo"], "no setting of these runs is called 'foo'. they differ in at.\n"),
        (["--show", "liner"], "did you mean 'linear'"),
        (["--show", "foo"], "is called 'foo'. there are linear, few_labels.mean, classes.\n"),
    ],
)
def test_mistyped_names(graphaug, sweep, options, message):
    code, _, err = graphaug("compare", *sweep.values(), *options)
    assert code == 2
    assert message in err.lower()


def planned(*sites, rate=0.5):
    """What a run's plan says of its sites, as ``config.yaml`` holds it."""
    lines = [
        line
        for site in sites
        for line in (
            f"site      {site}  (as deep_augment_{site})",
            f"          dropout {rate:g} per element on …",
        )
    ]
    return {"plan": "\n  ".join(["Deep Augmentation of ResNet", "captured  9 nodes", *lines])}


def test_two_spellings_of_a_site_are_one_setting(graphaug, tmp_path):
    for seed, (at, site) in enumerate([(4, "layer4"), ("layer4", "layer4"), (3, "layer3")]):
        run = write_run(tmp_path / f"{seed}", {"linear": 0.5 + seed / 10}, at=[at], seed=seed)
        config = {**yaml.safe_load((run / "config.yaml").read_text()), "resolved": planned(site)}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    code, out, err = graphaug("compare", *sorted(tmp_path.iterdir()))
    assert (code, err) == (0, "")
    assert [line.split()[:3] for line in out.splitlines()[2:4]] == [["4", "2", "55"], ["3", "1", "70"]]


def test_what_the_plans_of_runs_say_of_their_sites_is_read_as_it_was_written():
    """Against a plan that a rewrite makes."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    plan = {at: str(ga.rewrite(net, at=at, rate=0.5, dry_run=True)) for at in ("1", "2")}
    plan["both"] = str(ga.rewrite(net, at={"1": 0.5, "2": 0.25}, dry_run=True))
    runs = [
        Run(Path(name), {"at": at, "rates": rates, "resolved": {"plan": plan[name]}}, {})
        for name, at, rates in [
            ("1", ["1"], []),
            ("1", ["*.1"], []),
            ("2", ["2"], []),
            ("both", ["1", "2"], [0.5, 0.25]),
            ("both", ["2", "1"], [0.25, 0.5]),
        ]
    ]
    found = [(run.settings["at"], run.settings["rates"]) for run in one_spelling(runs)]
    assert found == [(["1"], []), (["1"], []), (["2"], []), *2 * [(["1", "2"], [0.5, 0.25])]]


def test_sites_with_rates_of_their_own_are_the_same_only_with_the_same_rates():
    runs = [
        Run(Path("x"), {"at": at, "rates": [0.5], "resolved": planned("layer4", rate=rate)}, {})
        for at, rate in (([4], 0.5), (["layer4"], 0.2))
    ]
    assert [run.settings["at"] for run in one_spelling(runs)] == [[4], ["layer4"]]


def test_what_cannot_be_compared_or_written_is_one_message(graphaug, sweep, tmp_path):
    """A file that cannot be written is refused before runs are read."""
    damaged = write_run(tmp_path / "damaged", [1])
    for options, message in [
        ([damaged], "result.json' is damaged: it holds a list, not an object. Remove it"),
        ([tmp_path / "gone", "--json", tmp_path], "is a directory: name a file in it"),
        ([tmp_path / "gone", "--json", tmp_path / "no" / "x.json"], "there is no directory"),
    ]:
        code, out, err = graphaug("compare", *options)
        assert (code, out) == (2, "")
        assert message in err
    alike = [
        graphaug("compare", *sweep.values(), *more)[1]
        for more in (["--show", "linear"], ["--show", "linear,,linear"])
    ]
    assert alike[0] == alike[1]


def test_what_is_no_finished_run_of_one_kind(graphaug, sweep, tmp_path):
    running = write_run(tmp_path / "running")
    code, _, err = graphaug("compare", running)
    assert code == 2
    assert "not finished" in err
    for command in ("compare", "probe"):
        code, _, err = graphaug(command, tmp_path / "runing")
        assert code == 2
        assert f"there is no folder '{tmp_path / 'runing'}'. Did you mean '{running}'?" in err
        code, _, err = graphaug(command, tmp_path)
        assert code == 2
        assert "no run directory" in err
    text = write_run(tmp_path / "text", {"stsb_dev": 0.7}, from_config="bert-base")
    code, _, err = graphaug("compare", *sweep.values(), text)
    assert code == 2
    assert "on text and on images" in err


def test_runs_that_begin_with_the_run_of_their_own_seed_are_one_setting(graphaug, tmp_path):
    """As those of a sweep do: the way to the weights has the seed in it."""
    for seed in range(3):
        write_run(
            tmp_path / f"01-begun-seed{seed}",
            {"linear": 0.5 + seed / 100},
            seed=seed,
            init=str(tmp_path / f"runs/00-simclr-seed{seed}"),
        )
    code, out, _ = graphaug("compare", *sorted(tmp_path.glob("01-*")))
    assert code == 0
    assert "51.0" in out
    assert len([line for line in out.splitlines() if "51.0" in line]) == 1
