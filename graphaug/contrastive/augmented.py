"""A model with the Deep Augmentation that a configuration asks for, for as long as it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

import graphaug
from graphaug.contrastive.config.settings import Settings
from graphaug.errors import ConfigError
from graphaug.sites import structure_of


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
        ConfigError: no numbered stages while ``everywhere``, or nothing left to train.
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
        yield aug
    finally:
        graphaug.strip(aug)
