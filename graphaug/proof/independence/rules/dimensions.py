"""Rules for what runs over dimensions: reductions, softmax, sorts, scans, transforms, linear algebra."""

from __future__ import annotations

from graphaug.proof.independence.call import Call, Outcome, Rule, dims_of, named
from graphaug.proof.independence.places import Meets


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


def turned(call: Call) -> Outcome:
    """``rot90``: a quarter turn exchanges two dimensions, and turns the order of one of them round."""
    rows, rank = call.only(), call["self"].dim()
    a, b = (d % rank for d in call["dims"])
    quarters = call["k"] % 4
    if quarters == 0 or rows.dim not in (a, b):
        return rows
    if (quarters, rows.dim) in ((1, a), (3, b)):
        return rows.at(b if rows.dim == a else a)
    raise Meets("rot90 turns the order of the rows round")


_VECTORS = {
    "ormqr": "input2",
    "linalg_householder_product": "tau",
    "linalg_lu_solve": "pivots",
    "linalg_ldl_solve": "pivots",
    "lu_unpack": "LU_pivots",
}
"""Operand that is a vector beside matrices: pivots, or the scales of reflections."""


def matrices(call: Call) -> Outcome:
    """Linear algebra on the last two dimensions of each operand; all before them are batches of matrices."""
    found, batches = set(), set()
    vector = call[_VECTORS.get(call.name, "")]
    for t in call.tensors:
        rows, batch = call.rows(t), t.dim() - (1 if t is vector else 2)
        if rows is not None:
            batches.add(batch)
            if rows.dim >= batch:
                raise Meets(f"{call.name} runs over the rows")
            found.add(rows)
        elif batch > 0:
            raise Meets("has no rule for these shapes", "unknown")
    if len(found) != 1 or len(batches) != 1:
        raise Meets(f"{call.name} combines values whose rows lie differently")
    return found.pop()


def triangle(call: Call) -> Outcome:
    """What it keeps depends on the last two indices."""
    rows = call.only()
    if rows.dim >= call["self"].dim() - 2:
        raise Meets(f"{call.name} asks for the number of a row", "place")
    return rows


DIMENSIONS: dict[str, Rule] = {
    **named("_softmax _log_softmax _safe_softmax cumsum cumprod cummax cummin logcumsumexp sort topk", along("dim")),
    **named("argsort glu _cummax_helper _cummin_helper", along("dim")),
    **named("flip roll", along("dims")),
    **named("_fft_r2c _fft_c2r _fft_c2c fft_shift", along("dim")),
    **named("mean sum prod amax amin max min any all var std var_mean std_mean argmax argmin", reduced("dim")),
    **named("logsumexp norm linalg_vector_norm nansum nanmedian median mode kthvalue aminmax", reduced("dim")),
    **named("count_nonzero nanmean linalg__powsum", reduced("dim")),
    "renorm": within_slices,
    "rot90": turned,
    **named("linalg_cholesky_ex linalg_inv_ex linalg_eigh _linalg_eigh linalg_eig linalg_qr linalg_svd", matrices),
    **named("_linalg_svd _linalg_det _linalg_slogdet _linalg_solve_ex linalg_solve_triangular", matrices),
    **named("linalg_lu linalg_lu_factor_ex linalg_matrix_exp linalg_householder_product geqrf ormqr", matrices),
    **named("cholesky cholesky_solve cholesky_inverse triangular_solve linalg_pinv linalg_ldl_factor_ex", matrices),
    **named("_linalg_eigvals linalg_eigvals linalg_lu_solve linalg_ldl_solve lu_unpack _linalg_check_errors", matrices),
    **named("tril triu", triangle),
}  # fmt: skip
"""Operation -> rule, for what runs over dimensions."""
