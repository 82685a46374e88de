"""Freezing that moves up layer by layer: what moves between two snapshots says what was frozen."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import resumed
import torch
from safetensors.torch import load_file

from graphaug.contrastive.runs.checkpoints import Checkpoints
from graphaug.errors import ConfigError, GraphaugError
from graphaug.vision.config import COMPILED_FREEZES, PretrainConfig
from graphaug.vision.pretrain import pretrain

PATHS = ("conv1", "bn1", "layer1", "layer2")
# Three steps an epoch, so that the last of twelve has the number 11: of four modules one is frozen every 11/4 steps.
CONFIG = PretrainConfig(
    model="resnet18-cifar:4", epochs=4, batch_size=16, size=8, weight_decay=0.1, snapshot_every=1,
    checkpoint_every=0.3, freeze_schedule=PATHS,
)  # fmt: skip


class Stop(Exception):
    pass


def snapshots(out: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(file) for file in sorted((out / "snapshots").iterdir())]


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], path: str) -> bool:
    """Whether anything of a module changed, its running statistics included."""
    return any(not torch.equal(before[n], after[n]) for n in before if n.startswith(path + "."))


@pytest.mark.parametrize("site", [{}, {"at": ("layer3",), "stop_grad": True, "rate_end": 0.2}])
@pytest.mark.long
def test_layers_stop_to_move_one_after_another(site: dict[str, Any], tmp_path: Path) -> None:
    done = pretrain(replace(CONFIG, **site), tmp_path / "run", data=resumed.images())
    states = snapshots(tmp_path / "run")
    assert len(states) == 5
    found = [
        [path for path in (*PATHS, "layer3", "layer4") if moved(before, after, path)]
        for before, after in itertools.pairwise(states)
    ]
    assert found == [
        ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"],
        ["bn1", "layer1", "layer2", "layer3", "layer4"],
        ["layer1", "layer2", "layer3", "layer4"],
        ["layer2", "layer3", "layer4"],  # frozen for the last step of this epoch
    ]
    sizes = [sum(p.numel() for p in done.model.get_submodule(path).parameters()) for path in PATHS]
    assert [line["frozen"] for line in done.metrics] == [0, sizes[0], sum(sizes[:2]), sum(sizes)]
    assert all(p.requires_grad for p in done.model.parameters())


def test_all_are_frozen_at_the_share_that_is_asked_for(tmp_path: Path) -> None:
    pretrain(replace(CONFIG, freeze_until=0.25), tmp_path / "run", data=resumed.images())
    states = snapshots(tmp_path / "run")  # 0.25 of 11 steps is 2.75: the fourth step is without them
    assert not [path for path in PATHS if moved(states[1], states[4], path)]
    assert [path for path in PATHS if moved(states[0], states[1], path)] == [*PATHS]


@pytest.mark.parametrize("step", [4, 9])
@pytest.mark.long
def test_an_interrupted_run_goes_on_exactly(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, at=("layer3",), stop_grad=True)
    images = replace(resumed.images(), classes=("all",))  # nothing is probed
    pretrain(config, tmp_path / "unbroken", data=images)
    save = Checkpoints.save

    def save_and_stop(self: Checkpoints, at: int, state: Any) -> None:
        save(self, at, state)
        if at == step:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(Stop):
            pretrain(config, tmp_path / "broken", data=images)
    pretrain(config, tmp_path / "broken", data=images, resume=True)

    def files(out: Path) -> dict[str, Any]:
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            del line["seconds"], line["views_per_second"]
        found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.safetensors")}
        return {**found, "metrics": lines}

    assert len(files(tmp_path / "unbroken")) == 7
    assert files(tmp_path / "broken") == files(tmp_path / "unbroken")


def test_another_schedule_is_another_run(tmp_path: Path) -> None:
    pretrain(replace(CONFIG, epochs=1), tmp_path / "run", data=resumed.images())
    with pytest.raises(ConfigError, match=r"freeze_schedule: \['conv1', .*\] → \['conv1'\]"):
        pretrain(
            replace(CONFIG, epochs=1, freeze_schedule=("conv1",)),
            tmp_path / "run",
            data=resumed.images(),
            resume=True,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_schedule": ("layr1",)}, r"no module 'layr1' to freeze\. Did you mean 'layer1'"),
        ({"freeze_schedule": ("relu",)}, "'relu' is to be frozen, and has nothing to freeze"),
        ({"freeze_schedule": ("layer1", "layer1.0")}, "'layer1.0' is to be frozen, and has nothing"),
        (
            {"freeze_schedule": ("conv1", "bn1", *(f"layer{i}" for i in range(1, 5)), "fc")},
            "nothing to train",
        ),
        ({"freeze_schedule": (), "freeze_until": 0.5}, "freeze_until without freeze_schedule"),
        ({"freeze_until": 0.0}, "before the first step"),
        ({"freeze_until": 1.5}, "freeze_until must be in"),
        ({"freeze_schedule": (0.5,)}, "freeze_schedule must be text, not"),
        ({"compile": True, "freeze_schedule": tuple("abcdefgh")}, "has 8 modules.*at most 7"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_anything_is_written(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(GraphaugError, match=message):
        pretrain(replace(CONFIG, **options), tmp_path / "run", data=resumed.images())
    assert not (tmp_path / "run").exists()


def test_on_the_command_line(graphaug: Any, tmp_path: Path) -> None:
    small = [
        "--model",
        "resnet18-cifar:4",
        "--size",
        "8",
        "--epochs",
        "1",
        "--batch-size",
        "512",
        "--accelerator",
        "cpu",
    ]
    schedule = ["--freeze-schedule", "conv1", "--freeze-schedule", "bn1", "--freeze-until", "0.5"]
    code, _, err = graphaug("pretrain", *small, *schedule, "--out", tmp_path / "run")
    assert code == 0, err
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["frozen"] == 3 * 4 * 9 + 2 * 4
    code, _, err = graphaug("pretrain", *small, "--freeze-until", "0.5", "--out", tmp_path / "other")
    assert code == 2
    assert (
        "--freeze-until does nothing without a schedule of freezing: name a module with --freeze-schedule"
        in err
    )


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_step_follows_as_many_modules_as_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, **options, backend="aot_eager"))
    torch._dynamo.reset()
    paths = ("conv1", "bn1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3")
    assert len(paths) == COMPILED_FREEZES
    config = replace(CONFIG, snapshot_every=0, freeze_schedule=paths)
    compiled = pretrain(replace(config, compile=True), data=resumed.images())
    eager = pretrain(config, data=resumed.images())
    assert [line["frozen"] for line in compiled.metrics] == [line["frozen"] for line in eager.metrics]
    for one, other in zip(compiled.metrics, eager.metrics, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_freeze_alike(tmp_path: Path) -> None:
    config = replace(CONFIG, devices=2, accelerator="cpu", epochs=2)
    pretrain(config, tmp_path / "run", data=resumed.images())
    states = snapshots(tmp_path / "run")  # the last step is the sixth: conv1 and bn1 go at 1.25 and 2.5
    assert [path for path in PATHS if moved(states[1], states[2], path)] == ["layer1", "layer2"]
