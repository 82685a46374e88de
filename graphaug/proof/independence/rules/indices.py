"""Rules for entries that are picked and scattered by index: gathers, masks, tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graphaug.proof.independence.call import Call, Outcome, Rule, named
from graphaug.proof.independence.places import Meets, Numbers, Rows, common


def picked(call: Call) -> Outcome:
    """``index_select``, ``index_fill``, ``index_copy``, ``index_add``: one list of indices for a dimension."""
    tensor, index, source = call["self"], call["index"], call["source"]
    dim = call["dim"] % max(tensor.dim(), 1)
    rows, chosen = call.rows(tensor), call.rows(index)
    if rows is None:
        if call.name != "index_select" or chosen is None or source is not None:
            raise Meets("writes rows into a constant")
        return chosen.at(dim)
    if rows.dim == dim or chosen is not None:
        raise Meets(f"{call.name} picks among the rows")
    if isinstance(source, Tensor) and call.rows(source) not in (rows, None):
        raise Meets(f"{call.name} combines values whose rows lie differently")
    return rows


def gathered(call: Call) -> Outcome:
    """``gather`` and ``scatter``: an index for every entry, along one dimension."""
    tensor, index = call["self"], call["index"]
    dim = call["dim"] % max(tensor.dim(), 1)
    rows, chosen = call.rows(tensor), call.rows(index)
    if call.name == "gather" and rows is None and chosen is not None and chosen.dim == dim:
        return chosen
    if rows is None or rows.dim == dim:
        raise Meets(f"{call.name} runs over the rows")
    given = [rows, chosen]
    if isinstance(call["src"], Tensor):
        given.append(call.rows(call["src"]))
    if any(g is None for g in given):
        raise Meets(f"{call.name} uses one index for all rows, or for the first of them", "place")
    place = common([g for g in given if g is not None])
    if place is None:
        raise Meets(f"{call.name} combines values whose rows lie differently")
    return place


def _mask_shape(call: Call, indices: Sequence[Any]) -> tuple[Tensor, int] | None:
    """The one mask that indexes, and the dimension where it begins."""
    masks = [(t, d) for d, t in enumerate(indices) if t is not None and t.dtype in (torch.bool, torch.uint8)]
    if masks and (len(masks) > 1 or sum(t is not None for t in indices) > 1):
        raise Meets("has no rule for masks among indices", "unknown")
    return masks[0] if masks else None


def _chosen(call: Call, indices: Sequence[Any]) -> tuple[Rows | None, int, int]:
    """Where rows lie in the broadcast indices, how many dimensions these have, and where they go in the result."""
    given = [t for t in indices if t is not None]
    rank = max(t.dim() for t in given)
    states = [call.state(t) for t in given]
    places: list[Rows] = []
    for t, state in zip(given, states, strict=True):
        if isinstance(state, (Rows, Numbers)):
            layout = state if isinstance(state, Rows) else Rows(state.dim)
            places.append(layout.at(layout.dim + rank - t.dim()))
    place = common(places) if places else None
    if places and place is None:
        raise Meets("indexes with values whose rows lie differently")
    at = [d for d, t in enumerate(indices) if t is not None]
    together = at == list(range(at[0], at[-1] + 1))
    return place, rank, at[0] if together else 0


def _indexed(call: Call, tensor: Tensor, indices: Sequence[Any]) -> Rows:
    """Where rows lie in ``tensor[indices]``."""
    rows = call.rows(tensor)
    place, rank, front = _chosen(call, indices)
    numbers = {d: t for d, t in enumerate(indices) if t is not None and isinstance(call.state(t), Numbers)}
    if rows is None:
        if numbers:
            raise Meets("looks up a constant by the row's own number", "place")
        assert place is not None
        return place.at(front + place.dim)
    by = indices[rows.dim] if rows.dim < len(indices) else None
    if by is None:
        if place is not None:
            raise Meets("indexes rows with values of other rows")
        gone = sum(t is not None for t in indices[: rows.dim])
        fronted = rank if front <= rows.dim else 0
        return rows.at(rows.dim - gone + fronted)
    if set(numbers) != {rows.dim} or (rows.outer, rows.inner) != (1, 1) or place is None:
        raise Meets("picks among the rows by an index")
    return Rows(front + place.dim)


def indexed(call: Call) -> Outcome:
    """``x[i, j, …]`` with tensors; the rows' own dimension by their own numbers only."""
    if _mask_shape(call, call["indices"]) is not None:
        raise Meets("picks entries by a mask, as many as it has", "unknown")
    return _indexed(call, call["self"], call["indices"])


def index_put(call: Call) -> Outcome:
    """``x[i, j, …] = v`` with tensors or a mask."""
    tensor, values = call["self"], call["values"]
    rows = call.rows(tensor)
    if rows is None:
        raise Meets("writes rows into a constant")
    mask = _mask_shape(call, call["indices"])
    if mask is not None:
        where, begin = mask
        inside = begin <= rows.dim < begin + where.dim()
        masked = call.rows(where)
        aligned = (
            masked is None if not inside else common([rows, masked.at(masked.dim + begin)] if masked else [])
        )
        if values.numel() != 1 or call.rows(values) is not None or not aligned:
            raise Meets("writes under a mask that is not each row's own", "unknown")
        return rows
    place = _indexed(call, tensor, call["indices"])
    given = call.rows(values)
    if given is not None:
        rank = tensor.dim() - sum(t is not None for t in call["indices"])
        rank += max(t.dim() for t in call["indices"] if t is not None)
        if common([place, given.at(given.dim + rank - values.dim())]) is None:
            raise Meets("writes rows over others that lie differently")
    return rows


def embedded(call: Call) -> Outcome:
    """A table looked up by indices; its gradient must not depend on how often the batch asks for an entry."""
    if call["scale_grad_by_freq"]:
        raise Meets("scales gradients by how often an entry occurs in the batch")
    return call.only("indices")


def looked_up(call: Call) -> Outcome:
    """``take``: entries of a table by their number; of rows there is no number that is their own."""
    return call.only("index")


def bucketed(call: Call) -> Outcome:
    """The bucket of every entry among boundaries that all rows share."""
    return call.only("elements" if call.name == "isin" else "self")


def searched(call: Call) -> Outcome:
    """``searchsorted``: the place of entries in a sorted list along the last dimension, one for all or one each."""
    table, sought = call["sorted_sequence"], call["self"]
    held, rows = call.rows(table), call.rows(sought)
    sorter = call.rows(call["sorter"])
    if rows is not None and held is None and table.dim() == 1:
        return rows
    if rows is None or held is None or common([held, rows]) is None or rows.dim == table.dim() - 1:
        raise Meets("searches for rows in a list of others")
    if call["sorter"] is not None and (sorter is None or common([sorter, rows]) is None):
        raise Meets("searches for rows in a list of others")
    return rows


INDICES: dict[str, Rule] = {
    **named("index_select index_fill index_copy index_add index_reduce", picked),
    **named("gather scatter scatter_add scatter_reduce", gathered),
    **named("index _unsafe_index", indexed),
    **named("index_put _unsafe_index_put _index_put_impl", index_put),
    "embedding": embedded,
    "take": looked_up,
    **named("bucketize isin", bucketed),
    "searchsorted": searched,
}
"""Operation -> rule, for what picks by index."""
