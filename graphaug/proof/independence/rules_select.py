"""Rules for operations that pick, put together and scatter entries: slices, joins, indices, tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graphaug.proof.independence.call import Call
from graphaug.proof.independence.places import Meets, Numbers, Rows, Size, State, common
from graphaug.proof.independence.rules import Outcome, Rule, _rules, moved


def sliced(call: Call) -> Outcome:
    """A stretch of a dimension; of the rows' own one whole batches, or the same neighbours of every sample."""
    tensor = call["self"]
    dim = call["dim"] % tensor.dim()
    state = call.state(tensor)
    if state is None or isinstance(state, Numbers):
        return moved(call, lambda d: d) if state is None or state.dim != dim else _whole_numbers(call, dim)
    rows = call.only()
    if rows.dim != dim:
        return rows
    before, after = call.sizes(tensor)[dim], call.sizes(call.out)[dim]
    step = call["step"]
    if not after.batch or not isinstance(step, int):
        raise Meets("picks some of the rows", "place")
    if step == 1:
        start = Size(0, False) if call["start"] in (None, 0) else call.size(call["start"])
        aligned = start.count == 0 or (start.batch and start.count % rows.inner == 0)
        if not aligned or after.count % rows.inner:
            raise Meets("picks some of the rows", "place")
        return Rows(dim, after.count // rows.inner, rows.inner, rows.uniform)
    if rows.inner % step or after.count * step != before.count:
        raise Meets("picks some of the rows", "place")
    return Rows(dim, rows.outer, rows.inner // step, rows.uniform)


def _whole_numbers(call: Call, dim: int) -> Outcome:
    if call.sizes(call["self"])[dim] != call.sizes(call.out)[dim] or call["step"] != 1:
        raise Meets("picks among the rows' own numbers", "place")
    return Numbers(dim)


def selected(call: Call) -> Outcome:
    """One index of a dimension, which goes."""
    dim = call["dim"] % call["self"].dim()
    state = call.state(call["self"])
    if state is not None and state.dim == dim:  # type: ignore[union-attr]
        raise Meets("picks one of the rows", "place")
    return moved(call, lambda d: d - (dim < d))


def parted(call: Call) -> Outcome:
    """A dimension cut in pieces; the rows' own one into whole batches."""
    rows, dim = call.only(), (call["dim"] or 0) % call["self"].dim()
    if call.name == "unbind":
        if rows.dim == dim:
            raise Meets("takes the rows apart, each for itself", "place")
        return rows.at(rows.dim - (dim < rows.dim))
    if rows.dim != dim:
        return rows
    found: list[State] = []
    for piece in call.outputs:
        size = call.sizes(piece)[dim]
        if not size.batch or size.count % rows.inner:
            raise Meets("cuts the batch in pieces", "place")
        found.append(Rows(dim, size.count // rows.inner, rows.inner, rows.uniform))
    return found


def joined(call: Call) -> Outcome:
    """Values behind each other; along the rows they are batches behind each other."""
    rank = call.out.dim()
    dim = (call["dim"] or 0) % rank
    parts = [t for t in call["tensors"] if not (t.dim() == 1 and t.shape[0] == 0)]
    found = [call.rows(t) for t in parts]
    if any(r is None for r in found):
        raise Meets("puts rows and constants behind each other", "place")
    rows = [r for r in found if r is not None]
    if call.name == "stack":
        place = common(rows)
        if place is None:
            raise Meets("stacks values whose rows lie differently")
        return place.at(place.dim + (dim <= place.dim))
    if all(r.dim == dim for r in rows):
        if len({r.inner for r in rows}) > 1 or any(r.uniform for r in rows):
            raise Meets("puts values behind each other whose rows lie differently")
        return Rows(dim, sum(r.outer for r in rows), rows[0].inner)
    place = common(rows)
    if place is None or place.dim == dim:
        raise Meets("puts values behind each other whose rows lie differently")
    return place


def put_into(call: Call) -> Outcome:
    """``slice_scatter`` and its like: a value written over a part of another."""
    target, source = call.rows(call["self"]), call.rows(call["src"])
    if target is None:
        raise Meets("writes rows into a constant", "unknown")
    rank = call["self"].dim()
    dim = (call["dim"] or 0) % rank
    if target.dim == dim:
        raise Meets("writes over some of the rows", "place")
    if source is not None:
        lifted = source.at(source.dim + (call.name == "select_scatter" and dim <= source.dim))
        if common([target, lifted]) is None:
            raise Meets("writes rows over others that lie differently")
    return target


# --- indices ---------------------------------------------------------------------------------------------


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


SELECT: dict[str, Rule] = {
    "slice": sliced,
    "select": selected,
    **_rules("split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk unbind", parted),
    **_rules("cat concat stack", joined),
    **_rules("slice_scatter select_scatter", put_into),
    **_rules("index_select index_fill index_copy index_add", picked),
    **_rules("gather scatter scatter_add scatter_reduce", gathered),
    **_rules("index _unsafe_index", indexed),
    **_rules("index_put _unsafe_index_put _index_put_impl", index_put),
    "embedding": embedded,
    "take": looked_up,
    **_rules("bucketize isin", bucketed),
}
"""Operation -> rule, for what picks and puts together."""
