"""One training step of a rewritten model, against forward hooks on the original, and what it leaves below its cuts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.augment.site import Augmentation
from graphaug.capture.state import ModelState
from graphaug.capture.target import Target
from graphaug.errors import VerificationError
from graphaug.proof.on_a_batch.hook_oracle import NoDropout, following, hooked, quieten, recorder
from graphaug.proof.on_a_batch.outputs import distance, loss_of
from graphaug.proof.on_a_batch.own_draws import OwnDraws
from graphaug.proof.on_a_batch.recorded import Aside, Recorded, record, slices, stop_recording
from graphaug.surgery.module import AugmentedModule

Call = Callable[[nn.Module], Any]
Seed = Callable[[int], None]


def against_hooks(
    aug: AugmentedModule, model: nn.Module, call: Call, plain: Call, tolerance: float, seed: Seed
) -> Iterator[str]:
    """Compare values and gradients of one training step with hooks on the original, under the same draws.

    ``plain`` calls the original: with the batch as often as there are views.

    Raises:
        VerificationError: an output or a gradient differs, stopped rows pass one, or a frozen parameter is trainable.
    """
    draws: dict[Target, list[Recorded]] = {t: [] for t in aug.augmentations}
    how = "training mode"
    apart = aug.plan.backward == "sparse" or aug.plan.asked.views > 1
    if apart:
        kind = "sparse" if aug.plan.backward == "sparse" else f"{aug.plan.asked.views} views"
        how += f" ({kind}; dropout and batch statistics of the model itself off)"
        quieten(aug, model)  # two runs of the prefix draw other dropout than one
    state = ModelState(model)
    seed(1)
    with _as_one_run(model, apart) as aside:
        found, below = _recorded(aug, call, draws, aside)
    loss, weights = loss_of(found)
    parameters = dict(model.named_parameters())
    trained = {n: p for n, p in parameters.items() if p.requires_grad}
    reached = {t: v for t, v in below.items() if v.requires_grad}
    grads = gradients(loss, [*trained.values(), *reached.values()])
    mine = dict(zip(trained, grads, strict=False))

    state.restore()  # the model may also set its buffers
    seed(1)
    with _as_one_run(model, apart) as aside, hooked(aug, model, draws, aside):
        expected = plain(model)
    other, _ = loss_of(expected, weights)
    theirs = dict(zip(trained, gradients(other, list(trained.values())), strict=True))
    compare(expected, found, theirs, mine, tolerance)
    yield f"{how}: output and {len(trained)} gradients equal those of forward hooks with the same draws"
    if count := following(aug):
        values = "1 value" if count == 1 else f"{count} values"
        yield f"{values} from elsewhere (masks, positions) keep the tokens that each row keeps, picked row by row"

    _check_stopped(aug, dict(zip(reached, grads[len(trained) :], strict=True)), draws)
    if aug.plan.freeze is not None:
        still = [n for n in aug.plan.freeze.parameters if parameters[n].requires_grad]
        if still:
            raise VerificationError(f"frozen parameters are trainable: {', '.join(still[:5])}.")
        yield f"{len(aug.plan.freeze.parameters)} frozen parameters receive no gradient"


@contextlib.contextmanager
def _as_one_run(model: nn.Module, apart: bool) -> Iterator[Aside]:
    """Let a step whose parts run ``apart`` draw what one run draws; gives what an augmentation is done aside with."""
    if not apart:
        yield contextlib.nullcontext
        return
    with NoDropout(), OwnDraws(model) as own:
        yield own.aside


def _recorded(
    aug: AugmentedModule, call: Call, draws: Mapping[Target, list[Recorded]], aside: Aside
) -> tuple[Any, dict[Target, Tensor]]:
    """The output of one call, and what entered each augmentation; what they draw goes into ``draws``."""
    below: dict[Target, Tensor] = {}
    handles = []
    for target, augmentation in aug.augmentations.items():
        handles.append(augmentation.register_forward_pre_hook(recorder(below, target)))
        record(augmentation, draws[target], aside)
    try:
        return call(aug), below
    finally:
        for handle in handles:
            handle.remove()
        for augmentation in aug.augmentations.values():
            stop_recording(augmentation)


def gradients(loss: Tensor, inputs: list[Tensor], *, keep: bool = False) -> list[Tensor | None]:
    """The gradients of a loss; None for all where it has none."""
    if not loss.requires_grad or not inputs:
        return [None] * len(inputs)
    return list(torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=keep))


def compare(
    expected: Any,
    found: Any,
    theirs: Mapping[str, Tensor | None],
    mine: Mapping[str, Tensor | None],
    tolerance: float,
    oracle: str = "forward hooks with the same draws",
) -> None:
    """Compare outputs and gradients, by name, with those of an ``oracle``.

    Raises:
        VerificationError: one differs by more than the tolerance.
    """
    worst = distance(expected, found)
    if worst > tolerance:
        raise VerificationError(
            f"in training mode the output differs by {worst:.2g} (relative) from that of {oracle}."
        )
    compare_gradients(theirs, mine, tolerance, f"of {oracle}")


def compare_gradients(
    theirs: Mapping[str, Tensor | None], mine: Mapping[str, Tensor | None], tolerance: float, whose: str
) -> None:
    """Compare gradients by name; ``whose``: that of what, for the error.

    Raises:
        VerificationError: one differs by more than the tolerance.
    """
    largest = max((float(g.abs().max()) for g in theirs.values() if g is not None and g.numel()), default=0.0)
    for name in theirs:
        gap = distance(theirs[name], mine[name], largest)
        if gap > tolerance:
            raise VerificationError(
                f"the gradient of {name!r} differs by {gap:.2g} (relative) from that {whose}."
            )


def _check_stopped(
    aug: AugmentedModule,
    reaching: Mapping[Target, Tensor | None],
    draws: Mapping[Target, list[Recorded]],
) -> None:
    for target, gradient in reaching.items():
        site = next(s for s in aug.plan.sites if s.request.target == target)
        if site.request.stop_grad and gradient is not None and site.note.startswith("separates"):
            rows = draws[target][0].rows
            place = aug.augmentations[target].place
            stopped = gradient.index_select(place.dim, slices(rows, gradient, place))
            leaked = stopped.abs().max().item() if bool(rows.any()) else 0.0
            if leaked:
                raise VerificationError(
                    f"'{target}': stopped rows pass a gradient of up to {leaked:.2g} below the cut."
                )


def nothing_below(aug: AugmentedModule, model: nn.Module, call: Call, seed: Seed) -> Iterator[str]:
    """With every row stopped, no parameter that lies only before the cut has a gradient, whatever way it would take.

    What lies before the cut is found in the run itself: the value there depends on it, and the modules that own it had
    all returned when the augmentation was called, and were not called again.

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
        with (
            acting(augmentation),
            _every_row(augmentation),
            aug.dense(),
            _order_of_calls(aug, model, augmentation) as order,
        ):
            seed(2)
            loss, _ = loss_of(call(aug))
        before = order.only_before()
        if order.value is None or not order.value.requires_grad or not before:
            continue
        at_cut = gradients(order.value.double().sum(), list(before.values()), keep=True)
        after = gradients(loss, list(before.values()))
        for name, feeds, gradient in zip(before, at_cut, after, strict=True):
            if feeds is not None and gradient is not None and bool(gradient.any()):
                raise VerificationError(
                    f"'{site.request.target}': with every row stopped, {name!r} below the cut still has a gradient of "
                    f"up to {float(gradient.abs().max()):.2g}: something passes around the augmentation."
                )
        count = sum(feeds is not None for feeds in at_cut)
        yield f"'{site.request.target}': with every row stopped, none of {count} parameters below has a gradient"


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


class _Order:
    """Which modules had returned when the augmentation was called, and which were called after that."""

    def __init__(self, model: nn.Module, augmentation: Augmentation) -> None:
        self.model, self.augmentation = model, augmentation
        self.value: Tensor | None = None
        self.returned: set[nn.Module] = set()
        self.later: set[nn.Module] = set()

    def entered(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module is self.augmentation:
            leaves = torch.utils._pytree.tree_leaves(args)
            self.value = (
                self.value
                if self.value is not None
                else next((t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()), None)
            )
        elif self.value is not None:
            self.later.add(module)

    def left(self, module: nn.Module, *_: Any) -> None:
        if self.value is None:
            self.returned.add(module)

    def only_before(self) -> dict[str, Tensor]:
        """Trainable parameters whose owners ran before the augmentation, and only there."""
        owners: dict[Tensor, list[nn.Module]] = {}
        for module in self.model.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    owners.setdefault(parameter, []).append(module)
        return {
            name: p
            for name, p in self.model.named_parameters()
            if p.requires_grad and all(m in self.returned and m not in self.later for m in owners[p])
        }


@contextlib.contextmanager
def _order_of_calls(aug: AugmentedModule, model: nn.Module, augmentation: Augmentation) -> Iterator[_Order]:
    order = _Order(model, augmentation)
    # the graph does not call what it has opened, and refuses hooks that are registered there after the capture
    opened = {model, *(model.get_submodule(path) for path in aug.plan.opened)}
    called = [m for m in model.modules() if m not in opened]
    handles = [m.register_forward_pre_hook(order.entered) for m in (*called, augmentation)]
    handles += [m.register_forward_hook(order.left) for m in called]
    try:
        yield order
    finally:
        for handle in handles:
            handle.remove()
