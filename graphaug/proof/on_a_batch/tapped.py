"""What a tap returns, against forward hooks on the original: in both modes, bit for bit, with its gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from graphaug.capture.state import ModelState
from graphaug.capture.target import Target
from graphaug.errors import VerificationError
from graphaug.proof.equivalence import copied, same
from graphaug.proof.on_a_batch.hook_oracle import hook_at
from graphaug.proof.on_a_batch.outputs import by_how_much, loss_of
from graphaug.proof.on_a_batch.training_step import Call, Seed, compare_gradients, gradients
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
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for mode in ("eval", "training"):
        aug.train(mode == "training")
        state = ModelState(model)
        seed(3)
        seen = _seen(aug, model, named, call)
        other, weights = loss_of(seen)
        theirs = gradients(other, list(trained.values())) if mode == "training" else []
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
    loss, _ = loss_of({site: found[site] for site in seen}, weights)
    if trained and loss.requires_grad != other.requires_grad:
        raise VerificationError("the tap's values and those that hooks see have not both a gradient.")
    mine = gradients(loss, list(trained.values()))
    expected = dict(zip(trained, theirs, strict=True))
    compare_gradients(expected, dict(zip(trained, mine, strict=True)), tolerance, "behind what hooks see")
    count = sum(g is not None for g in mine)
    yield f"training mode: {count} gradients equal those behind what forward hooks see"


def _seen(aug: AugmentedModule, model: nn.Module, named: Mapping[Target, str], call: Call) -> dict[str, Any]:
    """What hooks see, copied before anything behind it changes it in place."""
    seen: dict[str, Any] = {}

    def keep(target: Target, reader: nn.Module | None) -> Any:
        def change(value: Any) -> Any:
            found = copied(value)
            seen[str(target)] = found if reader is None else reader(found)
            return value

        return change

    graph, added = aug._parts.training_graph, aug._parts.added
    with contextlib.ExitStack() as hooks:
        for target, name in named.items():
            hooks.push(hook_at(model, target, keep(target, added.get(name)), graph))
        call(model)
    missing = next((t for t in named if str(t) not in seen), None)
    if missing is not None:
        raise VerificationError(
            f"'{missing}' is not called on this batch, and the tap returns a value for it."
        )
    return seen
