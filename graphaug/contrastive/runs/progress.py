"""Progress of a run on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


class EpochProgress:
    """A progress bar on a terminal; elsewhere a line of text for each line of the metrics, which it is called with.

    Args:
        total: how many epochs, or steps, there will be.
        title: in front of it.
        unit: what the metrics count: ``epoch`` or ``step``.
        shown: whether a bar is drawn; of several processes on one terminal one should.
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
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.total, self.title, self.unit, self.shown = total, title, unit, shown
        self.score = score or (lambda _: "")
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=self.console)
        self.task = self.bar.add_task(title, total=total, numbers="")

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        """Show the bar, where there is a terminal."""
        if self.console.is_terminal and self.shown:
            self.bar.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is."""
        self.bar.stop()

    def _advance(self, metrics: dict[str, Any]) -> None:
        numbers = (
            f"loss {metrics['loss']:.3f}  lr {metrics['lr']:.4g}  {metrics['views_per_second']:.0f} views/s"
        )
        if score := self.score(metrics):
            numbers += f"  {score}"
        done = metrics[self.unit]
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done, numbers=numbers)
        else:
            print(f"{self.title}: {self.unit} {done}/{self.total}  {numbers}", file=sys.stderr)
