"""The rules, one per kind of operation: where rows lie in what it returns, or how it lets them meet.

A rule may rely on this: an operation gives, for every entry of its result, a function of the entries that its
definition names. Rows stay apart where those are of one sample, at the same places in all samples. Then the gradient is
apart, too: torch's backward formulas are those of the definition. The exceptions are refused by name (an embedding that
scales its gradients by how often a token occurs in the batch). What is not in the table has no rule.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from graphaug.proof.independence.call import Call, dims_of
from graphaug.proof.independence.places import Meets, Numbers, Rows, Size, State, reshaped

Outcome = State | list[State]
Rule = Callable[[Call], Outcome]


# --- entry by entry --------------------------------------------------------------------------------------


def pointwise(call: Call) -> Outcome:
    """Each entry of the result is made of the entries of the operands at its place."""
    return call.aligned(call.tensors, call.out.dim())


def drawn(call: Call) -> Outcome:
    """Every entry is drawn for itself."""
    if call["generator"] is not None:
        raise Meets("draws from a generator of its own, which may be seeded", "place")
    return pointwise(call)


def same(call: Call) -> Outcome:
    """A copy, a cast, or a value of the same shape filled with one number."""
    state = call.state(call.tensors[0])
    if isinstance(state, Numbers) and call.name not in ("clone", "detach", "alias", "_to_copy", "lift_fresh"):
        return Rows(state.dim)
    return state


def filled(call: Call) -> Outcome:
    """Written over with one number, or with one for all rows."""
    return call.only()


def without_reduction(call: Call) -> Outcome:
    """A loss of every entry; its mean or sum is over the rows as well."""
    if call["reduction"] != 0:
        raise Meets(f"{call.name} averages or sums over the rows")
    return call.aligned([call["self"], call["target"], call["weight"]], call.out.dim())


# --- over a dimension ------------------------------------------------------------------------------------


def along(argument: str) -> Rule:
    """Softmax, sorts, scans and their like: entries meet along the dimensions that an argument names."""

    def rule(call: Call) -> Outcome:
        rows = call.only()
        if rows.dim in dims_of(call[argument], call["self"].dim()):
            raise Meets(f"{call.name} runs over the rows")
        return rows

    return rule


def reduced(argument: str) -> Rule:
    """Sums, means, maxima: dimensions are removed, or kept with size 1."""

    def rule(call: Call) -> Outcome:
        rows = call.only()
        rank = call["self"].dim()
        gone = dims_of(call[argument], rank)
        if rows.dim in gone:
            raise Meets(f"{call.name} runs over the rows")
        shift = 0 if call.out.dim() == rank else sum(d < rows.dim for d in set(gone))
        return rows.at(rows.dim - shift)

    return rule


def within_slices(call: Call) -> Outcome:
    """``renorm``: the norm of every slice along ``dim``."""
    rows = call.only()
    if rows.dim not in dims_of(call["dim"], call["self"].dim()):
        raise Meets("renorm takes norms over the rows")
    return rows


def matrices(call: Call) -> Outcome:
    """Linear algebra on the last two dimensions of each operand; all before them are batches of matrices."""
    found, ranks = set(), set()
    for t in call.tensors:
        rows = call.rows(t)
        if rows is not None:
            ranks.add(t.dim())
            if rows.dim >= t.dim() - 2:
                raise Meets(f"{call.name} runs over the rows")
            found.add(rows.at(rows.dim - (t.dim() - 2)))
    if len(found) != 1 or len(ranks) != 1:  # vectors beside matrices, as pivots are, have one dimension less
        raise Meets(f"{call.name} combines values whose rows lie differently")
    (place,) = found
    if any(call.rows(t) is None and t.dim() > 2 for t in call.tensors):
        raise Meets("has no rule for these shapes", "unknown")
    batch = max(t.dim() for t in call.tensors) - 2
    return place.at(place.dim + batch)


def triangle(call: Call) -> Outcome:
    """What it keeps depends on the last two indices."""
    rows = call.only()
    if rows.dim >= call["self"].dim() - 2:
        raise Meets(f"{call.name} asks for the number of a row", "place")
    return rows


# --- views -----------------------------------------------------------------------------------------------


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


# --- the table -------------------------------------------------------------------------------------------


def _rules(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


TABLE: dict[str, Rule] = {
    **_rules("where masked_fill copy lerp addcmul addcdiv clamp_min clamp_max", pointwise),
    **_rules("_prelu_kernel log_sigmoid_forward rrelu_with_noise frexp fmod remainder", pointwise),
    **_rules("clone detach alias _to_copy lift lift_fresh lift_fresh_copy _conj _neg_view conj resolve_conj", same),
    **_rules("resolve_neg zeros_like ones_like empty_like full_like", same),
    **_rules("fill zero", filled),
    **_rules("bernoulli uniform normal random exponential cauchy geometric log_normal poisson binomial", drawn),
    **_rules("rand_like randn_like randint_like native_dropout _standard_gamma", drawn),
    **_rules("mse_loss smooth_l1_loss huber_loss binary_cross_entropy soft_margin_loss l1_loss", without_reduction),
    **_rules("binary_cross_entropy_with_logits", without_reduction),
    **_rules("_softmax _log_softmax _safe_softmax cumsum cumprod cummax cummin logcumsumexp sort topk", along("dim")),
    **_rules("argsort glu _cummax_helper _cummin_helper", along("dim")),
    **_rules("flip roll", along("dims")),
    **_rules("_fft_r2c _fft_c2r _fft_c2c fft_shift", along("dim")),
    **_rules("mean sum prod amax amin max min any all var std var_mean std_mean argmax argmin", reduced("dim")),
    **_rules("logsumexp norm linalg_vector_norm nansum nanmedian median mode kthvalue aminmax", reduced("dim")),
    **_rules("count_nonzero nanmean", reduced("dim")),
    "renorm": within_slices,
    **_rules("linalg_cholesky_ex linalg_inv_ex linalg_eigh _linalg_eigh linalg_eig linalg_qr linalg_svd", matrices),
    **_rules("_linalg_svd _linalg_det _linalg_slogdet _linalg_solve_ex linalg_solve_triangular", matrices),
    **_rules("linalg_lu linalg_lu_factor_ex linalg_matrix_exp linalg_householder_product geqrf ormqr", matrices),
    **_rules("cholesky cholesky_solve cholesky_inverse triangular_solve linalg_pinv linalg_ldl_factor_ex", matrices),
    **_rules("_linalg_eigvals linalg_eigvals linalg_lu_solve _linalg_check_errors", matrices),
    **_rules("tril triu", triangle),
    **_rules("_unsafe_view reshape _reshape_alias flatten", view),
    "view": any_view,
    **_rules("view_as_real view_as_complex real imag", view_as_other),
    **_rules("permute", permute),
    **_rules("transpose swapaxes t", transpose),
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "expand": expand,
    "repeat": repeat,
    "diagonal": diagonal,
    "diag_embed": diag_embed,
    "unfold": windows,
    "as_strided": as_strided,
}  # fmt: skip
"""Operation -> rule. Operations that torch tags as pointwise need no entry."""


def rule_for(call: Call) -> Rule | None:
    """The rule of an operation, or None."""
    if call.func._overloadname.endswith("out"):
        return None
    found = TABLE.get(call.name)
    if found is None and torch.Tag.pointwise in call.func.tags:
        return pointwise
    return found
