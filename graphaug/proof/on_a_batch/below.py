"""That nothing passes around a cut: with every row stopped, no parameter that lies only before it has a gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from graphaug.augment.site import Augmentation
from graphaug.capture.target import Target
from graphaug.errors import VerificationError
from graphaug.proof.on_a_batch.hook_oracle import recorder
from graphaug.proof.on_a_batch.outputs import loss_of
from graphaug.proof.on_a_batch.training_step import Call, Seed, gradients
from graphaug.surgery.module import AugmentedModule


def nothing_below(aug: AugmentedModule, model: nn.Module, call: Call, seed: Seed) -> Iterator[str]:
    """With every row stopped, no parameter that lies only before the cut has a gradient, whatever way it would take.

    What lies before the cut is found in the gradient graphs of the run itself: all that uses the parameter there leads
    to the value at the cut. One that is used elsewhere too, as tied weights are, has a gradient from there.

    Raises:
        VerificationError: a parameter has one; names it, and by how much.
    """
    for site in aug.plan.sites:
        augmentation = aug.augmentations[site.request.target]
        # a bypass that was allowed is said in the plan; of one half of the rows the other half passes
        if (
            not site.request.stop_grad
            or site.note.startswith("bypassed")
            or augmentation.pairing == "one-sided"
        ):
            continue
        entered: dict[Target, Tensor] = {}
        handle = augmentation.register_forward_pre_hook(recorder(entered, site.request.target))
        try:
            with acting(augmentation), _every_row(augmentation), aug.dense():
                seed(2)
                loss, _ = loss_of(call(aug))
        finally:
            handle.remove()
        before = _only_before(model, entered.get(site.request.target), loss)
        if not before:
            continue
        after = gradients(loss, list(before.values()))
        for name, gradient in zip(before, after, strict=True):
            if gradient is not None and bool(gradient.any()):
                raise VerificationError(
                    f"'{site.request.target}': with every row stopped, {name!r} below the cut still has a gradient of "
                    f"up to {float(gradient.abs().max()):.2g}: something passes around the augmentation."
                )
        none = f"none of {len(before)} parameters below has a gradient of the output"
        yield f"'{site.request.target}': with every row stopped, {none}"


def acting(augmentation: Augmentation) -> contextlib.AbstractContextManager[None]:
    """It is this site's turn in this block, if sites take turns."""
    turns = augmentation.turns
    return contextlib.nullcontext() if turns is None else turns.force(augmentation.number)


@contextlib.contextmanager
def _every_row(augmentation: Augmentation) -> Iterator[None]:
    before = augmentation._subset
    augmentation.set_subset(1.0)
    try:
        yield
    finally:
        augmentation.set_subset(before)


def _only_before(model: nn.Module, value: Tensor | None, loss: Tensor) -> dict[str, Tensor]:
    """Trainable parameters that the value at a cut is made of, and that a loss does not use but on the way there."""
    if value is None or value.grad_fn is None:
        return {}
    before = _gradient_graph(value)
    used = {node: _uses(node) for node in {*before, *_gradient_graph(loss)}}
    there = {id(p) for node in before for p in used[node]}
    elsewhere = {id(p) for node in used.keys() - before for p in used[node]}
    named = model.named_parameters()
    return {name: p for name, p in named if p.requires_grad and id(p) in there - elsewhere}


def _gradient_graph(tensor: Tensor) -> set[Any]:
    """The nodes that a tensor's gradient passes."""
    found: set[Any] = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found


def _uses(node: Any) -> list[Tensor]:
    """The leaves that a node of a gradient graph uses by itself."""
    following = (found for found, _ in node.next_functions if found is not None)
    return [leaf.variable for leaf in following if hasattr(leaf, "variable")]
