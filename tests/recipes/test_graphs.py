"""The figure on graphs: its settings, and that its runs are the same machinery's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("torch_geometric")

from graphaug.contrastive.runs.sweep import Executor
from graphaug.errors import ConfigError
from graphaug.recipes.figures import planned
from graphaug.recipes.report import report


def molecules(folder, values=True):
    """Chains of carbon with an end; longer ones have larger values."""
    ends = "CONF"
    names = [f"{end}{n}" for n in range(16) for end in ends]
    (folder / "chains.smi").write_text("\n".join(f"{'C' * (int(n[1:]) + 2)}{n[0]} {n}" for n in names))
    label = (lambda n: f"{int(n[1:]) + 0.5}") if values else (lambda n: n[0])
    (folder / "chains.csv").write_text("\n".join(f"{n},{label(n)}" for n in names))
    return folder / "chains.smi"


def small(data, out, **options):
    return planned("graphs", out, data=[str(data)], **{"at": ["2"], "epochs": 1, "seeds": 1, **options})


def test_both_methods_stand_at_every_site_in_the_same_runs(tmp_path):
    sweep = planned("graphs", tmp_path / "out", data=[str(molecules(tmp_path))])
    settings = {s.name: s.config for s in sweep.plan.settings}
    assert len(settings) == 2 * (
        1 + 1 + 2 * 3
    )  # alone, at the input, behind three layers with and without the stop
    assert sweep.plan.measures.keys() == {"r2"}
    plain = settings["SimGRACE"].to_dict()
    for name, config in settings.items():
        moved = {key for key, value in config.to_dict().items() if value != plain[key]}
        assert moved <= {"at", "stop_grad", "method"}, name
    assert settings["GraphCL: site 3, stopped"].at == (3,)
    assert settings["GraphCL: site 3, stopped"].stop_grad
    assert "GraphCL: site 0, stopped" not in settings
    classes = planned("graphs", tmp_path / "out", data=[str(molecules(tmp_path, values=False))])
    assert (classes.plan.measure, classes.plan.chosen_by) == ("linear", "validation.linear")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "resnet18"}, "model='resnet18'"),
        ({"images": 10}, "images=10"),
        ({"scale": "full"}, "no full size"),
        ({"scale": "smal"}, "Did you mean 'small'"),
    ],
)
def test_options_of_images_are_refused(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        planned("graphs", tmp_path / "out", data=["digits"], **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_sweep_on_molecules_ends_in_a_report_and_is_not_run_again(tmp_path):
    data, out = molecules(tmp_path), tmp_path / "out"
    sweep = small(data, out, validation=0.2)
    plan = sweep.plan
    small_batches = tuple(replace(s, config=replace(s.config, batch_size=16)) for s in plan.settings)
    sweep = replace(sweep, plan=replace(plan, settings=small_batches))
    sweep.check()
    outcomes = sweep.run(Executor(), lambda line: None)
    assert set(outcomes) == {s.name for s in plan.settings}
    for by_seed in outcomes.values():
        assert by_seed[0].failed is None
        assert by_seed[0].figures["r2"] <= 1
        assert by_seed[0].figures["validation.r2"] <= 1
    said = report("graphs", sweep.plan, outcomes, out)
    assert "SimGRACE: site 2, stopped" in said
    assert json.loads((out / "results.json").read_text())
    again: list[str] = []
    assert sweep.run(Executor(), again.append) == outcomes
    assert again == ["6 of 6 runs are done already"]
