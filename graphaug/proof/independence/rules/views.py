"""Rules for views: other shapes and orders of the same entries, and repetitions of them."""

from __future__ import annotations

from collections.abc import Callable

from graphaug.proof.independence.call import Call, Outcome, Rule, dims_of, named
from graphaug.proof.independence.places import Meets, Numbers, Rows, Size, reshaped


def view(call: Call) -> Outcome:
    """Another shape for the same entries in row-major order."""
    tensor = call["self"]
    state = call.state(tensor)
    new = call.sizes(call.out)
    if isinstance(state, Numbers):
        if sum(size != Size(1, False) for size in call.sizes(tensor)) > 1:
            raise Meets("reshapes a table of the rows' own numbers", "place")
        return Numbers(reshaped(Rows(state.dim), call.sizes(tensor), new).dim)
    rows = call.only()
    return reshaped(rows, call.sizes(tensor), new)


def moved(call: Call, place: Callable[[int], int]) -> Outcome:
    """A view in which dimension ``d`` is dimension ``place(d)``."""
    state = call.state(call["self"])
    if isinstance(state, Numbers):
        return Numbers(place(state.dim))
    rows = call.only()
    return rows.at(place(rows.dim))


def permute(call: Call) -> Outcome:
    """Dimensions in another order."""
    order = dims_of(call["dims"], call["self"].dim()) if call["dims"] else []
    return moved(call, order.index)


def transpose(call: Call) -> Outcome:
    """Two dimensions exchanged."""
    rank = call["self"].dim()
    if call.name == "t":
        return moved(call, lambda d: rank - 1 - d)
    a, b = call["dim0"] % rank, call["dim1"] % rank
    return moved(call, lambda d: {a: b, b: a}.get(d, d))


def unsqueeze(call: Call) -> Outcome:
    """A dimension of size 1 put in."""
    new = call["dim"] % (call["self"].dim() + 1)
    return moved(call, lambda d: d + (new <= d))


def squeeze(call: Call) -> Outcome:
    """Dimensions of size 1 taken out; a single row would go with them."""
    rank, sizes = call["self"].dim(), call.sizes(call["self"])
    asked = set(dims_of(call["dim"], rank))
    if call.state(call["self"]) is not None and call.state(call["self"]).dim in asked:  # type: ignore[union-attr]
        raise Meets("squeezes the rows away where there is a single one", "place")
    gone = [d for d in asked if sizes[d] == Size(1, False)]
    return moved(call, lambda d: d - sum(g < d for g in gone))


def expand(call: Call) -> Outcome:
    """Dimensions put in front, those of size 1 repeated."""
    tensor = call["self"]
    more = call.out.dim() - tensor.dim()
    if call.state(tensor) is not None:
        return moved(call, lambda d: d + more)
    new = call.sizes(call.out)  # a constant handed to every row
    counted = [d for d, size in enumerate(new) if size.batch]
    if len(counted) != 1:
        raise Meets("has no rule for two dimensions that count the rows", "unknown")
    (dim,) = counted
    return Rows(dim, 1, new[dim].count, uniform=new[dim].count != 1)


def repeat(call: Call) -> Outcome:
    """The whole value behind itself."""
    tensor, new = call["self"], call.sizes(call.out)
    more = call.out.dim() - tensor.dim()
    counted = [d for d, size in enumerate(new) if size.batch]
    if len(counted) != 1:
        raise Meets("has no rule for two dimensions that count the rows", "unknown")
    (dim,) = counted
    rows = call.rows(tensor)
    if rows is None:
        inner = 1 if dim < more else call.sizes(tensor)[dim - more].count
        return Rows(dim, new[dim].count // inner, inner)
    if rows.uniform:
        return Rows(dim, 1, new[dim].count, uniform=True)
    return Rows(dim, new[dim].count // rows.inner, rows.inner)


def diagonal(call: Call) -> Outcome:
    """Two dimensions become one, at the end."""
    rank = call["self"].dim()
    a, b = (d % rank for d in (call["dim1"] or 0, 1 if call["dim2"] is None else call["dim2"]))
    if call.only().dim in (a, b):
        raise Meets("takes a diagonal across the rows", "place")
    return moved(call, lambda d: d - (a < d) - (b < d))


def diag_embed(call: Call) -> Outcome:
    """The last dimension becomes two."""
    rank = call.out.dim()
    a, b = call["dim1"] % rank, call["dim2"] % rank
    rows = call.only()
    if rows.dim == rank - 2:
        raise Meets("puts the rows on a diagonal", "place")
    kept = [d for d in range(rank) if d not in (a, b)]
    return rows.at(kept[rows.dim])


def windows(call: Call) -> Outcome:
    """``unfold``: windows along a dimension, their entries in a new last one."""
    rows = call.only()
    if call["dimension"] % max(call["self"].dim(), 1) == rows.dim:
        raise Meets("takes windows over the rows")
    return rows


def as_strided(call: Call) -> Outcome:
    """Any other view of the memory; followed only where it is the same view."""
    tensor, out = call["self"], call.out
    if tuple(tensor.shape) == tuple(out.shape) and tensor.stride() == out.stride():
        offset = call["storage_offset"]
        if offset is None or offset == tensor.storage_offset():
            return call.only()
    raise Meets("as_strided reads memory in a way that is not followed", "unknown")


def view_as_other(call: Call) -> Outcome:
    """Complex numbers as pairs and back, or another type of the same width."""
    rows = call.only()
    if call.name == "view" and call["self"].element_size() != call.out.element_size():
        raise Meets("has no rule for a view as a type of another width", "unknown")
    return rows


def any_view(call: Call) -> Outcome:
    """``view`` to a shape, or to a type."""
    return view_as_other(call) if call["dtype"] is not None else view(call)


VIEWS: dict[str, Rule] = {
    **named("_unsafe_view reshape _reshape_alias flatten", view),
    "view": any_view,
    **named("view_as_real view_as_complex real imag", view_as_other),
    **named("permute", permute),
    **named("transpose swapaxes t", transpose),
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "expand": expand,
    "repeat": repeat,
    "diagonal": diagonal,
    "diag_embed": diag_embed,
    "unfold": windows,
    "as_strided": as_strided,
}
"""Operation -> rule, for views."""
