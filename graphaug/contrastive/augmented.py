"""A model with the Deep Augmentation that a configuration asks for, for as long as it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

import graphaug
from graphaug.contrastive.config.settings import Settings
from graphaug.errors import ConfigError
from graphaug.sites import structure_of
from graphaug.surgery.module import AugmentedModule


@contextmanager
def deep_augmented(
    model: nn.Module,
    config: Settings,
    example: Callable[[], Any],
    name: str,
    whole: bool = True,
    rows: int | str | None = None,
) -> Iterator[nn.Module]:
    """The model rewritten at its sites, or itself without any; what was frozen is trainable again afterwards.

    Args:
        model: with its head.
        config: the sites, and what happens there.
        example: makes ``example_inputs``, on the model's device.
        name: of the model, for errors.
        whole: nothing else is trained beside it.
        rows: as for ``graphaug.rewrite``: what tells the samples, where no dimension does.

    Raises:
        ConfigError: no numbered stages while ``everywhere``, nothing left to train, or a subset of less than a row.
        GraphaugError: what ``graphaug.rewrite`` raises about the sites.

    """
    sites: list[Any] = list(config.at)
    if config.everywhere:
        sites = [number for number in structure_of(model, example()).stages if number >= 0]
        if not sites:
            raise ConfigError(f"{name} has no numbered stages: name the sites with at=.")
    if not sites:
        yield model
        return
    at = config.where(sites)
    aug = graphaug.rewrite(
        model,
        at=at,
        backward=config.backward,
        rows=rows,
        example_inputs=example(),
        **config.deep_augmentation(),
    )
    try:
        if whole and not any(p.requires_grad for p in aug.parameters()):
            raise ConfigError(f"freeze={config.freeze!r} at {at!r} leaves nothing to train.")
        _check_subset(aug, config)
        yield aug
    finally:
        graphaug.strip(aug)


def _check_subset(aug: AugmentedModule, config: Settings) -> None:
    """Refuse a subset that is rounded to no row at all; one of 0 asks for that."""
    end = getattr(config, "subset_end", None)
    largest, rows = max(config.subset, end or 0.0), config.rows_at_once()
    least = max(augmentation.largest_without(rows) for augmentation in aug.augmentations.values())
    if 0 < largest <= least:
        given = f"subset={config.subset!r}" + ("" if end is None else f" and subset_end={end!r}")
        digits = 2 - math.floor(math.log10(least))
        enough = (math.floor(least * 10**digits) + 1) / 10**digits
        raise ConfigError(
            f"{given}: of the {rows} rows that pass a site at once, none would ever be augmented, as their number is "
            f"rounded. From subset={enough:g} on it is one or more; sampling='bernoulli' draws for each row instead."
        )
