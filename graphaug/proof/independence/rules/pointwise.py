"""Rules for what is made entry by entry: arithmetic, casts, draws, losses that are not reduced."""

from __future__ import annotations

from graphaug.proof.independence.call import Call, Outcome, Rule, named
from graphaug.proof.independence.places import Meets, Numbers, Rows


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


POINTWISE: dict[str, Rule] = {
    **named("where masked_fill copy lerp addcmul addcdiv clamp_min clamp_max", pointwise),
    **named("complex polar floor_divide rsub hardswish _add_relu", pointwise),
    **named("_prelu_kernel log_sigmoid_forward rrelu_with_noise frexp fmod remainder", pointwise),
    **named("clone detach alias _to_copy lift lift_fresh lift_fresh_copy _conj _neg_view conj resolve_conj", same),
    **named("resolve_neg zeros_like ones_like empty_like full_like", same),
    **named("fill zero", filled),
    **named("bernoulli uniform normal random exponential cauchy geometric log_normal poisson binomial", drawn),
    **named("rand_like randn_like randint_like native_dropout _standard_gamma", drawn),
    **named("mse_loss smooth_l1_loss huber_loss binary_cross_entropy soft_margin_loss l1_loss", without_reduction),
    **named("binary_cross_entropy_with_logits", without_reduction),
}  # fmt: skip
"""Operation -> rule. Operations that torch tags as pointwise need no entry."""
