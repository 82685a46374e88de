"""`pretrain --method`: tiny runs of every method, resumed ones, and what is refused."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import resumed
import torch
import yaml

from graphaug.contrastive.runs.checkpoints import Checkpoints
from graphaug.vision import pretrain as loop
from graphaug.vision.config import PretrainConfig
from graphaug.vision.methods.momentum import BYOL, MoCo
from graphaug.vision.methods.table import METHOD_SETTINGS, METHODS

TINY = {"model": "resnet18-cifar:4", "epochs": 2, "batch_size": 16, "size": 8, "checkpoint_every": 0.3}
SMALL = {"projection": 16, "hidden": 8}
WITH_LIGHTLY = [name for name, method in METHODS.items() if method.lightly]


def config(method, **options):
    heads_ = SMALL if "projection" in METHODS[method].settings else {}
    queue = {"queue": 40} if method == "moco" else {}
    return PretrainConfig(**{**TINY, "method": method, **heads_, **queue, **options})


@pytest.fixture(scope="module")
def images():
    return resumed.images()


@pytest.fixture(scope="module")
def unlabelled(images):
    """Nothing is probed."""
    return replace(images, classes=("all",))


@pytest.mark.few(1)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "simclr"])
def test_every_method_trains_with_deep_augmentation(method, images, unlabelled, tmp_path):
    data = images if METHODS[method].labels else unlabelled
    done = loop.pretrain(config(method, at=("layer3",), stop_grad=True), tmp_path / "run", data=data)
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert settings["method"] == method
    assert "layer3" in settings["resolved"]["plan"]
    assert ("lightly" in settings["versions"]) == (method in WITH_LIGHTLY)
    assert all(math.isfinite(line["loss"]) for line in done.metrics)
    assert ("linear" in done.result) == METHODS[method].labels  # probed as any other encoder
    own = loop.build_model("resnet18-cifar:4").state_dict()
    assert done.model.state_dict().keys() == own.keys()  # its own classifier again, and no teacher
    assert done.model.fc.weight.shape == (1000, 32)


@pytest.mark.few(2)
@pytest.mark.parametrize("method", ["barlow", "vicreg", "supcon", "supervised", "simsiam", "byol", "moco"])
def test_training_lowers_the_loss(method, images, unlabelled):
    options = {"epochs": 8, "lr": 0.05, "warmup": 0.0, "crop": 0.8, "checkpoint_every": 0}
    if method == "moco":  # as long as the first queue is random, the task is another one
        options |= {"temperature": 0.2, "queue": 16}
    done = loop.pretrain(config(method, **options), data=images if METHODS[method].labels else unlabelled)
    losses = [line["loss"] for line in done.metrics]
    assert min(losses[-3:]) < losses[1 if method == "moco" else 0]


@pytest.mark.few(1)
@pytest.mark.parametrize("site", [-1, 4, 6])
@pytest.mark.parametrize("method", ["byol", "supervised"])
def test_every_kind_of_site_can_be_augmented_with_the_head_in_place(method, site, images, unlabelled):
    options = {"epochs": 1, "checkpoint_every": 0, "at": (site,), "stop_grad": site != -1}
    done = loop.pretrain(config(method, **options), data=images if METHODS[method].labels else unlabelled)
    assert math.isfinite(done.metrics[-1]["loss"])


class Stop(Exception):
    pass


def files(out):
    found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    lines = [json.loads(line) for line in found.pop("metrics.jsonl").splitlines()]
    for line in lines:
        del line["seconds"], line["views_per_second"]
    return found, lines


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("byol", {}),
        ("byol", {"at": ("layer3",), "stop_grad": True, "augment_teacher": True, "rate_end": 0.1}),
        ("supervised", {"at": ("layer3",), "transform": "mix"}),
        ("moco", {}),
        ("moco", {"at": ("layer3",), "accumulate": 2}),
    ],
)
@pytest.mark.long
def test_an_interrupted_run_goes_on_exactly(method, options, images, unlabelled, tmp_path, monkeypatch):
    wanted, data = config(method, **options), images if METHODS[method].labels else unlabelled
    loop.pretrain(wanted, tmp_path / "unbroken", data=data)
    save = Checkpoints.save

    def save_and_stop(self, step, state):
        save(self, step, state)
        if step == 4:  # in the middle of the second epoch of three steps
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(Stop):
            loop.pretrain(wanted, tmp_path / "broken", data=data)
    kept = Checkpoints(tmp_path / "broken/checkpoints").latest().state["objective"]
    if METHODS[method].teacher:
        name = "conv1.weight"
        assert not torch.equal(kept[f"network.{name}"], kept[f"method.follower.network.{name}"])
    if method == "moco":
        assert int(kept["method.oldest"]) == 4 * 16 % 40
    with torch.random.fork_rng():
        torch.manual_seed(5)  # what was drawn in between does not matter
        loop.pretrain(wanted, tmp_path / "broken", data=data, resume=True)
    assert files(tmp_path / "broken") == files(tmp_path / "unbroken")


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests/helpers")
import torch, resumed
from graphaug.vision.config import PretrainConfig
from graphaug.vision.pretrain import pretrain
torch.set_num_threads(1)
out, kill = sys.argv[1], int(sys.argv[2])
def on_epoch(line):
    if line["epoch"] == kill:
        os.kill(os.getpid(), signal.SIGKILL)
pretrain(PretrainConfig(**eval(sys.argv[3])), out, data=resumed.images(), resume=True, on_epoch=on_epoch)
"""


@pytest.mark.long  # three processes that import everything
@pytest.mark.parametrize("method", ["byol", "moco"])
def test_a_killed_run_goes_on_to_the_same_files(method, tmp_path):
    wanted = {
        name: value for name, value in config(method, at=("layer3",)).to_dict().items() if value is not None
    }

    def run(name, kill):
        command = [sys.executable, "-c", KILLED, str(tmp_path / name), str(kill), repr(wanted)]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode

    assert run("broken", 1) == -signal.SIGKILL
    assert Checkpoints(tmp_path / "broken/checkpoints").complete()
    assert run("broken", 0) == run("unbroken", 0) == 0
    assert files(tmp_path / "broken") == files(tmp_path / "unbroken")


@pytest.mark.long
def test_a_teacher_follows_behind_every_step_of_a_run(unlabelled, monkeypatch):
    """Its weights at the end are the sum that BYOL's momenta give, of what the network was behind each step."""
    seen, first, last = [], [], []
    follow = BYOL.after_step

    def watched(self, network, progress):
        if not first:
            first.append(self.follower.network.conv1.weight.detach().double().clone())
        seen.append(network.get_parameter("conv1.weight").detach().double().clone())
        follow(self, network, progress)
        last[:] = [self.follower.network.conv1.weight.detach().double().clone()]

    monkeypatch.setattr(BYOL, "after_step", watched)
    loop.pretrain(config("byol", teacher_momentum=0.7, at=("layer1",)), data=unlabelled)
    assert len(seen) == 6
    expected = first[0]
    for k, weight in enumerate(seen):
        tau = 1 - 0.3 * (math.cos(math.pi * k / 6) + 1) / 2
        expected = tau * expected + (1 - tau) * weight
    torch.testing.assert_close(last[0], expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(last[0], seen[-1], rtol=1e-3)


@pytest.mark.few(2)
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("method", [BYOL, MoCo])
@pytest.mark.long
def test_the_teacher_of_a_run_is_augmented_only_if_asked_for(method, augment, unlabelled, monkeypatch):
    """All of the stem's output is dropped in the trained network; in the teacher by request alone."""
    spreads = []
    forward = method.forward

    def watched(self, network, x, labels=None):
        spreads.append(float(self.follower(x).std(0).max()))
        return forward(self, network, x, labels)

    monkeypatch.setattr(method, "forward", watched)
    name = method.__name__.lower()
    wanted = config(
        name, at=("layer4",), rate=1.0, subset=1.0, augment_teacher=augment, collapse=0.0, epochs=1
    )
    loop.pretrain(wanted, data=unlabelled)
    assert all((spread < 1e-5) == augment for spread in spreads)


def test_none_is_the_methods_own_and_a_run_from_before_there_were_methods_is_simclr():
    assert PretrainConfig().to_dict()["projection"] == 128
    own = PretrainConfig(method="moco").to_dict()
    assert (own["projection"], own["queue"], own["teacher_momentum"]) == (128, 4096, 0.999)
    assert PretrainConfig.from_dict(own) == PretrainConfig(method="moco")
    old = {n: v for n, v in PretrainConfig().to_dict().items() if n not in ("method", *METHOD_SETTINGS)}
    assert PretrainConfig.differences(old, PretrainConfig().to_dict()) == []
    changed = PretrainConfig.differences(old, PretrainConfig(method="supcon").to_dict())
    assert changed == ["method: 'simclr' → 'supcon'"]


def test_compare_shows_the_method(graphaug, images, tmp_path):
    for method in ("simclr", "supervised"):
        options = {"epochs": 1, "checkpoint_every": 0}
        loop.pretrain(config(method, **options), tmp_path / method, data=images)
    code, out, err = graphaug(
        "compare", tmp_path / "simclr", tmp_path / "supervised", "--by", "method,projection,hidden"
    )
    assert code == 0, err
    assert re.search(r"^supervised .* none", out, re.MULTILINE)
    assert re.search(r"^simclr +16 +8", out, re.MULTILINE)
