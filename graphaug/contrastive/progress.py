"""Progress of a run on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


class EpochProgress:
    """A progress bar over epochs on a terminal; a line an epoch elsewhere. Call it with an epoch's metrics.

    Args:
        epochs: how many there will be.
        title: in front of it.

    """

    def __init__(self, epochs: int, title: str = "pretraining") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.epochs, self.title = epochs, title
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=self.console)
        self.task = self.bar.add_task(title, total=epochs, numbers="")

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        """Show the bar, where there is a terminal."""
        if self.console.is_terminal:
            self.bar.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is."""
        self.bar.stop()

    def _advance(self, metrics: dict[str, Any]) -> None:
        numbers = (
            f"loss {metrics['loss']:.3f}  lr {metrics['lr']:.4f}  {metrics['views_per_second']:.0f} views/s"
        )
        if "knn" in metrics:
            numbers += f"  kNN {metrics['knn']:.1%}"
        if self.console.is_terminal:
            self.bar.update(self.task, completed=metrics["epoch"], numbers=numbers)
        else:
            print(f"{self.title}: epoch {metrics['epoch']}/{self.epochs}  {numbers}", file=sys.stderr)
