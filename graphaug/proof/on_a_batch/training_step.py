"""One training step of a rewritten model, against forward hooks on the original."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.recording.tables import Tables
from graphaug.capture.state import ModelState
from graphaug.capture.target import Target
from graphaug.errors import VerificationError
from graphaug.proof.equivalence import dense
from graphaug.proof.left import left_in, otherwise_left
from graphaug.proof.on_a_batch.frozen import said_of_frozen
from graphaug.proof.on_a_batch.hook_oracle import (
    NoDropout,
    asking_for_mode,
    following,
    hooked,
    quieten,
    recorder,
)
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
        VerificationError: an output or a gradient differs, or stopped rows pass one.
    """
    apart = aug.plan.backward == "sparse" or aug.plan.asked.views > 1
    try:
        how, step = _compared(aug, model, call, plain, tolerance, seed, apart)
    except VerificationError:
        # in eval mode a module that asks for its mode may do what it never does in training: mix rows
        if not (apart and (awake := asking_for_mode(aug))):
            raise
        how, step = _compared(aug, model, call, plain, tolerance, seed, apart, awake)
    yield f"{how}: output and {len(step.mine)} gradients equal those of forward hooks with the same draws"
    if count := following(aug):
        values = "1 value" if count == 1 else f"{count} values"
        yield f"{values} from elsewhere (masks, positions) keep the tokens that each row keeps, picked row by row"

    _check_stopped(aug, step.reaching, step.draws)
    yield from said_of_frozen(aug)


def _compared(
    aug: AugmentedModule,
    model: nn.Module,
    call: Call,
    plain: Call,
    tolerance: float,
    seed: Seed,
    apart: bool,
    awake: Collection[int] = (),
) -> tuple[str, _Steps]:
    """How two steps were compared, and the two; where parts run ``apart``, all is in eval mode but what is ``awake``.

    Raises:
        VerificationError: they differ.
    """
    how = "training mode"
    if apart:
        kind = "sparse" if aug.plan.backward == "sparse" else f"{aug.plan.asked.views} views"
        of = "of the model itself" if not awake else "of the model's modules that do not ask for their mode"
        how += f" ({kind}; dropout and batch statistics {of} off"
        quieten(aug, model, awake)  # two runs of the prefix draw other dropout than one
    step = _both_steps(aug, model, call, plain, seed, apart)
    if apart and step.draws_differ_in_front:
        step = _both_steps(aug, model, call, plain, seed, apart, level=True)
        how += ", its noise the same number everywhere"
    compare(step.expected, step.found, step.theirs, step.mine, tolerance)
    if name := otherwise_left(*step.left, tolerance):
        raise VerificationError(f"a training step does not leave {name!r} as that of the original does.")
    return how + (")" if apart else ""), step


@dataclass
class _Steps:
    """One step of a rewritten model and of the original with hooks.

    Attributes:
        found: the output of the rewritten model; ``expected`` is the other's.
        mine: the gradients of the rewritten model by the names of the parameters; ``theirs`` are the other's.
        reaching: the gradients that come out of the cuts.
        draws: what the augmentations drew.
        draws_differ_in_front: whether they drew for other sizes otherwise, and that in front of the last cut only.
        left: what the rewritten model and the other leave behind.
    """

    found: Any
    expected: Any
    mine: dict[str, Tensor | None]
    theirs: dict[str, Tensor | None]
    reaching: dict[Target, Tensor | None]
    draws: dict[Target, list[Recorded]]
    draws_differ_in_front: bool
    left: tuple[dict[str, Any], dict[str, Any]]


def _both_steps(
    aug: AugmentedModule,
    model: nn.Module,
    call: Call,
    plain: Call,
    seed: Seed,
    apart: bool,
    level: bool = False,
) -> _Steps:
    """The two steps; if the parts of one run ``apart``, both draw what one run draws."""
    draws: dict[Target, list[Recorded]] = {t: [] for t in aug.augmentations}
    state, tables = ModelState(model), Tables(model)
    seed(1)
    with _as_one_run(model, apart, level) as mine_drawn:
        found, below = _recorded(aug, call, draws, mine_drawn.aside)
    left = left_in(model)
    loss, weights = loss_of(found)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    reached = {t: v for t, v in below.items() if v.requires_grad}
    grads = gradients(loss, [*trained.values(), *reached.values()])

    state.restore()  # the model may also set its buffers
    tables.restore()  # and draw from generators of its own
    seed(1)
    with _as_one_run(model, apart, level) as drawn, hooked(aug, model, draws, drawn.aside):
        expected = plain(model)
    theirs_left = left_in(model)
    other, _ = loss_of(expected, weights)
    return _Steps(
        found,
        expected,
        dict(zip(trained, grads, strict=False)),
        dict(zip(trained, gradients(other, list(trained.values())), strict=True)),
        dict(zip(reached, grads[len(trained) :], strict=True)),
        draws,
        mine_drawn.differs_in_front(drawn),
        (theirs_left, left),
    )


@contextlib.contextmanager
def _as_one_run(model: nn.Module, apart: bool, level: bool) -> Iterator[OwnDraws]:
    """Let a step whose parts run ``apart`` draw what one run draws."""
    own = OwnDraws(model, level=level)
    if not apart:
        yield own
        return
    with NoDropout(), own:
        yield own


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


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    """The gradients of a loss, sparse ones made dense; None for all where it has none."""
    if not loss.requires_grad or not inputs:
        return [None] * len(inputs)
    # retained: what a model keeps of an earlier call (a membrane's potential) may bring that call's graph, the caller's
    found = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)
    return [None if g is None else dense(g) for g in found]


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
