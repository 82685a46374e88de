"""Rules for what takes values apart and puts them together: slices, pieces, joins."""

from __future__ import annotations

from graphaug.proof.independence.call import Call, Outcome, Rule, named
from graphaug.proof.independence.places import Meets, Numbers, Rows, Size, State, common
from graphaug.proof.independence.rules.views import moved


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


def put_on_diagonal(call: Call) -> Outcome:
    """``diagonal_scatter``: a value written over a diagonal of another; its last dimension runs along it."""
    target, source, rank = call.rows(call["self"]), call.rows(call["src"]), call["self"].dim()
    if target is None:
        raise Meets("writes rows into a constant", "unknown")
    along = {d % rank for d in (call["dim1"], call["dim2"])}
    kept = [d for d in range(rank) if d not in along]
    if target.dim in along:
        raise Meets("writes over a diagonal across the rows", "place")
    if source is not None and (
        source.dim >= len(kept) or common([target, source.at(kept[source.dim])]) is None
    ):
        raise Meets("writes rows over others that lie differently")
    return target


PARTS: dict[str, Rule] = {
    "slice": sliced,
    "select": selected,
    **named("split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk unbind", parted),
    **named("cat concat stack", joined),
    **named("slice_scatter select_scatter", put_into),
    "diagonal_scatter": put_on_diagonal,
}
"""Operation -> rule, for what takes apart and puts together."""
