"""What a run does between steps: checkpoints, snapshots, metrics, a look at the encoder, an end to what is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

from graphaug.contrastive.fitting import fitting
from graphaug.contrastive.runs.checkpoints import Checkpoint, Checkpoints
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.contrastive.runs.task import Keeping, Task, Training
from graphaug.contrastive.runs.watch import Board, check_spread

TELL_EVERY = 1.0
"""Seconds between two steps that listeners are told of."""


class Callbacks:
    """What the engine calls. One process looks and writes; all take part in the collectives.

    Args:
        task: what is trained.
        training: this process's share of it.
        run: the directory, in the process that writes.
        checkpoints: of the run, in all processes.
        emit: called with ``("line", metrics)`` and, now and then, with ``("step", progress)`` in the first process.

    """

    def __init__(
        self,
        task: Task[Any],
        training: Training,
        run: RunDirectory | None,
        checkpoints: Checkpoints | None,
        emit: Callable[[Any], None],
    ) -> None:
        self.task, self.training, self.run = task, training, run
        self.checkpoints, self.emit = checkpoints, emit
        self.engine, self.config, self.keeping = training.engine, task.config, cast(Keeping, task.config)
        steps = self.engine.feed.steps
        self.last = task.config.epochs * steps
        self.unit = steps if task.unit == "epoch" else 1
        self.board: Board | None = None
        self.snapped = -1  # the step of the last snapshot
        self.began: tuple[int, float] | None = None  # this process's first step, and when it was made
        self.told = 0.0  # when a step was last told of

    def begin(self, found: Checkpoint | None) -> None:
        """Go to the checkpoint, if there is one."""
        if found is not None:
            name = f"checkpoint {str(found.path)!r}"
            self.engine.load_state_dict(found.state, name, found.step)
            with fitting(name):
                if not all(self.task.unit in line for line in self.engine.position.metrics):
                    raise KeyError(self.task.unit)  # the picture of the run would miss it, at its very end
                self.training.load_state(found.state)
        position = self.engine.position
        if self.run is not None:
            self.run.tidy()
            self.training.settle(self.run)
            self.run.metrics = list(position.metrics)
            self.board = Board(self.run.path / "tensorboard", position.step // self.unit + 1)
            if found is None:
                self._snapshot(0)
        self.engine.fabric.barrier()

    def after_step(self, step: int) -> None:
        """Keep a snapshot and a checkpoint when they are due, this at the very end too, for a kill while probing."""
        self._snapshot(step)
        self._tell(step)
        every = self.keeping.checkpoint_every
        if self.checkpoints is None or not every:
            return
        if step % max(1, round(every * self.unit)) == 0 or step == self.last:
            self._check_spread(step)
            state = {**self.engine.state_dict(), **self.training.state()}
            if self.run is not None:
                self.checkpoints.save(step, state)

    def after_line(self, line: dict[str, Any]) -> None:
        """Look at the encoder, and write the line down."""
        if self.task.unit == "step":
            line["step"] = self.engine.position.step
        if "spread" in line and line["epoch"] > self.config.warmup:
            check_spread(line, self.config.collapse)
        if self.engine.fabric.is_global_zero:
            line |= self.training.look(line, self.run)
            if self.run is not None:
                self.run.epoch(line)
                self._snapshot(self.engine.position.step)  # before anyone hears of the line
            if self.board is not None:
                self.board(line)
            self.emit(("line", line))
        self.engine.fabric.barrier()

    def close(self) -> None:
        """End what is open."""
        if self.board is not None:
            self.board.close()

    def _tell(self, step: int) -> None:
        """Let listeners know of a step, once a second at most, so that a run is never silent for an epoch."""
        now = time.monotonic()
        # The first step has what is done once, such as compiling, and is no measure of the others.
        began, since = self.began = self.began or (step, now)
        if not self.engine.fabric.is_global_zero or (now - self.told < TELL_EVERY and step != self.last):
            return
        self.told = now
        told = {"step": step, "steps": self.last, "epoch": step / self.engine.feed.steps}
        if step > began or step == self.last:
            told["seconds_left"] = (self.last - step) * (now - since) / max(step - began, 1)
        self.emit(("step", told))

    def _snapshot(self, step: int) -> None:
        at, rest = divmod(step, self.unit)
        every = self.keeping.snapshot_every
        if self.run is not None and every and not rest and at % every == 0 and step != self.snapped:
            self.training.snapshot(self.run, at)
            self.snapped = step

    def _check_spread(self, step: int) -> None:
        """Refuse to keep a state whose embeddings have collapsed in the epoch that it is in the middle of."""
        steps = self.engine.feed.steps
        if step / steps > self.config.warmup and "spread" in self.engine.position.sums:
            check_spread({**self.engine.means(), "epoch": step // steps + 1}, self.config.collapse)
