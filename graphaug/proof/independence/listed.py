"""Tensors in a list among the inputs: each may be a sample, as images are for a detector, or hold one row of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from graphaug.augment.rows import Rows
from graphaug.capture.values import value_of
from graphaug.errors import InvalidOption


def check_listed(
    examples: Mapping[str, Any], lead: Tensor, cuts: Sequence[fx.Node], places: Sequence[Rows]
) -> None:
    """Refuse tensors in a list that a forward stacks, as long as nobody says what the samples are.

    Args:
        examples: the inputs by name.
        lead: the one of their tensors that tells the samples.
        cuts: the nodes of the augmentations.
        places: where the samples lie at them, if a dimension of the leading tensor counts them.

    Raises:
        InvalidOption: the tensors in the list may be the samples as well.
    """
    for name, value in examples.items():
        if not isinstance(value, (list, tuple)) or len(value) < 2 or not any(t is lead for t in value):
            continue
        for cut, place in zip(cuts, places, strict=True):
            shape = getattr(value_of(cut), "shape", ())
            if place.dim != 0 and shape and shape[0] == len(value):
                raise InvalidOption(
                    f"which of {'×'.join(map(str, shape))} values at a site are a sample's cannot be told: {name!r} is "
                    f"a list of {len(value)} tensors, which the forward stacks. If each is a sample, stack them before "
                    "the call; if dimension 0 of each counts the samples, pass rows=0."
                )
