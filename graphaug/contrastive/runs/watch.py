"""What is looked at while a run trains: collapse, TensorBoard."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphaug.errors import TrainingCollapsed


def check_spread(line: Mapping[str, Any], limit: float) -> None:
    """Raise ``TrainingCollapsed`` if the spread of the embeddings in a line of metrics is below the limit."""
    if line["spread"] < limit:
        raise TrainingCollapsed(
            f"the embeddings have collapsed in epoch {line['epoch']:g}: their spread is {line['spread']:.2g}, and 1 is "
            f"isotropic (collapse={limit:g} is the limit, 0 for none). Try a lower learning rate, a longer warm-up, or "
            "a lower rate or subset of Deep Augmentation."
        )


class Board:
    """TensorBoard's event files in ``folder``, where tensorboard is installed; otherwise nothing.

    Args:
        folder: for the files.
        purge: the first epoch, or step, that will be written: later ones of an interrupted run are dropped.

    """

    def __init__(self, folder: Path, purge: int = 1) -> None:
        self.writer: Any = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of tensorboard's own imports
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
        self.writer = SummaryWriter(str(folder), purge_step=purge)

    def __call__(self, line: dict[str, Any]) -> None:
        """Write a line of the metrics, at its step if it has one, else at its epoch."""
        if self.writer is not None:
            at = line.get("step", line["epoch"])
            for name, value in line.items():
                if name not in ("epoch", "step"):
                    self.writer.add_scalar(name, value, at)
            self.writer.flush()

    def close(self) -> None:
        """End the file."""
        if self.writer is not None:
            self.writer.close()
