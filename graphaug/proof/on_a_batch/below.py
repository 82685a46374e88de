"""That nothing passes around a cut: with every row stopped, no parameter that lies only before it has a gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from graphaug.augment.site import Augmentation
from graphaug.capture.target import Target
from graphaug.errors import VerificationError
from graphaug.proof.equivalence import dense
from graphaug.proof.on_a_batch.hook_oracle import recorder
from graphaug.proof.on_a_batch.outputs import loss_of
from graphaug.proof.on_a_batch.training_step import Call, Seed, gradients
from graphaug.proof.on_a_batch.weights_alone import gradient_graph, noted_alone
from graphaug.surgery.module import AugmentedModule

Place = tuple[Any, int]
"""Where a gradient leaves a node of a gradient graph: the node, and of which of its inputs it is."""


def nothing_below(aug: AugmentedModule, model: nn.Module, call: Call, seed: Seed) -> Iterator[str]:
    """With every row stopped, no parameter that lies only before the cut has a gradient, whatever way it would take.

    What lies before the cut is found in the gradient graphs of the run itself: all that uses the parameter there leads
    to the value at the cut. One that is used elsewhere too, as tied weights are, has a gradient from there. What is
    computed of the weights alone, a penalty say, holds nothing of a sample: of the parameters behind it, what must have
    no gradient is what samples before the cut meet of them.

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
            with acting(augmentation), _every_row(augmentation), aug.dense(), noted_alone(aug) as alone:
                seed(2)
                loss, _ = loss_of(call(aug))
        finally:
            handle.remove()
        uses = _uses_before(model, entered.get(site.request.target), loss, gradient_graph(alone))
        before = {name: parameter for name, parameter, _ in uses}
        if not before:
            continue
        for name, gradient in _passing(uses, loss):
            if bool(gradient.any()):
                raise VerificationError(
                    f"'{site.request.target}': with every row stopped, {name!r} below the cut still has a gradient of "
                    f"up to {float(gradient.abs().max()):.2g}: something passes around the augmentation."
                )
        none = f"none of {len(before)} parameters below has a gradient of the output"
        none += " but of what is made of weights alone" if alone else ""
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


Use = tuple[str, Tensor, Place]


def _uses_before(model: nn.Module, value: Tensor | None, loss: Tensor, alone: set[Any]) -> list[Use]:
    """Where samples meet the parameters that a loss uses, beside what it makes of weights alone, before a cut only.

    Args:
        model: owner of the parameters.
        value: what enters at the cut.
        loss: of the run.
        alone: the nodes of its gradient graph that compute of weights alone.

    Returns:
        The name of a trainable parameter, itself, and where its gradient would leave what a sample has passed.
    """
    if value is None or value.grad_fn is None:
        return []
    before = gradient_graph([value.grad_fn]) - alone
    behind = gradient_graph([loss.grad_fn]) - alone - before
    there, elsewhere = _places(before, alone), _places(behind, set())
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in elsewhere]
    return [(name, p, place) for name, p in named for place in there.get(id(p), ())]


def _passing(uses: list[Use], loss: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The gradients of a loss that leave the uses of parameters, by the names of these."""
    found: dict[Place, Tensor] = {}

    def keep(node: Any, inputs: tuple[Tensor | None, ...]) -> None:
        found.update({(node, i): dense(g) for i, g in enumerate(inputs) if g is not None})

    handles = [n.register_hook(lambda g, _, n=n: keep(n, g)) for n in {node for _, _, (node, _) in uses}]
    try:
        gradients(loss, list({id(p): p for _, p, _ in uses}.values()))
    finally:
        for handle in handles:
            handle.remove()
    yield from ((name, found[place]) for name, _, place in uses if place in found)


def _places(nodes: set[Any], alone: set[Any]) -> dict[int, list[Place]]:
    """By the ids of parameters, where nodes of a gradient graph hand a gradient on to them, or to weights alone."""
    places: dict[int, list[Place]] = {}
    for node in nodes:
        for i, (following, _) in enumerate(node.next_functions):
            inner = gradient_graph([following]) if following in alone else {following}
            for leaf in inner:
                if hasattr(leaf, "variable"):
                    places.setdefault(id(leaf.variable), []).append((node, i))
    return places
