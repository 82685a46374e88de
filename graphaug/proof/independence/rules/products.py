"""Rules for products: of matrices, of vectors, and distances between points."""

from __future__ import annotations

from torch import Tensor

from graphaug.proof.independence.call import Call, Outcome, Rule, named
from graphaug.proof.independence.places import Meets, Rows, common


def product(call: Call) -> Outcome:
    """Matrix products and what is added to them: rows may be a batch or lie along one side, and are not contracted."""
    first, second = _factors(call)
    a, b = call.rows(first), call.rows(second)
    rank, inner = first.dim(), first.dim() - 1
    place: Rows | None = None
    if a is not None and b is not None:
        place = common([a, b]) if rank == second.dim() == 3 and a.dim == b.dim == 0 else None
    elif a is not None:
        place = a if a.dim != inner else None
    elif b is not None and second.dim() > 1:
        contracted = second.dim() - 2
        place = b.at(b.dim - (rank == 1)) if b.dim != contracted else None
        if place is not None and rank == 2 and second.dim() == 2:
            place = b
    if place is None and (a is not None or b is not None):
        raise Meets(f"{call.name} sums over the rows")
    added = call["self"] if call.name in ("addmm", "baddbmm", "addmv", "addbmm") else None
    return _added(call, place, added)


def summed_products(call: Call) -> Outcome:
    """``addbmm``: the sum of products ``(n, p)`` over a batch of matrices ``(b, n, m)`` and ``(b, m, p)``."""
    a, b = call.rows(call["batch1"]), call.rows(call["batch2"])
    place = None
    if a is not None or b is not None:
        if not (b is None and a is not None and a.dim == 1) and not (
            a is None and b is not None and b.dim == 2
        ):
            raise Meets("addbmm sums over the rows")
        place = a.at(0) if a is not None else b.at(1) if b is not None else None
    return _added(call, place, call["self"])


def outer_product(call: Call) -> Outcome:
    """``addr``: an outer product of vectors, the first along dimension 0 and the second along dimension 1."""
    a, b = call.rows(call["vec1"]), call.rows(call["vec2"])
    if a is not None and b is not None:
        raise Meets("addr multiplies rows with rows")
    return _added(call, a if b is None else b.at(1), call["self"])


def _factors(call: Call) -> tuple[Tensor, Tensor]:
    names = {
        "mm": ("self", "mat2"), "bmm": ("self", "mat2"), "mv": ("self", "vec"), "dot": ("self", "tensor"),
        "vdot": ("self", "other"), "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "addmv": ("mat", "vec"),
    }  # fmt: skip
    a, b = names[call.name]
    return call[a], call[b]


def _added(call: Call, place: Rows | None, added: Tensor | None) -> Outcome:
    """The place of a product with something added to it, aligned from the last dimension."""
    extra = call.rows(added)
    if added is None or extra is None:
        if place is None:
            raise Meets("has no rule for rows in this argument", "unknown")
        return place
    moved = extra.at(extra.dim + call.out.dim() - added.dim())
    found = common([moved] if place is None else [place, moved])
    if found is None or place is None:
        raise Meets(f"{call.name} combines values whose rows lie differently")
    return found


def distances(call: Call) -> Outcome:
    """Distances between the points of two sets: ``(…, P, D)`` and ``(…, R, D)`` to ``(…, P, R)``."""
    a, b, rank = call["x1"], call["x2"], call["x1"].dim()
    first, second = call.rows(a), call.rows(b)
    if first is not None and second is not None:
        place = common([first, second])
        if place is None or a.dim() != b.dim() or place.dim >= rank - 2:
            raise Meets("takes distances between rows")
        return place
    if first is not None and first.dim < rank - 1 and b.dim() == rank:
        return first
    if second is not None and second.dim == b.dim() - 2 and b.dim() == rank:
        return second.at(rank - 1)
    raise Meets("takes distances between rows")


def crossed(call: Call) -> Outcome:
    """A product of vectors along ``dim``."""
    place = call.aligned(call.tensors, call.out.dim())
    if call["dim"] % call.out.dim() == place.dim:
        raise Meets("takes cross products over the rows")
    return place


PRODUCTS: dict[str, Rule] = {
    **named("mm bmm mv dot vdot addmm baddbmm addmv", product),
    "addbmm": summed_products,
    "addr": outer_product,
    **named("_cdist_forward _euclidean_dist", distances),
    "linalg_cross": crossed,
}
"""Operation -> rule, for products."""
