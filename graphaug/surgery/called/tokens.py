"""What graphs call behind a site that drops tokens: masks, positions and lengths from elsewhere, for the kept ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from graphaug.surgery.called.plain import where_counted


def followed(
    value: Tensor | None, kept: Tensor | None, at: tuple[int, int, int] | None, dims: tuple[int, ...]
) -> Tensor | None:
    """The entries of a value that belong to the kept tokens; None stays None, as of a mask where nothing is masked.

    Args:
        value: with one entry for each token along every one of ``dims``.
        kept: the indices of the tokens that each row keeps, (n, k); None: all of them.
        at: where its rows lie, ``(dim, outer, inner)`` as of `Rows`; None: it is one for all rows, with a dimension 0
            of size 1, and becomes one for each.
        dims: where the tokens lie, other dimensions than the rows'.
    """
    if kept is None or value is None:
        return value
    if at is None:
        value, at = value.expand(kept.shape[0], *value.shape[1:]), (0, 1, 1)
    dim, outer, inner = at
    apart = value.unflatten(dim, (outer, -1, inner))
    for place in dims:
        place = place + 2 if place > dim else place
        index = kept if place > dim else kept.T
        shape, target = [1] * apart.dim(), list(apart.shape)
        shape[dim + 1], shape[place] = kept.shape
        target[place] = kept.shape[1]
        apart = apart.gather(place, index.reshape(shape).expand(target))
    joined: Tensor = apart.flatten(dim, dim + 2)
    return joined


def shortened(value: Any, kinds: Any, kept: Tensor | None) -> Any:
    """A plain value for the kept tokens; ``kinds`` says which of its numbers count tokens ("tokens")."""
    if kept is None:
        return value
    return where_counted(kinds, "tokens", lambda _: kept.shape[1], value)
