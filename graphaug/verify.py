"""Prove a rewritten model on a real batch: against closed forms, and against forward hooks on the original."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graphaug.arguments import checked_names
from graphaug.augment.deep_augment import DeepAugment
from graphaug.augment.domain import Domain
from graphaug.augment.transformed import Transformed
from graphaug.capture.inputs.given import given
from graphaug.capture.inputs.signature import map_tensors
from graphaug.capture.recording.tables import Tables, undisturbed
from graphaug.capture.state import ModelState, evaluating, unchanged, undrawn
from graphaug.errors import (
    AssumptionViolated,
    CaptureError,
    NotRewritten,
    VerificationError,
    an,
    in_a_line,
)
from graphaug.proof.equivalence import same
from graphaug.proof.on_a_batch.below import acting, nothing_below
from graphaug.proof.on_a_batch.closed_forms import probe
from graphaug.proof.on_a_batch.frozen import check_frozen
from graphaug.proof.on_a_batch.outputs import by_how_much
from graphaug.proof.on_a_batch.redraws import redraw
from graphaug.proof.on_a_batch.skipped import check_skipped
from graphaug.proof.on_a_batch.tapped import check_tapped
from graphaug.proof.on_a_batch.training_step import against_hooks
from graphaug.surgery.called.views import repeated
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.unwrap import unwrap_hint


@dataclass(frozen=True)
class Verification:
    """What `verify` proved: one line per claim. Falsy never; a failed claim raises.

    Examples:
        >>> import torch, graphaug as ga
        >>> aug = ga.rewrite(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), at="0")
        >>> ga.verify(aug, torch.randn(4, 4)).claims[0]
        'eval mode: output bit-equal to the original'
    """

    claims: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(f"ok  {claim}" for claim in self.claims)


@checked_names
def verify(aug: nn.Module, x: Any, *, tolerance: float = 1e-5) -> Verification:
    """Prove on a batch that a rewritten model does what its plan says.

    1. In eval mode it equals the original bit for bit.
    2. Fed with ones, every dropout drops, scales, stops and passes exactly what its options say: checked against
       their closed form, in value and in gradient. Any other transform, drawing the same once more, gives row by row
       the same values and gradients.
    3. In training mode, its output and all gradients equal those of the original model with plain
       forward hooks that apply the same draws; no gradient of stopped rows passes the cut.
    4. Frozen parameters receive no gradient, and nothing else in the frozen region does.
    5. With every row stopped, no parameter that lies only before the cut has a gradient, whatever way it would take.

    Of what `graphaug.skip_rows` made it proves 1, that every branch kept as many rows as its rate says, each once, and
    that output and gradients of a training step equal those of the original whose branches run on all rows and are
    masked by hooks. Of what `graphaug.tap` made, that in both modes every value equals what a hook sees, bit for bit,
    and that the gradients behind them are the same.

    Nothing is left behind: buffers, modes, gradients and random states are as before.

    Args:
        aug: a model made by `graphaug.rewrite`, `graphaug.skip_rows` or `graphaug.tap`, not compiled.
        x: a batch: a tensor, a tuple of positional inputs or a dict of keyword inputs; 2 rows or more.
        tolerance: for 3, relative to the largest entry of the tensor compared.

    Returns:
        The claims that were proved; print it.

    Raises:
        VerificationError: a claim does not hold; says which, where, and by how much.
        NotRewritten: ``aug`` was made by none of these.
        InvalidOption: ``tolerance`` is no such number.
        CaptureError: the model does not take the batch, as `graphaug.rewrite` says of ``example_inputs``.

    Examples:
        >>> import torch, graphaug as ga
        >>> aug = ga.rewrite(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), at="0", stop_grad=True)
        >>> print(str(ga.verify(aug, torch.randn(4, 4))).splitlines()[0])
        ok  eval mode: output bit-equal to the original
    """
    if not isinstance(aug, AugmentedModule):
        raise NotRewritten(f"verify takes what graphaug.rewrite returned, not {an(aug)}.{unwrap_hint(aug)}")
    tolerance = Domain(low=0).check("tolerance", tolerance)
    model = aug._parts.model
    args, kwargs = _as_call(model, x)
    args, kwargs = aug._parts.signature.spelled_out(args, kwargs)

    def call(model: nn.Module) -> Any:
        copies = map_tensors(lambda t: t.detach().clone(), (args, kwargs))
        return model(*copies[0], **copies[1])

    def plain(model: nn.Module) -> Any:
        views = aug.plan.asked.views
        if views == 1:
            return call(model)
        values = aug._parts.signature.bind(args, kwargs)
        copies = {n: _often(v, aug._parts.row_dims.get(n, ()), views) for n, v in values.items()}
        again, named = aug._parts.signature.arrange(copies)
        return model(*again, **named)

    claims = []
    with undisturbed(model, args, kwargs), _untouched(aug, model), unchanged(model):
        if aug.plan.purpose == "tap":
            with evaluating(model), torch.no_grad():
                _taken(model, call)
            return Verification(tuple(check_tapped(aug, model, call, tolerance, _seed)))
        claims.append(_eval_equals(aug, model, call))
        if aug.plan.purpose == "skip_rows":
            aug.train()
            return Verification((*claims, *check_skipped(aug, model, call, tolerance, _seed)))
        check_frozen(aug)
        aug.train()
        if aug._parts.split is not None:  # before modes are set for comparisons
            with unchanged(model):
                aug._parts.split.look_again(aug._parts)
        with aug.dense():
            for target, augmentation in aug.augmentations.items():
                with acting(augmentation), unchanged(model):  # each claim of the model as it is
                    if isinstance(augmentation, DeepAugment):
                        claims.extend(probe(target, augmentation, aug, call))
                    elif isinstance(augmentation, Transformed):
                        claims.extend(redraw(target, augmentation, aug, call, tolerance))
        with unchanged(model):
            claims.extend(against_hooks(aug, model, call, plain, tolerance, _seed))
        aug.train()
        with unchanged(model):
            claims.extend(nothing_below(aug, model, call, _seed))
    return Verification(tuple(claims))


def _as_call(model: nn.Module, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as the positional and the keyword inputs of a call."""
    batch = x if isinstance(x, Mapping) or not hasattr(x, "keys") else dict(x)
    _, _, inputs = given(model, batch, "the batch")
    return ((), inputs) if isinstance(batch, Mapping) else (tuple(inputs.values()), {})


def _often(value: Any, dims: Sequence[int | None], times: int) -> Any:
    """An input with its rows so many times; ``dims`` are the dimensions of rows of all that lies in it."""
    leaves, made = torch.utils._pytree.tree_flatten(value)
    pairs = zip(leaves, dims, strict=True)
    return made.unflatten(repeated(v, d, 1, times) if d is not None else v for v, d in pairs)


def _seed(number: int) -> None:
    """Seed every generator that a forward may draw from; `_untouched` puts them back."""
    torch.manual_seed(number)
    random.seed(number)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(number)


def _eval_equals(aug: AugmentedModule, model: nn.Module, call: Callable[[nn.Module], Any]) -> str:
    def result(call: Callable[[nn.Module], Any], run: nn.Module) -> Any:
        _seed(0)
        found = map_tensors(lambda t: t.clone(), call(run))
        state.restore()  # a forward may move the model on, in eval mode too
        tables.restore()
        return found

    gradients = not _runs_without_gradients(model, call)
    with evaluating(model), evaluating(aug), torch.set_grad_enabled(gradients):
        state, tables = ModelState(model), Tables(model)
        expected = result(lambda run: _taken(run, call), model)
        found = [result(call, aug)]
        with contextlib.suppress(AssumptionViolated), aug.only_the_graph():  # as it runs where it is compiled
            found.append(result(call, aug))
    for one in found:
        if not same(expected, one):
            gap = by_how_much(expected, one)
            raise VerificationError(
                f"in eval mode the rewritten {type(model).__name__} differs from the original{gap}: "
                "an augmentation leaks into eval, or the graph is not the model."
            )
    return "eval mode: output bit-equal to the original"


def _runs_without_gradients(model: nn.Module, call: Callable[[nn.Module], Any]) -> bool:
    """Whether the original takes the batch without gradients: one that hooks them does not, which is no error."""
    with evaluating(model), unchanged(model), undrawn(), torch.no_grad():
        try:
            call(model)
        except Exception:
            return False
        return True


def _taken(model: nn.Module, call: Callable[[nn.Module], Any]) -> Any:
    """What the original gives for the batch.

    Raises:
        CaptureError: it does not take it.
    """
    try:
        return call(model)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__}.forward failed on the batch: {in_a_line(error)}"
        ) from error


@contextlib.contextmanager
def _untouched(aug: AugmentedModule, model: nn.Module) -> Iterator[None]:
    """Buffers, modes and random states come back, whatever happens."""
    flags = [(m, m.training) for m in [model, *aug.modules()]]
    buffers = [(b, b.detach().clone()) for b in aug.buffers()]
    devices = sorted({p.device.index or 0 for p in aug.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), undrawn():
        try:
            yield
        finally:
            for b, saved in buffers:
                with torch.no_grad():
                    b.copy_(saved)
            for module, flag in flags:
                module.training = flag
            if aug._parts.kept is not None:  # a comparison of a sparse step put its prefix in eval mode
                aug._parts.kept.modes = True
