"""The learning rate, and the rate and subset of Deep Augmentation, as functions of the fractional epoch."""

from __future__ import annotations

import math
from typing import Protocol

SHAPES = ("cosine", "linear", "supcontrast")
"""The learning-rate schedules by name."""


class Schedule(Protocol):
    """What a learning rate is computed from; units: epochs, and shares of ``lr``."""

    @property
    def epochs(self) -> int:
        """Length of the run."""

    @property
    def warmup(self) -> float:
        """Epochs in which the rate rises."""

    @property
    def warmup_from(self) -> float | None:
        """Where the rise begins; None is a hundredth of ``lr``."""

    @property
    def schedule(self) -> str:
        """One of `SHAPES`."""

    @property
    def lr(self) -> float:
        """The largest learning rate."""

    @property
    def lr_floor(self) -> float:
        """Where the schedule ends, as a share of ``lr``."""


class AugmentationSchedule(Protocol):
    """What the strength of an augmentation is computed from; probabilities, and epochs."""

    @property
    def epochs(self) -> int:
        """Length of the run."""

    @property
    def rate(self) -> float:
        """Dropout probability at the start."""

    @property
    def rate_end(self) -> float | None:
        """Dropout probability at the end; None keeps the first."""

    @property
    def subset(self) -> float:
        """Share of augmented rows at the start."""

    @property
    def subset_end(self) -> float | None:
        """Share of augmented rows at the end; None keeps the first."""


def learning_rate(config: Schedule, epoch: float) -> float:
    """The learning rate at a fractional ``epoch``, 0 at the first step.

    All shapes rise linearly from ``warmup_from`` (by default a hundredth of ``lr``) for ``warmup`` epochs and end at
    ``lr · lr_floor``.

    - ``cosine``: reaches ``lr``, then half a cosine over the remaining epochs.
    - ``linear``: reaches ``lr``, then a straight line; transformers' default.
    - ``supcontrast``: as SupContrast's ``util.py``: the cosine spans all epochs and stands still within one (epoch e,
      counted from 1, has ``cos(π e / epochs)``); the warm-up ends at the value that the cosine has there.
    """
    warmup = min(config.warmup, config.epochs)
    start = config.lr / 100 if config.warmup_from is None else config.warmup_from
    if config.schedule != "supcontrast":
        top = config.lr
        progress = (epoch - warmup) / max(config.epochs - warmup, 1e-9)
    else:
        top = _cosine(config, warmup / config.epochs)
        # Half a step's rounding must not put a step into the epoch before.
        progress = (math.floor(epoch + 1e-9) + 1) / config.epochs
    if epoch < warmup:
        return start + (top - start) * epoch / warmup
    if config.schedule == "linear":
        low = config.lr * config.lr_floor
        return low + (config.lr - low) * (1 - min(progress, 1.0))
    return _cosine(config, progress)


def augmentation_rate(config: AugmentationSchedule, epoch: float) -> float:
    """The dropout rate at a fractional ``epoch``: from ``rate`` linearly to ``rate_end``, if there is one."""
    return _linear(config.rate, config.rate_end, epoch / config.epochs)


def augmentation_subset(config: AugmentationSchedule, epoch: float) -> float:
    """The augmented share of the rows at a fractional ``epoch``: from ``subset`` linearly to ``subset_end``."""
    return _linear(config.subset, config.subset_end, epoch / config.epochs)


def _cosine(config: Schedule, progress: float) -> float:
    low = config.lr * config.lr_floor
    return low + (config.lr - low) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _linear(start: float, end: float | None, progress: float) -> float:
    return start if end is None else start + (end - start) * min(progress, 1.0)
