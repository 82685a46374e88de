"""``graphaug demo`` on other data than digits: which data it takes, a choice on held-out images, and going on."""

from __future__ import annotations

import json

import pytest
from idx_files import write_idx

from graphaug.recipes import demo
from graphaug.recipes.methods.images import PLAIN
from graphaug.recipes.plan import SCALES


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Files of images, and a scale that fits them."""
    write_idx(tmp_path / "data", train=80)
    monkeypatch.setitem(SCALES, "tiny", {**SCALES["tiny"], "images": None, "batch_size": 16, "size": 8})
    return f"idx:{tmp_path / 'data'}"


def test_fashion_mnist_is_taken_where_it_lies(graphaug, monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr(
        "graphaug.recipes.demo.run_demo_on", lambda data, *_, **__: taken.append(data) or "there"
    )
    monkeypatch.setattr("graphaug.vision.demo.run_demo", lambda *_, **__: taken.append("digits") or "here")
    monkeypatch.setenv("GRAPHAUG_DATA", str(tmp_path))
    assert graphaug("demo", "--out", tmp_path / "a")[1].strip() == "here"
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)  # all that a download that failed leaves
    assert graphaug("demo", "--out", tmp_path / "b")[1].strip() == "here"
    write_idx(raw)
    assert graphaug("demo", "--out", tmp_path / "c")[1].strip() == "there"
    assert graphaug("demo", "--data", "digits", "--out", tmp_path / "d")[1].strip() == "here"
    assert taken == ["digits", "digits", "fashion-mnist", "digits"]


@pytest.mark.parametrize(
    ("data", "message"),
    [("idx:nowhere", "nowhere"), ("fashon-mnist", "fashion-mnist"), ("folder:", "needs a path")],
)
def test_data_that_are_not_there_leave_nothing(graphaug, tmp_path, data, message):
    code, _, err = graphaug("demo", "--data", data, "--out", tmp_path / "demo")
    assert code == 2
    assert message in err
    assert not (tmp_path / "demo").exists()


@pytest.mark.long
def test_it_shows_what_was_chosen_beside_what_loses_and_goes_on(graphaug, small, tmp_path):
    out = tmp_path / "demo"
    arguments = ("demo", "--data", small, "--epochs", 1, "--seeds", 2, "--workers", 1, "--out", out)
    code, shown, err = graphaug(*arguments)
    assert code == 0, err
    results = json.loads((out / "results.json").read_text())
    settings = {run["setting"] for run in results["runs"]}
    deep = {f"site {s}{stop}{how}" for s in demo.SITES for stop in ("", ", stopped") for how in ("", ", PCA")}
    assert settings == {PLAIN, *deep}
    assert all(name in shown for name in settings)
    assert {c["choice"] for c in results["choices"]} == {"dropout, its site chosen", "PCA, its site chosen"}
    assert "PCA, its site chosen" in shown
    files = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/outcome.json")}
    assert len(files) == 18
    code, again, err = graphaug(*arguments)
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert again.partition("\nwritten")[0] == shown.partition("\nwritten")[0]
