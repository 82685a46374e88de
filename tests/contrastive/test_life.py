"""The life of a run, seen from a modality that the library does not have: no line of a job is copied for it."""

import json
import multiprocessing
import signal
import subprocess
import sys
from dataclasses import replace

import graph_runs
import pytest
import torch
import yaml
from graph_runs import CONFIG, GraphTask, graphs
from safetensors.torch import load_file

from graphaug.contrastive.runs.checkpoints import Checkpoints
from graphaug.contrastive.runs.life import run_task
from graphaug.errors import ConfigError, DataError, TrainingCollapsed, TrainingDiverged

pytestmark = pytest.mark.few(1)

PLAIN = replace(CONFIG, at=(), stop_grad=False)


def files(out):
    """What a run has left, as bytes; of the metrics all but the times."""
    found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    lines = [json.loads(line) for line in found.pop("metrics.jsonl").splitlines()]
    for line in lines:
        del line["seconds"], line["views_per_second"]
    return {name: content for name, content in found.items() if not name.startswith("tensorboard")}, lines


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    return out, graph_runs.run(out)


@pytest.fixture(scope="module")
def processes():
    # A server that has imported everything forks processes that start at once; each is killed for itself.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["graph_runs", "lightning_fabric", "matplotlib.figure"])
    return context


def killed(processes, out, step):
    """Run in a process of its own that is killed when its checkpoint of that step is written."""
    process = processes.Process(target=graph_runs.run, args=(out, step))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def by_hand(config):
    """SimCLR's loop written out: SGD with momentum and decay, a straight line to 0, InfoNCE as it is defined."""
    x, edges, _ = graphs()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = graph_runs.GraphEncoder(config.width)
    order, views = (torch.Generator().manual_seed(config.seed) for _ in range(2))
    size, steps = config.batch_size, len(x) // config.batch_size
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    losses = []
    for epoch in range(config.epochs):
        shuffled = torch.randperm(len(x), generator=order)
        total = 0.0
        for step in range(steps):
            chosen = shuffled[step * size :][:size]
            kept = (torch.rand(2, size, 5, 5, generator=views) < config.edges).float()
            first, second = (model(x[chosen], edges[chosen] * view) for view in kept)
            cosine = torch.cosine_similarity(first[:, None], second[None], dim=2) / config.temperature
            loss = (cosine.exp().sum(1).log() - cosine.diagonal()).mean()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            rate = config.lr * (1 - (epoch + step / steps) / config.epochs)
            with torch.no_grad():
                for p, g, v in zip(model.parameters(), gradients, velocity, strict=True):
                    v.mul_(config.momentum).add_(g + config.weight_decay * p)
                    p.sub_(rate * v)
            total += loss.item() / steps
        losses.append(total)
    return model, losses


def test_a_third_modality_trains_as_a_loop_written_by_hand():
    found = run_task(GraphTask(PLAIN))
    model, losses = by_hand(PLAIN)
    assert [line["loss"] for line in found.metrics] == pytest.approx(losses, rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            found.model.get_parameter(name), parameter.detach(), rtol=1e-3, atol=1e-5, check_stride=False
        )


def test_what_a_run_leaves_is_what_the_modality_brought(unbroken):
    out, found = unbroken
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["width"] == 8
    assert config["resolved"]["graphs"] == 36
    assert config["resolved"]["steps_per_epoch"] == 4
    assert config["resolved"]["processes"] == 1
    assert "second" in config["resolved"]["plan"]
    kept = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert {name for name in kept if not name.startswith("tensorboard")} == {
        "config.yaml", "metrics.jsonl", "encoder.safetensors", "result.json", "curves.png",
        *(f"snapshots/epoch-000{n}.safetensors" for n in (0, 2, 4)),
    }  # fmt: skip
    assert json.loads((out / "result.json").read_text()) == found.result
    weights = load_file(out / "encoder.safetensors")
    norm = sum(float(tensor.square().sum()) for tensor in weights.values())
    assert found.metrics[-1]["norm"] == pytest.approx(norm)
    assert [line["epoch"] for line in found.metrics] == [1, 2, 3, 4]


@pytest.mark.parametrize("steps", [(2,), (4,), (6, 14), (16,)], ids=str)
@pytest.mark.long
def test_killed_and_resumed_it_ends_as_an_unbroken_run(steps, processes, unbroken, tmp_path):
    """In the middle of an epoch, at its end, twice, and before the evaluation."""
    for step in steps:
        killed(processes, tmp_path / "run", step)
        assert Checkpoints(tmp_path / "run/checkpoints").latest().step == step
    with torch.random.fork_rng():
        torch.manual_seed(5)  # what was drawn in between does not matter
        found = graph_runs.run(tmp_path / "run")
    assert files(tmp_path / "run") == files(unbroken[0])
    for name, tensor in unbroken[1].model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name


def test_a_finished_run_is_read(unbroken):
    found = graph_runs.run(unbroken[0], on_line=lambda line: pytest.fail("it was run again"))
    assert found.result == unbroken[1].result
    assert [line["loss"] for line in found.metrics] == [line["loss"] for line in unbroken[1].metrics]
    assert torch.equal(found.model.first.weight, unbroken[1].model.first.weight)


def test_listeners_hear_of_the_start_and_of_each_line():
    heard = []
    run_task(GraphTask(PLAIN), on_start=heard.append, on_line=lambda line: heard.append(line["epoch"]))
    assert heard == [{"steps_per_epoch": 4}, 1, 2, 3, 4]


def test_other_settings_and_other_data_are_refused(unbroken):
    out, before = unbroken[0], files(unbroken[0])
    for task, message in [
        (GraphTask(replace(CONFIG, width=9)), r"other settings:\n    width: 8 → 9\n"),
        (GraphTask(CONFIG, graphs(40)), r"other data:\n    graphs: 36 → 40\n"),
    ]:
        with pytest.raises(ConfigError, match=message):
            run_task(task, out, resume=True)
    run_task(GraphTask(replace(CONFIG, keep=5)), out, resume=True)  # it changes nothing that is computed
    assert files(out) == before


def test_what_refuses_does_so_before_a_former_run_is_replaced(unbroken):
    out, before = unbroken[0], files(unbroken[0])
    for task, kind in [
        (GraphTask(CONFIG, graphs(7)), DataError),
        (GraphTask(replace(CONFIG, at=("third",))), Exception),
    ]:
        with pytest.raises(kind):
            run_task(task, out, force=True)
    assert files(out) == before


def test_a_diverged_run_names_its_last_checkpoint(tmp_path):
    task = GraphTask(PLAIN)

    def spoil(line):
        task.data[0].fill_(float("nan"))

    with pytest.raises(TrainingDiverged, match=r"step-00000004\.pt': begin another run with its weights\.$"):
        run_task(task, tmp_path / "run", on_line=spoil)
    assert not (tmp_path / "run/result.json").exists()
    assert Checkpoints(tmp_path / "run/checkpoints").latest().step == 4


def test_a_collapsed_state_is_not_kept(tmp_path):
    """No spread is above 1, so that every state counts as collapsed; the first checkpoint is within the epoch."""
    with pytest.raises(TrainingCollapsed, match=r"in epoch 1: .* There is no checkpoint\.$"):
        run_task(GraphTask(replace(PLAIN, collapse=1.5)), tmp_path / "run")
    assert not Checkpoints(tmp_path / "run/checkpoints").complete()


@pytest.mark.long
@pytest.mark.slow
def test_a_task_travels_to_processes_that_are_started(tmp_path):
    config = replace(PLAIN, devices=2, epochs=2)
    found = run_task(GraphTask(config), tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["resolved"]["processes"] == 2
    assert [line["epoch"] for line in found.metrics] == [1, 2]
    assert load_file(tmp_path / "run/encoder.safetensors")["first.bias"].equal(
        found.model.first.bias.detach()
    )


@pytest.mark.long
def test_a_life_needs_none_of_the_modalities():
    code = """
import sys
import graphaug.contrastive.runs.life, graphaug.contrastive.runs.options, graphaug.contrastive.runs.progress
print([name for name in sys.modules if name.startswith(("graphaug.vision", "graphaug.text", "graphaug.analysis"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
