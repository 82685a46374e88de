"""The life of a run, from its checks to its result: the same for every modality."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor

from graphaug.contrastive.devices import is_first_process, launch, make_fabric, own_generators
from graphaug.contrastive.gather import process_count
from graphaug.contrastive.runs.callbacks import Callbacks
from graphaug.contrastive.runs.checkpoints import Checkpoints
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.contrastive.runs.task import Curve, Model, Task, Training
from graphaug.errors import TrainingCollapsed, TrainingDiverged

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Finished(Generic[Model]):
    """``model``: as it was after the last step; ``metrics``: a dict a line; ``result``: what the evaluation gave."""

    model: Model
    metrics: list[dict[str, Any]]
    result: dict[str, Any]


def run_task(
    task: Task[Model],
    out: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    on_line: Callable[[dict[str, Any]], None] | None = None,
    on_start: Callable[[dict[str, int]], None] | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> Finished[Model]:
    """Train and evaluate.

    All checks come first: nothing is written, and no step is made, before the data are read, everything that trains is
    put together, and the output directory is free. The caller's random state is left as it was.

    Args:
        task: what the modality brings.
        out: directory for ``config.yaml``, ``metrics.jsonl``, ``result.json``, ``curves.png`` and what the task writes,
            and for checkpoints until the run is finished; None writes nothing.
        force: replace another run in ``out``.
        resume: go on with the run in ``out``, if there is one, from its last good checkpoint; on the CPU the result is
            that of an unbroken run, bit for bit. Of a finished run the result is read.
        on_line: called with each line of the metrics.
        on_start: called before the first step with `Training.counts`.
        on_step: called behind steps, once a second at most, with ``step`` (how many were made), ``steps`` (how many
            there will be), ``epoch`` (fractional) and, where there is a step to judge by, ``seconds_left``.

    Returns:
        The result; under torchrun, in processes other than the first, without the evaluation.

    Raises:
        RunDirectoryError: ``out`` holds another run, or cannot be written.
        ConfigError: the run in ``out`` has other settings or other data; the message lists the differences.
        CheckpointError: no checkpoint of the run is undamaged, or it makes none and cannot go on.
        LaunchError: the processes of several devices cannot be started.
        TrainingDiverged: the loss became NaN or infinite; the last checkpoint is of before.
        TrainingCollapsed: the embeddings became one point; as before.
        GraphaugError: what the task raises.

    """
    first = is_first_process()
    directory = RunDirectory(out, force, resume) if out is not None and first else None
    earlier = RunDirectory.at(out) if out is not None and resume else None
    config, kind = task.config, type(task.config)
    if earlier is not None:  # before data are read, or downloaded
        earlier.check_settings(kind, config.to_dict())
    task.check(None if out is None else Path(out), resume)
    task.read()
    if earlier is not None and (done := earlier.resumed(kind, task.settings(), task.facts())) is not None:
        result, metrics = done
        return Finished(task.finished(earlier.path), metrics, result)
    fabric = make_fabric(config.devices, config.accelerator, config.precision, unused=task.unused())
    listeners: dict[str, Callable[[Any], None] | None] = {"start": on_start, "line": on_line, "step": on_step}

    def on_event(event: tuple[str, Any]) -> None:
        if (listener := listeners[event[0]]) is not None:
            listener(event[1])

    job = (task, None if out is None else str(out), resume)
    weights, metrics, outcome = launch(fabric, train, *job, on_event=on_event)
    with torch.random.fork_rng(devices=[]):
        model = task.build()
    task.load(model, weights)
    if not first:
        return Finished(model, metrics, {})
    result = task.evaluate(model, metrics, outcome, torch.device(fabric.device.type))
    if directory is not None:
        directory.figure(lambda path: draw_curves(metrics, path, task.unit, task.curve))
        directory.result(result)
        Checkpoints(directory.checkpoints).clear()
    return Finished(model, metrics, result)


def train(
    fabric: Fabric, emit: Callable[[Any], None], task: Task[Any], out: str | None, resume: bool
) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, Any]]:
    """What each process of a run does; returns the weights, the metrics, and what the evaluation needs beside them.

    Raises:
        GraphaugError: what `run_task` raises while it trains.

    """
    checkpoints = Checkpoints(Path(out) / "checkpoints", task.config.keep) if out is not None else None
    found = checkpoints.latest() if checkpoints is not None and resume else None
    with torch.random.fork_rng(own_generators(fabric.device)):
        torch.manual_seed(task.config.seed)
        with task.training(fabric, task.build(), found is None) as training:
            # Whatever can refuse has had its say, in every process: only now may a former run be replaced.
            fabric.barrier()
            run = RunDirectory.at(out) if out is not None and fabric.is_global_zero else None
            with run.held() if run is not None else nullcontext():
                if run is not None and (found is None or run.settings() is None):
                    run.start(resolved(task, training))
                fabric.barrier()
                if fabric.global_rank:
                    # Each process draws its own dropout; with one there is nothing to tell apart.
                    torch.manual_seed(task.config.seed + fabric.global_rank * 1_000_003)
                callbacks = Callbacks(task, training, run, checkpoints, emit)
                callbacks.begin(found)
                if fabric.is_global_zero:
                    emit(("start", training.counts))
                try:
                    metrics = training.engine.fit(callbacks.after_step, callbacks.after_line)
                except (TrainingDiverged, TrainingCollapsed) as error:
                    error.args = (f"{error}{_way_on(checkpoints, task.restart)}",)
                    raise
                callbacks.close()
                if run is not None:
                    training.write(run)
                return training.weights(), metrics, training.outcome()


def resolved(task: Task[Any], training: Training) -> dict[str, Any]:
    """What ``config.yaml`` says: the settings, what they resolved to, and the versions."""
    found = {**task.facts(), **training.counts, "processes": process_count(), **training.plans}
    return {**task.settings(), "resolved": found, "versions": task.versions()}


def _way_on(checkpoints: Checkpoints | None, restart: str) -> str:
    """The end of a message about a run that makes no sense any more."""
    if checkpoints is None or not restart:
        return ""
    kept = checkpoints.complete()
    return f" The last checkpoint is {str(kept[-1])!r}: {restart}." if kept else " There is no checkpoint."


def draw_curves(metrics: list[dict[str, Any]], path: Path, unit: str, curve: Curve) -> None:
    """Draw the loss, and beside it, dashed, another measure, over epochs or steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=unit, ylabel="loss (nats)")
    dots = "." if len(metrics) < 50 else ""
    axes.plot([line[unit] for line in metrics], [line["loss"] for line in metrics], marker=dots)
    measured = [line for line in metrics if curve.name in line]
    if measured:
        other = axes.twinx()
        values = [curve.scale * line[curve.name] for line in measured]
        other.plot([line[unit] for line in measured], values, color="0.6", linestyle="--")
        other.set_ylabel(f"{curve.label} (dashed)")
    figure.savefig(path, dpi=120)
