"""Stop*, freezing, pairs, training and maps: what their runs begin with, and that their numbers are of the runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from idx_files import write_idx
from safetensors.torch import load_file
from torch import nn

from graphaug.contrastive.runs.sweep import Executor
from graphaug.errors import ConfigError, DataError
from graphaug.recipes.figures import FIGURES, planned
from graphaug.recipes.maps import maps_of
from graphaug.recipes.methods.images import PLAIN
from graphaug.recipes.methods.variants import AGAIN, LONGER, THEN
from graphaug.recipes.plan import image_settings
from graphaug.recipes.report import report
from graphaug.recipes.runs import job as jobs
from graphaug.recipes.runs import looks
from graphaug.recipes.runs.job import OUTCOME, Outcome, outcome_in
from graphaug.vision.models import build_model

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("idx")
    write_idx(folder, train=160, test=40)
    return f"idx:{folder}"


def small(figure, out, data, keep=None, **options):
    given = {"model": "resnet18-cifar:2", "at": [4], "epochs": 1, "images": 128, "seeds": 1, **options}
    found = planned(figure, out, data=[data], **given)
    settings = tuple(
        replace(s, config=replace(s.config, size=8))
        for s in found.plan.settings
        if keep is None or s.name in keep
    )
    return replace(found, plan=replace(found.plan, settings=settings))


def run(sweep, executor=None):
    said = []
    sweep.check()
    return sweep.run(executor or Executor(), said.append), said


def test_stop_star_begins_with_the_weights_that_its_run_ended_with(tmp_path, data):
    names = {PLAIN, AGAIN, THEN + "site 4, stopped"}
    sweep = small("stop*", tmp_path / "out", data, names)
    assert sweep.figure == "stop-star"
    # a learning rate too small for float32 moves no weight: what such a run ends with is what it began with
    idle = tuple(
        replace(s, config=replace(s.config, lr=1e-30, weight_decay=0.0)) if s.begins_with else s
        for s in sweep.plan.settings
    )
    sweep = replace(sweep, plan=replace(sweep.plan, settings=idle))
    _, said = run(sweep)
    assert said[0].startswith(f"[1/3] {PLAIN}, seed 0")  # before what begins with it
    ends = {name: load_file(sweep.out / sweep.plan.folder(name, 0) / "encoder.safetensors") for name in names}
    drawn = looks._untrained(sweep.jobs[0].config).state_dict()
    weights = [n for n in drawn if "running" not in n and "tracked" not in n and n in ends[PLAIN]]
    for name in names:
        assert all(torch.equal(ends[PLAIN][n], ends[name][n]) for n in weights), name
    assert not any(torch.equal(ends[PLAIN][n], drawn[n]) for n in weights if n.endswith("conv1.weight"))


def test_a_sweep_that_was_moved_goes_on(tmp_path, data):
    out = tmp_path / "out"
    sweep = small("stop*", out, data, {PLAIN, AGAIN})
    run(sweep)
    out.rename(tmp_path / "elsewhere")
    moved = replace(sweep, out=tmp_path / "elsewhere")
    _, said = run(moved)
    assert said == ["2 of 2 runs are done already"]
    second = moved.jobs[1]
    (second.out / OUTCOME).unlink()  # as a kill leaves a run that has come to its end
    outcomes, said = run(moved)
    assert said[0] == "1 of 2 runs are done already"
    assert outcomes[AGAIN][0].failed is None
    (second.out / OUTCOME).unlink()
    (second.out / "result.json").unlink()  # and one that goes on from its checkpoint
    assert run(moved)[0][AGAIN][0].failed is None


def test_another_spelling_of_the_directory_is_the_same_one(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(small("stop*", Path("out"), data, {PLAIN, AGAIN}))
    whole = small("stop*", tmp_path / "out", data, {PLAIN, AGAIN})
    (whole.jobs[1].out / OUTCOME).unlink()
    assert run(whole)[0][AGAIN][0].failed is None


def test_what_begins_with_a_diverged_run_has_diverged(tmp_path, data, monkeypatch):
    sweep = small("stop*", tmp_path / "out", data, {PLAIN, AGAIN})
    first = sweep.jobs[0]
    jobs._kept(first, Outcome({}, diverged="TrainingDiverged: the loss is nan"))
    found = jobs.make(sweep.jobs[1])
    assert found.figures == {}
    assert found.diverged == "it begins with a run that diverged: TrainingDiverged: the loss is nan"
    assert outcome_in(sweep.jobs[1].out) == found
    # of one that failed it is told, and both are tried again
    (first.out / OUTCOME).unlink()
    (sweep.jobs[1].out / OUTCOME).unlink()
    assert "holds no encoder.safetensors" in (jobs.make(sweep.jobs[1]).failed or "")
    assert outcome_in(sweep.jobs[1].out) is None


def test_the_settings_differ_in_what_the_figure_is_about(tmp_path, data):
    def config(figure, name):
        (found,) = (
            s for s in planned(figure, tmp_path, data=[data], at=[-1, 3, 4]).plan.settings if s.name == name
        )
        return found

    plain = config("freeze", PLAIN)
    for figure in ("stop-star", "freeze", "pairs", "training", "cka"):
        settings = planned(figure, tmp_path, data=[data], at=[-1, 3, 4]).plan.settings
        assert all(s.config.at != (-1,) for s in settings)  # below the input nothing is trained
        assert settings[0].name == PLAIN
        assert len({s.name for s in settings}) == len(settings)
        assert all(m.setting in {s.name for s in settings} for c in planned(
            figure, tmp_path, data=[data], at=[3, 4]).plan.claims for m in c.members)  # fmt: skip
    frozen = config("freeze", THEN + "site 3, frozen before")
    assert frozen.begins_with == PLAIN
    assert frozen.config == replace(plain.config, at=(3,), freeze="before")
    assert config("pairs", "site 3, stopped, lower to higher").config == replace(
        plain.config, at=(3,), stop_grad=True, pairing="one-sided"
    )
    longer = config("stop-star", "site 4, stopped" + LONGER)
    assert longer.begins_with is None
    assert longer.config == replace(plain.config, at=(4,), stop_grad=True, epochs=2 * plain.config.epochs)


@pytest.mark.parametrize("figure", [f.name for f in FIGURES if f.data and f.base is image_settings])
def test_every_figure_on_images_can_be_run_at_the_sites_that_it_takes_by_default(figure, tmp_path, data):
    other = tmp_path / "other"
    write_idx(other, train=160, test=40, seed=1)
    given = [data, f"idx:{other}"] if figure == "fig5" else [data]
    sweep = planned(figure, tmp_path / "out", data=given, model="resnet18-cifar:2", images=128, seeds=1)
    sweep.check()
    assert not (tmp_path / "out").exists()


def test_snapshots_are_probed_as_the_end_is(tmp_path, data):
    sweep = small("training", tmp_path / "out", data, {PLAIN}, epochs=2)
    outcomes, _ = run(sweep)
    figures = outcomes[PLAIN][0].figures
    assert sweep.plan.marks == ("0", "1", "2")
    assert figures["snapshots.2.linear"] == figures["linear"]
    assert figures["snapshots.2.knn"] == figures["knn"]
    assert set(sweep.plan.drawn.values()) < figures.keys()
    for epochs, marks in ((4, 5), (16, 9), (20, 8), (1500, 9)):
        found = small("training", tmp_path / "x", data, {PLAIN}, epochs=epochs).plan
        assert len(found.marks) == marks
        assert found.marks[-1] == str(epochs)
    text = report("training", sweep.plan, outcomes | {s: {} for s in ("site 4", "site 4, stopped")}, None)
    assert "at every snapshot" in text
    assert "untrained" in text
    bare = sweep.jobs[0]
    with pytest.raises(DataError, match="no snapshots"):
        looks.snapshots(bare.config, tmp_path)


def hsic(k, m):
    """Of Gram matrices, the textbook's: the trace with the centring matrix."""
    n = len(k)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    return torch.trace(k @ h @ m @ h)


def test_maps_are_of_the_trained_layers_and_their_controls_share_nothing(tmp_path, data, monkeypatch):
    sweep = small("cka", tmp_path / "out", data, {PLAIN, "site 4, stopped"})
    outcomes, _ = run(sweep)
    figures = outcomes[PLAIN][0].figures
    job = sweep.jobs[0]
    found = json.loads((job.out / looks.MAPS).read_text())
    sites, maps = found["sites"], found["maps"]
    assert found["samples"] == 128
    # the oracle: hooks and the textbook's formula
    model = build_model(job.config.model)
    model.load_state_dict(load_file(job.out / "encoder.safetensors"))
    model.eval()
    task = looks._images(job.config)
    images = task.train.images[looks.balanced(task.train.labels, looks.SAMPLES)]
    x = looks.to_rgb(looks.EvalView(8, *task.statistics())(images))
    kept = {}
    modules = [name for name in sites if name in dict(model.named_modules())]
    assert len(modules) >= 4
    for name in modules:
        model.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: kept.__setitem__(name, o.flatten(1).double())
        )
    with torch.no_grad():
        model(x)
    grams = [kept[name] @ kept[name].T for name in modules]
    want = torch.stack(
        [torch.stack([hsic(a, b) / (hsic(a, a) * hsic(b, b)).sqrt() for b in grams]) for a in grams]
    )
    whole = torch.tensor(maps["images"]["biased, linear"], dtype=torch.float64)
    at = [sites.index(name) for name in modules]
    torch.testing.assert_close(whole[at][:, at], want, atol=1e-4, rtol=0)
    off = whole[~torch.eye(len(whole), dtype=torch.bool)]
    assert figures["layers.images.biased.linear.unlike"] == pytest.approx(1 - float(off.mean()))
    # of shuffled samples the unbiased estimator finds nothing, and the biased one its bias
    assert abs(1 - figures["layers.shuffled.unbiased.linear.unlike"]) < 0.05
    assert figures["layers.shuffled.biased.linear.unlike"] < 0.98
    assert maps["untrained"] != maps["images"]
    plan = replace(sweep.plan, maps=(PLAIN, "site 4, stopped"))
    assert len(maps_of(plan, sweep.out).axes) == 2 * 4 + 1
    report("cka", plan, outcomes | {"site 4": {}}, tmp_path / "out")
    assert (tmp_path / "out/maps.png").stat().st_size > 0


def test_untrained_weights_are_those_that_the_run_began_with(tmp_path, data):
    sweep = small("training", tmp_path / "out", data, {PLAIN})
    run(sweep)
    job = sweep.jobs[0]
    begun = load_file(job.out / "snapshots/epoch-0000.safetensors")
    drawn = looks._untrained(job.config).state_dict()
    head = [n for n in begun if not torch.equal(begun[n], drawn[n])]
    assert head == [], head


def test_reordered_is_a_module_without_weights():
    order = torch.tensor([2, 0, 1])
    x = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(nn.Sequential(looks.Reordered(order))(x), x[[2, 0, 1]])
    assert not looks.Reordered(order).state_dict()


def test_other_kinds_of_runs_have_nothing_to_look_at(tmp_path):
    from graphaug.recipes.runs.of_graphs import GraphRuns
    from graphaug.recipes.runs.of_text import TextRuns

    for kind in (GraphRuns(), TextRuns()):
        with pytest.raises(ConfigError, match="no figure asks for layers"):
            kind.look(None, tmp_path, "layers")
