"""``benchmarks/text.py``: its journal, its table, and what becomes of runs that fail. No training on real text."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import text_runs
import torch

from benchmarks.text import BOTH, SETTINGS, Journal, Setting, mean_path, one, scores, summary, table
from graphaug.text.encoders.encoder import TextEncoder
from graphaug.text.model import build
from graphaug.text.presets import RATES
from graphaug.text.sts.tasks import TASKS, StsTask

SETTINGS_OF = {"lr": 0.1, "seeds": 3}


def finished(setting, seed, score, **more):
    path = [{"step": s, "stsb_dev": 0.5, "alignment": score, "uniformity": -s} for s in (2, 4)]
    averages = {"average": score, "average_mean_pooler": 2 * score}
    scores = {"spearman": dict.fromkeys(TASKS, score), **averages, "path": path}
    return {"name": setting.name, "seed": seed, **scores, **more}


@pytest.mark.long
def test_a_run_that_fails_is_recorded_with_its_error(tmp_path):
    text = tmp_path / "text"
    text.write_text("\n".join(text_runs.corpus().lines))
    config = replace(text_runs.CONFIG, text=str(text), collapse=0.99)
    found = one((SETTINGS[0], config, tmp_path, 44))
    assert found.keys() == {"name", "seed", "error", "seconds"}
    assert found["error"].startswith("TrainingCollapsed: ")


def test_failed_runs_are_in_no_mean_and_every_column_has_a_deviation():
    first, second = SETTINGS[:2]
    records = [
        finished(first, 0, 0.2),
        finished(first, 1, 0.4),
        {"name": first.name, "seed": 2, "error": "E"},
    ]
    rows = summary([*records, {"name": second.name, "seed": 0, "error": "E"}])
    assert [(row["n"], row["failed"]) for row in rows] == [(2, 1), (0, 1)]
    lines = table(rows).splitlines()
    assert (
        lines[2]
        == f"| {first.name} | 2 | "
        + "30.0 ± 14.1 | " * 7
        + "30.00 ± 14.14 | 60.00 ± 28.28 | 0.30 ± 0.14 | -4.00 ± 0.00 |"
    )
    assert lines[3] == f"| {second.name} | 0 |" + " – |" * 11
    assert len({line.count("|") for line in lines}) == 1
    json.dumps(summary([finished(first, 0, 0.2)]), allow_nan=False)


def test_both_poolers_are_those_of_the_encoder_from_one_forward(monkeypatch):
    """Each sentence is encoded once, and each half of its vector is what the pooler alone gives."""
    data = [StsTask(task, ("a dog", "the cat"), ("the cat", "a dog ran"), (1.0, 3.0)) for task in TASKS]
    made = build(text_runs.CONFIG, text_runs.corpus().lines)
    model = made.encoder.eval()
    forwards = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    monkeypatch.setattr("benchmarks.text.load_tasks", lambda _: data)
    seen = {}

    def keep(encode, tasks):
        vectors = encode(["a dog", "the cat", "a dog"])
        seen[len(seen)] = vectors
        return SimpleNamespace(spearman={}, average=0.0)

    monkeypatch.setattr("benchmarks.text.evaluate", keep)
    scores(TextEncoder(model, made.tokenizer), "unused")
    assert len(forwards) == 1
    for pooler, vectors in zip(BOTH, seen.values(), strict=True):
        expected = TextEncoder(model, made.tokenizer, pooler).encode(["a dog", "the cat", "a dog"])
        torch.testing.assert_close(vectors, expected)


def test_a_run_that_was_never_looked_at_has_scores_all_the_same():
    (row,) = summary([finished(SETTINGS[0], 0, 0.2) | {"path": []}])
    assert (row["mean"]["Avg."], row["mean"]["stsb_dev"]) == (0.2, None)


def test_paths_begin_at_the_common_beginning():
    start = {"step": 0, "stsb_dev": 0.1, "alignment": 0.5, "uniformity": -1.0}
    runs = [finished(SETTINGS[0], 0, 0.2), finished(SETTINGS[0], 1, 0.4)]
    runs[1]["path"].pop()  # its last look found a collapse
    assert mean_path(runs, start) == [[-1.0, 0.5], [-2.0, pytest.approx(0.3)]]


def test_a_journal_goes_on_with_its_settings_only(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, SETTINGS_OF)
    journal.before = 100.0  # as if earlier sittings had taken so long
    journal.add("run", {"name": "x"})
    with path.open("a") as file:
        file.write('{"run": {"na')  # a kill in the middle of a line
    again = Journal(path, SETTINGS_OF)
    assert again.all("run") == [{"name": "x"}]
    assert again.before >= 100
    assert again.seconds() >= again.before
    again.add("run", {"name": "y"})
    assert [entry["name"] for entry in Journal(path, SETTINGS_OF).all("run")] == ["x", "y"]
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=r"was written with .*'lr': 0.1.* not with .*'lr': 0.2"):
        Journal(path, {**SETTINGS_OF, "lr": 0.2})
    path.with_name("old").write_text('{"name": "x", "seed": 0}\n')
    with pytest.raises(SystemExit, match="was written with no settings"):
        Journal(path.with_name("old"), SETTINGS_OF)
    assert path.read_bytes() == before


def test_the_rates_are_the_published_ones():
    assert RATES == {(True, False): 0.125, (False, False): 0.25, (True, True): 0.5, (False, True): 0.5}
    config = Setting(2, True, True).config(text_runs.CONFIG, 5)
    assert (config.at, config.stop_grad, config.mlm, config.rate, config.seed) == ((2,), True, True, 0.5, 5)
