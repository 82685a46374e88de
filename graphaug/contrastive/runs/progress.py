"""Progress of a run: a bar on a terminal, lines of text in a log file; and what is kept when it is interrupted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graphaug.contrastive.runs.checkpoints import Checkpoints

LINE_EVERY = 30.0
"""Seconds between lines about steps, where there is no terminal; the first comes after `FIRST_LINE`."""

FIRST_LINE = 5.0
"""Seconds until the first line about steps."""

STILL = 1e-3
"""The share of the loss by which a run that learns changes it, at the least."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class EpochProgress:
    """A progress bar on a terminal; elsewhere a line for each line of the metrics, and for steps in between.

    It is called with the lines of the metrics, `step` with the steps between them.

    Args:
        total: how many epochs, or steps, there will be.
        title: in front of it.
        unit: what the metrics count: ``epoch`` or ``step``.
        shown: whether anything is drawn; of several processes on one terminal one should.
        score: what a line of the metrics says about the modality's own evaluation; empty where it was not looked at.

    """

    def __init__(
        self,
        total: int,
        title: str = "pretraining",
        unit: str = "epoch",
        shown: bool = True,
        score: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.total, self.title, self.unit, self.shown = total, title, unit, shown
        self.score = score or (lambda _: "")
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[steps]}"))
        self.bar = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=self.console)
        self.task = self.bar.add_task(title, total=total, numbers="", steps="")
        self.next_line = time.monotonic() + FIRST_LINE
        self.losses: list[float] = []

    def __enter__(self) -> EpochProgress:
        """Show the bar, where there is a terminal."""
        if self.console.is_terminal and self.shown:
            self.bar.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Leave the bar as it is, and say of a run that went through if its loss never moved."""
        if self.console.is_terminal and self.shown:  # one that was never begun would print an empty line
            self.bar.stop()
        if kind is None and self.shown and (line := unmoved(self.losses, self.unit)):
            print(f"{self.title}: {line}", file=sys.stderr)

    def step(self, told: dict[str, float]) -> None:
        """Show how many steps were made, and the time left."""
        words = f"step {told['step']:.0f}/{told['steps']:.0f}"
        if "seconds_left" in told:
            words += f"  {duration(told['seconds_left'])} left"
        if self.console.is_terminal:
            done = told["epoch" if self.unit == "epoch" else "step"]
            self.bar.update(self.task, completed=done, steps=words)
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LINE_EVERY
            print(f"{self.title}: {words}", file=sys.stderr, flush=True)

    def __call__(self, metrics: dict[str, Any]) -> None:
        """Show a line of the metrics."""
        self.losses.append(metrics["loss"])
        numbers = (
            f"loss {metrics['loss']:.3f}  lr {metrics['lr']:.4g}  {metrics['views_per_second']:.0f} views/s"
        )
        if score := self.score(metrics):
            numbers += f"  {score}"
        done = metrics[self.unit]
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done, numbers=numbers)
        else:
            print(f"{self.title}: {self.unit} {done}/{self.total}  {numbers}", file=sys.stderr, flush=True)


def unmoved(losses: Sequence[float], unit: str) -> str:
    """A warning where the last of several losses is the first, up to a share of `STILL`; else an empty string."""
    if len(losses) < 2 or abs(losses[-1] - losses[0]) > STILL * abs(losses[0]):
        return ""
    return (
        f"the loss is where it was at the first {unit} ({losses[0]:.4f}, then {losses[-1]:.4f}): this network has "
        "learned nothing, or gives nearly the same for every input. Look at its last layers, and at --lr."
    )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: ``1:02:03``, ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def interruptible(out: Path, command: str) -> Iterator[None]:
    """On Ctrl-C inside, say what is kept and how to go on, and end with `INTERRUPTED`."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{kept(out, command)}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def kept(out: Path, command: str) -> str:
    """What a run that was interrupted leaves, and what to type."""
    if not (out / "config.yaml").exists():
        return f"interrupted before the first step: nothing was written to {out}."
    again = f"graphaug {command} --out {out} --resume"
    found = Checkpoints(out / "checkpoints").complete()
    if not found:
        return f"interrupted before the first checkpoint: of {out} its settings are kept. To begin again: {again}"
    step = int(found[-1].stem.rpartition("-")[2])
    return f"interrupted: the checkpoint of step {step} is kept in {out}. To go on from there: {again}"
