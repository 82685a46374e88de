"""What a tap returns, against forward hooks on the original: in both modes, bit for bit, with its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graphaug.capture.state import ModelState
from graphaug.capture.target import Target
from graphaug.errors import VerificationError
from graphaug.proof.equivalence import same
from graphaug.proof.on_a_batch.hook_oracle import hook_at
from graphaug.proof.on_a_batch.outputs import by_how_much, distance, loss_of
from graphaug.proof.on_a_batch.training_step import Call, Seed
from graphaug.surgery.module import AugmentedModule


def check_tapped(
    aug: AugmentedModule, model: nn.Module, call: Call, tolerance: float, seed: Seed
) -> Iterator[str]:
    """Compare the values at every tap, and the gradients behind them, with what hooks see.

    An operation has no hook; of it nothing is claimed.

    Raises:
        VerificationError: a value or a gradient differs, or no site is a module.
    """
    named = {t: name for name, t in aug._parts.targets.items() if t.op is None}
    if not named:
        raise VerificationError("every site of this tap is an operation, which no forward hook reaches.")
    for mode in ("eval", "training"):
        aug.train(mode == "training")
        state = ModelState(model)
        seed(3)
        seen = _seen(aug, model, named, call)
        theirs = _gradients(seen, model) if mode == "training" else None
        state.restore()  # the model may also set its buffers
        seed(3)
        found = call(aug)
        for target in named:
            if not same(seen[str(target)], found[str(target)]):
                gap = by_how_much(seen[str(target)], found[str(target)])
                raise VerificationError(
                    f"in {mode} mode the tap at '{target}' differs from what a hook sees{gap}."
                )
        values = f"{len(named)} value" + ("s" if len(named) > 1 else "")
        yield f"{mode} mode: {values} bit-equal to what forward hooks see"
    mine = _gradients({site: found[site] for site in seen}, model, theirs)
    count = _gradients_equal(mine, theirs, model, tolerance)
    yield f"training mode: {count} gradients equal those behind what forward hooks see"


def _seen(aug: AugmentedModule, model: nn.Module, named: Mapping[Target, str], call: Call) -> dict[str, Any]:
    """What hooks see, copied before anything behind it changes it in place."""
    seen: dict[str, Any] = {}

    def keep(target: Target, reader: nn.Module | None) -> Any:
        def change(value: Any) -> Any:
            copied = torch.utils._pytree.tree_map_only(Tensor, torch.clone, value)
            seen[str(target)] = copied if reader is None else reader(copied)
            return value

        return change

    handles = [hook_at(model, t, keep(t, aug._parts.added.get(name))) for t, name in named.items()]
    try:
        call(model)
    finally:
        for handle in handles:
            handle.remove()
    missing = next((t for t in named if str(t) not in seen), None)
    if missing is not None:
        raise VerificationError(
            f"'{missing}' is not called on this batch, and the tap returns a value for it."
        )
    return seen


class _Gradients(NamedTuple):
    """Of a weighted sum of values: the weights, and the gradient of each trained parameter; None if it has none."""

    weights: Any
    of: tuple[Tensor | None, ...] | None


def _gradients(values: Any, model: nn.Module, like: _Gradients | None = None) -> _Gradients:
    """The gradients of a weighted sum of values, with the weights of another one if there is one."""
    trained = [p for p in model.parameters() if p.requires_grad]
    loss, weights = loss_of(values) if like is None else loss_of(values, like.weights)
    if not trained or not loss.requires_grad:
        return _Gradients(weights, None)
    return _Gradients(weights, torch.autograd.grad(loss, trained, allow_unused=True))


def _gradients_equal(mine: _Gradients, theirs: Any, model: nn.Module, tolerance: float) -> int:
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    if mine.of is None or theirs.of is None:
        if trained and (mine.of is None) != (theirs.of is None):
            raise VerificationError("the tap's values and those that hooks see have not both a gradient.")
        return 0
    largest = max((float(g.abs().max()) for g in theirs.of if g is not None and g.numel()), default=0.0)
    for name, one, two in zip(trained, theirs.of, mine.of, strict=True):
        gap = distance(one, two, largest)
        if gap > tolerance:
            raise VerificationError(
                f"the gradient of {name!r} differs by {gap:.2g} (relative) from that behind what hooks see."
            )
    return sum(g is not None for g in mine.of)
