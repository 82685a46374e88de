"""The engine: schedules, optimizers, processes, precision, what is watched, and what a run keeps."""

import importlib
import io
import json
import math
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import engine_processes
import pytest
import resumed
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from graphaug.augment.deep_augment import DeepAugment
from graphaug.contrastive.config.presets import settle
from graphaug.contrastive.devices import launch, make_fabric
from graphaug.contrastive.engine import Engine
from graphaug.contrastive.geometry import embedding_spread
from graphaug.contrastive.optim import LARS, build_optimizer
from graphaug.contrastive.runs.checkpoints import Checkpoints
from graphaug.contrastive.schedule import augmentation_rate, learning_rate
from graphaug.errors import (
    CheckpointError,
    ConfigError,
    LaunchError,
    SiteNotFound,
    TrainingCollapsed,
    TrainingDiverged,
)
from graphaug.vision.config import PretrainConfig
from graphaug.vision.models import build_model
from graphaug.vision.presets import PRESETS
from graphaug.vision.pretrain import pretrain
from graphaug.vision.views.pipeline import SimCLRViews

pytestmark = pytest.mark.few(3)

TINY = PretrainConfig(model="resnet18-cifar:4", epochs=2, batch_size=16, size=8)


@pytest.fixture(scope="module")
def images():
    return resumed.images()


def test_the_presets_learning_rate_is_supcontrasts():
    config = settle(PretrainConfig, {}, name="simclr-cifar10", presets=PRESETS)
    steps = 50000 // 1024

    def supcontrast(epoch, batch):
        """util.py of SupContrast: epochs from 1, warm-up by batches, otherwise once an epoch."""
        eta_min = 0.5 * 0.1**3
        warmup_to = eta_min + (0.5 - eta_min) * (1 + math.cos(math.pi * 10 / 1500)) / 2
        if epoch <= 10:
            p = (batch + (epoch - 1) * steps) / (10 * steps)
            return 0.01 + p * (warmup_to - 0.01)
        return eta_min + (0.5 - eta_min) * (1 + math.cos(math.pi * epoch / 1500)) / 2

    for epoch in (1, 2, 10, 11, 12, 700, 1499, 1500):
        for batch in (0, 1, steps - 1):
            found = learning_rate(config, epoch - 1 + batch / steps)
            assert found == pytest.approx(supcontrast(epoch, batch), rel=1e-9), (epoch, batch)
    assert learning_rate(config, 1499.5) == pytest.approx(0.5e-3)


def test_the_presets_are_the_papers_settings():
    from graphaug.vision.models import projection_head

    config = settle(PretrainConfig, {}, name="simclr-cifar100", presets=PRESETS)
    assert (config.data, config.model) == ("cifar100", "resnet18-cifar")
    assert (config.loss, config.loss_scale) == ("nt_xent", "supcontrast")
    assert (config.lr, config.warmup_from, config.lr_floor, config.schedule) == (
        0.5,
        0.01,
        1e-3,
        "supcontrast",
    )
    assert (config.at, config.everywhere) == ((), False)
    assert (config.batch_size, config.epochs, config.temperature, config.warmup) == (1024, 1500, 0.5, 10)
    assert (config.momentum, config.weight_decay, config.optimizer) == (0.9, 1e-4, "sgd")
    assert (config.crop, config.jitter, config.jitter_p, config.gray_p) == (
        0.2,
        (0.4, 0.4, 0.4, 0.1),
        0.8,
        0.2,
    )
    head = projection_head(nn.Linear(512, 1000), config.projection)  # a ResNet-18 has 512 features
    assert [m.weight.shape for m in head if isinstance(m, nn.Linear)] == [(512, 512), (128, 512)]


def test_the_floor_of_the_cosine():
    config = PretrainConfig(epochs=10, warmup=0, lr=2.0, lr_floor=0.25)
    assert learning_rate(config, 10) == pytest.approx(0.5)
    assert learning_rate(config, 5) == pytest.approx(1.25)


def test_rate_goes_linearly_to_its_end():
    config = PretrainConfig(epochs=10, rate=0.2, rate_end=0.7)
    assert [augmentation_rate(config, e) for e in (0, 4, 10)] == pytest.approx([0.2, 0.4, 0.7])
    assert augmentation_rate(replace(config, rate_end=None), 4) == 0.2


def test_lars_is_its_algorithm():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    gradients = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    p = nn.Parameter(w.clone())
    optimizer = LARS([p], lr=0.7, momentum=0.8, weight_decay=0.1, trust=0.02)
    velocity = torch.zeros_like(w)
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        d = g + 0.1 * w
        velocity = 0.8 * velocity + 0.02 * w.norm() / d.norm() * d
        w = w - 0.7 * velocity
    torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=0)


def test_lars_without_adaptation_is_torchs_sgd():
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    pair = [
        LARS([ours], 0.1, 0.9, weight_decay=0.01, adapt=False),
        torch.optim.SGD([theirs], 0.1, 0.9, weight_decay=0.01),
    ]
    for step in range(3):
        for p, optimizer in zip((ours, theirs), pair, strict=True):
            p.grad = torch.full((5,), float(step + 1))
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_lars_neither_decays_nor_adapts_norms_and_biases():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    groups = build_optimizer("lars", model, lr=1.0, momentum=0.9, weight_decay=0.1).param_groups
    rules = {id(p): (group["weight_decay"], group["adapt"]) for group in groups for p in group["params"]}
    for name, p in model.named_parameters():
        weight = name in ("0.weight", "3.weight")
        assert rules[id(p)] == ((0.1, True) if weight else (0.0, False)), name


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fused_steps_are_torchs_own_and_go_on_from_a_state(name, memory_format):
    def run(fused: bool) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2)
        )
        model.to(torch.float64, memory_format=memory_format)
        optimizer = build_optimizer(name, model, lr=0.1, momentum=0.9, weight_decay=0.1)
        assert all(group["fused"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["fused"] = fused
        x = torch.randn(6, 3, 5, 5, dtype=torch.float64)
        for step in range(4):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            if step == 1:
                held = io.BytesIO()
                torch.save((model.state_dict(), optimizer.state_dict()), held)
                held.seek(0)
                weights, state = torch.load(held, weights_only=True)
                model.load_state_dict(weights)
                optimizer.load_state_dict(state)
        return model

    for ours, theirs in zip(run(True).parameters(), run(False).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_spread_is_one_for_isotropic_and_zero_for_collapsed_embeddings():
    axes = torch.eye(6, dtype=torch.float64)
    assert embedding_spread(torch.cat([3 * axes, -axes])) == pytest.approx(1)
    assert embedding_spread(axes[:1].repeat(5, 1)) == pytest.approx(0)
    z = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2
    mean = (z / z.norm(dim=1, keepdim=True)).mean(0)
    assert embedding_spread(z) == pytest.approx(float((1 - mean @ mean).sqrt()))


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

    def forward(self, x):
        return {"loss": (x @ self.w).square().mean()}


class Rows:
    steps = 2

    def __init__(self, parts):
        self.parts = parts
        self.x = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def start_epoch(self):
        pass

    def batches(self, step):
        return [(part,) for part in self.x[step].chunk(self.parts)]

    def state_dict(self, new_epoch):
        return {}

    def load_state_dict(self, state):
        pass


def test_accumulated_parts_give_the_step_of_the_whole_batch():
    lines = {}
    for parts in (1, 4):
        objective = Quadratic()
        optimizer = torch.optim.SGD(objective.parameters(), 0.1)
        fabric = make_fabric(1, "cpu", "32-true")
        engine = Engine(fabric, objective, Rows(parts), optimizer, lambda e: 0.05, epochs=2, accumulate=parts)
        lines[parts] = [line["loss"] for line in engine.fit()], objective.w.detach()
    w, x = torch.tensor([1.0, -2.0], dtype=torch.float64), Rows(1).x
    for _ in range(2):
        for batch in x:
            w = w - 0.05 * 2 * batch.T @ (batch @ w) / len(batch)
    for losses, found in lines.values():
        torch.testing.assert_close(found, w, rtol=1e-12, atol=0)
        assert losses == pytest.approx(lines[1][0], rel=1e-6)


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    """A run of two processes that torchrun started."""
    out = tmp_path_factory.mktemp("torchrun") / "run"
    script = engine_processes.__file__
    environment = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(script).parents[2]), str(Path(script).parent)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, script, str(out)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


def weights(out):
    return load_file(out / "encoder.safetensors")


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_two_processes_of_torchrun_train_as_one_with_the_whole_batch(torchrun, images, tmp_path):
    pretrain(engine_processes.CONFIG, tmp_path / "one", data=images)
    assert losses(torchrun) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    single, moved = weights(tmp_path / "one"), build_model(engine_processes.CONFIG.model).state_dict()
    for name, found in weights(torchrun).items():
        torch.testing.assert_close(found, single[name], rtol=1e-3, atol=1e-5, msg=name)
    assert any((found - moved[name]).abs().max() > 1e-2 for name, found in single.items())
    config = yaml.safe_load((torchrun / "config.yaml").read_text())
    assert config["resolved"]["processes"] == 2


@pytest.mark.long
def test_devices_2_is_torchrun_with_two(torchrun, images, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seen = []
    config = replace(engine_processes.CONFIG, devices=2)
    done = pretrain(config, tmp_path / "run", data=images, on_epoch=seen.append)
    assert seen == done.metrics
    assert losses(tmp_path / "run") == losses(torchrun)
    first, second = weights(torchrun), weights(tmp_path / "run")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.long
def test_an_error_in_a_process_is_our_own(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with pytest.raises(SiteNotFound, match="process 1 has no site"):
        launch(make_fabric(2, "cpu", "32-true"), engine_processes.fail)


class Started:
    """A Fabric of two processes as far as `launch` uses it; the work is done here."""

    world_size, is_global_zero = 2, True

    def launch(self, work):
        os.environ.update(MASTER_PORT="54321", LOCAL_RANK="0")  # as Fabric's launcher does
        os.environ.pop("WORLD_SIZE", None)
        threads = torch.get_num_threads()
        work(self)
        torch.set_num_threads(threads)


def test_the_environment_of_the_caller_comes_back(monkeypatch):
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "7")
    monkeypatch.setenv("LOCAL_RANK", "3")
    before = dict(os.environ)
    found = launch(Started(), lambda fabric, emit: {"port": int(os.environ["MASTER_PORT"])})
    assert found == {"port": 54321}
    assert dict(os.environ) == before


def test_events_are_taken_to_the_end_when_one_cannot_be_handled():
    seen = []

    def on_event(event):
        seen.append(event[0])
        raise ValueError(f"event {event[0]} is bad")

    def job(fabric, emit):
        for number in range(50):
            emit((number, "x" * 10_000))  # together more than a pipe holds
        return {"done": 1}

    with pytest.raises(ValueError, match="event 0 is bad"):
        launch(Started(), job, on_event=on_event)
    assert seen == [0]


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ({}, True),
        ({"subset": 0.9}, False),
        (
            {"subset": 0.97},
            True,
        ),  # 31.04 of 32 rows round to 31 in one process, 15.5 of 16 to 16 in each of two
        ({"subset": 0.5, "subset_end": 1.0}, True),
        ({"backward": "dense"}, False),
        ({"stop_grad": False}, False),
    ],
)
def test_parameters_may_be_unused_where_all_rows_of_a_process_are_stopped(
    options, unused, images, monkeypatch
):
    seen = []

    def spy(devices, accelerator, precision, unused):
        seen.append(unused)
        raise ConfigError("enough")

    loop = importlib.import_module("graphaug.contrastive.runs.life")
    monkeypatch.setattr(loop, "make_fabric", spy)
    config = replace(TINY, **{"at": ("layer4",), "subset": 1.0, "stop_grad": True, "devices": 2, **options})
    with pytest.raises(ConfigError, match="enough"):
        pretrain(config, data=images)
    assert seen == [unused]


def test_a_port_in_use_is_named(images, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(LaunchError, match=f"port {taken.getsockname()[1]}, which MASTER_PORT names"):
            pretrain(replace(TINY, devices=2, accelerator="cpu"), tmp_path / "run", data=images)
    assert not (tmp_path / "run").exists()


def test_one_sample_a_process_is_refused(images):
    with pytest.raises(ConfigError, match=r"batch_size=16 in 16 parts .* at least 2"):
        pretrain(replace(TINY, accumulate=16), data=images)
    with pytest.raises(ConfigError, match="give a multiple of 3"):
        replace(TINY, accumulate=3)


def test_a_changing_subset_is_not_compiled_sparse():
    options = {"at": ("layer4",), "stop_grad": True, "subset_end": 0.9, "compile": True}
    with pytest.raises(ConfigError, match="compiled anew for every subset"):
        replace(TINY, **options)
    replace(TINY, **options, backward="dense")


@pytest.mark.parametrize(
    "options",
    [{}, {"compile": True, "devices": 2}, {"compile": True, "accumulate": 2}, {"accelerator": "cpu"}],
)
def test_cuda_graphs_need_a_compiled_step_on_one_gpu(options):
    with pytest.raises(ConfigError, match="cuda_graphs needs compile, one GPU, and a batch in one part"):
        PretrainConfig(cuda_graphs=True, **options)


def test_cuda_graphs_without_a_gpu_are_refused_before_anything_is_written(images, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = replace(TINY, cuda_graphs=True, compile=True)
    with pytest.raises(ConfigError, match=r"cuda_graphs needs one GPU, not 1 process\(es\) on cpu"):
        pretrain(config, tmp_path / "run", data=images)
    assert not (tmp_path / "run").exists()


def test_cuda_graphs_are_torchs_reduce_overhead_and_every_step_begins_anew(monkeypatch):
    calls = []

    def compile_(objective, **options):
        calls.append(options)
        return objective

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: calls.append("step"))
    for cuda_graphs in (True, False):
        objective = Quadratic()
        optimizer = torch.optim.SGD(objective.parameters(), 0.1)
        options = {"epochs": 2, "compile": True, "cuda_graphs": cuda_graphs}
        Engine(
            make_fabric(1, "cpu", "32-true"), objective, Rows(1), optimizer, lambda e: 0.1, **options
        ).fit()
    plain = {"fullgraph": True, "dynamic": None}
    assert calls == [{**plain, "mode": "reduce-overhead"}, *4 * ["step"], plain]


@pytest.mark.long
def test_rate_and_subset_move_while_training(images, monkeypatch):
    seen = []
    draw = DeepAugment.draw_rows
    monkeypatch.setattr(
        DeepAugment,
        "draw_rows",
        lambda self, *args: (seen.append((float(self.rate), float(self.subset))), draw(self, *args))[1],
    )
    pretrain(replace(TINY, at=("layer4",), rate_end=0.0, subset_end=1.0), data=images)
    # two epochs of three steps; what capture itself draws comes first
    assert seen[-6:] == [pytest.approx((0.5 - k / 12, 0.5 + k / 12)) for k in range(6)]


def test_snapshots_are_the_encoder_every_few_epochs(images, tmp_path):
    config = replace(TINY, epochs=4, snapshot_every=2)
    pretrain(config, tmp_path, data=images)
    names = sorted(p.name for p in (tmp_path / "snapshots").iterdir())
    assert names == ["epoch-0000.safetensors", "epoch-0002.safetensors", "epoch-0004.safetensors"]
    states = [load_file(tmp_path / "snapshots" / name) for name in names]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        untrained = build_model(config.model).state_dict()
    last = weights(tmp_path)
    assert all(torch.equal(states[0][name], untrained[name]) for name in untrained)
    assert all(torch.equal(states[2][name], last[name]) for name in last)
    assert not torch.equal(states[1]["conv1.weight"], last["conv1.weight"])


def test_a_run_begins_with_the_weights_of_another(images, tmp_path):
    pretrain(TINY, tmp_path / "first", data=images)
    for source in (tmp_path / "first", tmp_path / "first" / "encoder.safetensors"):
        out = tmp_path / f"second-{source.suffix}"
        pretrain(replace(TINY, init=str(source), epochs=1, snapshot_every=1, seed=5), out, data=images)
        begun, given = load_file(out / "snapshots" / "epoch-0000.safetensors"), weights(tmp_path / "first")
        assert all(torch.equal(begun[name], given[name]) for name in given)
    other = replace(TINY, model="resnet18-cifar:8", init=str(tmp_path / "first"))
    with pytest.raises(
        CheckpointError, match=r"is of another model: .*conv1.weight is \(4, 3, 3, 3\), not \(8,"
    ):
        pretrain(other, tmp_path / "third", data=images)
    assert not (tmp_path / "third").exists()


@pytest.mark.long
def test_dropout_everywhere_is_at_all_stages_of_the_paper(images, tmp_path):
    pretrain(replace(TINY, epochs=1, everywhere=True, subset=1.0), tmp_path, data=images)
    plan = yaml.safe_load((tmp_path / "config.yaml").read_text())["resolved"]["plan"]
    for site in ("relu", "layer1", "layer2", "layer3", "layer4", "flatten", "fc"):
        assert re.search(rf"^ +site +.*\b{site}\b", plan, re.MULTILINE), plan
    with pytest.raises(ConfigError, match="leave out either"):
        replace(TINY, everywhere=True, at=("layer4",))


@pytest.mark.parametrize("options", [{"optimizer": "lars", "lr": 0.3}, {"optimizer": "adamw", "lr": 3e-3}])
def test_other_optimizers_lower_the_loss(images, options):
    done = pretrain(replace(TINY, epochs=6, **options), data=images)
    assert done.metrics[-1]["loss"] < done.metrics[0]["loss"] - 0.02


def test_bf16_computes_nearly_the_same_in_another_precision(images):
    exact = pretrain(TINY, data=images).metrics
    rounded = pretrain(replace(TINY, precision="bf16-mixed"), data=images).metrics
    assert rounded[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.03)
    assert rounded[0]["loss"] != exact[0]["loss"]


def test_bf16_sees_the_views_that_float32_sees(images, monkeypatch):
    """Fabric would round the draws: with eight bits another crop, and now and then a number that is 1."""
    seen = {}
    make = SimCLRViews.forward

    def spy(self, x, uniforms=None):
        out = make(self, x, uniforms)
        seen.setdefault(precision, []).append(out)
        return out

    monkeypatch.setattr(SimCLRViews, "forward", spy)
    for precision in ("32-true", "bf16-mixed"):
        pretrain(replace(TINY, epochs=1, precision=precision), data=images)
    assert len(seen["32-true"]) > 1
    for exact, rounded in zip(*seen.values(), strict=True):
        assert torch.equal(exact, rounded)


def test_channels_last_computes_the_same(images):
    # with 4 channels in this format, torch 2.14's backward corrupts the heap on a CPU without AVX-512
    wide = replace(TINY, model="resnet18-cifar:16")
    exact = pretrain(wide, data=images).metrics
    last = pretrain(replace(wide, channels_last=True), data=images).metrics
    assert last[0]["loss"] == pytest.approx(exact[0]["loss"], rel=1e-3)


@pytest.mark.long
def test_nearest_neighbours_are_looked_at_and_change_nothing(images):
    watched = pretrain(replace(TINY, epochs=3, watch_every=2, at=("layer2",), freeze="before"), data=images)
    alone = pretrain(replace(TINY, epochs=3, at=("layer2",), freeze="before"), data=images)
    assert [("knn" in line) for line in watched.metrics] == [False, True, True]
    assert watched.metrics[-1]["knn"] == watched.result["knn"]
    assert [line["loss"] for line in watched.metrics] == [line["loss"] for line in alone.metrics]


def test_without_labels_there_are_no_neighbours_to_look_at(images):
    done = pretrain(replace(TINY, watch_every=1), data=replace(images, classes=("all",)))
    assert len(done.metrics) == 2
    assert not any("knn" in line for line in done.metrics)


def test_a_collapsed_run_stops_with_its_checkpoint(images, tmp_path):
    with pytest.raises(TrainingCollapsed, match=r"have collapsed in epoch 2: their spread is 0\.\d+"):
        pretrain(replace(TINY, epochs=3, collapse=1.0), tmp_path, data=images)
    assert Checkpoints(tmp_path / "checkpoints").latest().step == 3
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("warmup", [1, 1.5])
def test_a_collapse_within_an_epoch_keeps_no_checkpoint_of_it(warmup, images, tmp_path):
    # Three steps an epoch: step 4 is behind the one warm-up, step 5 behind the other.
    config = replace(TINY, epochs=3, collapse=1.0, warmup=warmup, checkpoint_every=0.3)
    with pytest.raises(TrainingCollapsed, match="have collapsed in epoch 2") as caught:
        pretrain(config, tmp_path, data=images)
    kept = Checkpoints(tmp_path / "checkpoints").latest()
    assert kept.step == (3 if warmup == 1 else 4)
    assert f"The last checkpoint is '{kept.path}': init= (--init)" in str(caught.value)


@pytest.mark.long
def test_a_run_begins_with_a_checkpoint_of_one_that_collapsed(images, tmp_path):
    config = replace(TINY, epochs=3, at=("layer3",), snapshot_every=1)
    with pytest.raises(TrainingCollapsed) as caught:
        pretrain(replace(config, collapse=1.0), tmp_path / "first", data=images)
    path = re.search("checkpoint is '(.*)'", str(caught.value))[1]
    with pytest.raises(ConfigError, match="lies in the output directory"):
        pretrain(replace(config, init=path), tmp_path / "first", data=images, force=True)
    assert Path(path).exists()
    # The snapshot of the same moment is what the checkpoint must give.
    expected = load_file(tmp_path / "first" / "snapshots" / "epoch-0001.safetensors")
    path = Path(path).with_name("step-00000003.pt")
    pretrain(replace(config, epochs=1, init=str(path), seed=5), tmp_path / "second", data=images)
    begun = load_file(tmp_path / "second" / "snapshots" / "epoch-0000.safetensors")
    assert begun.keys() == expected.keys()
    assert all(torch.equal(begun[name], expected[name]) for name in expected)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is damaged"):
        pretrain(replace(config, init=str(path)), tmp_path / "third", data=images)
    assert not (tmp_path / "third").exists()


def test_without_a_checkpoint_the_message_says_so(images, tmp_path):
    config = replace(TINY, epochs=3, lr=1e38, warmup=0, checkpoint_every=0)
    with pytest.raises(
        TrainingDiverged, match=r"try a learning rate below 1e\+38\. There is no checkpoint\."
    ):
        pretrain(config, tmp_path, data=images)


def test_a_diverged_run_keeps_a_finite_checkpoint(images, tmp_path):
    # The first step is a good one; the warm-up then leaps to rates that no network survives.
    config = replace(TINY, epochs=3, lr=1e38, warmup_from=1e-3, checkpoint_every=0.3)
    with pytest.raises(
        TrainingDiverged, match=r"loss is nan in epoch 1; try a learning rate below .* The last checkpoint is"
    ):
        pretrain(config, tmp_path, data=images)
    kept = Checkpoints(tmp_path / "checkpoints").latest()
    assert kept.step >= 1
    assert all(t.isfinite().all() for t in kept.state["objective"].values())
    assert not (tmp_path / "result.json").exists()
