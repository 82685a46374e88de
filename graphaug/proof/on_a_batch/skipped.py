"""Skipped rows, against the original whose branches run on all rows and are masked."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.augment.rows import Rows
from graphaug.augment.structures import on_first
from graphaug.capture.interpreter import Interpreter
from graphaug.capture.state import ModelState
from graphaug.errors import VerificationError
from graphaug.proof.on_a_batch.hook_oracle import NoDropout, hook_at, interpreting, quieten
from graphaug.proof.on_a_batch.outputs import loss_of
from graphaug.proof.on_a_batch.own_draws import OwnDraws
from graphaug.proof.on_a_batch.training_step import Call, Seed, compare, gradients
from graphaug.surgery.called.kept_rows import KeptRows, counted, put_back, taken
from graphaug.surgery.module import AugmentedModule


def check_skipped(
    aug: AugmentedModule, model: nn.Module, call: Call, tolerance: float, seed: Seed
) -> Iterator[str]:
    """Check the kept rows, and compare a training step with that of masked branches.

    The model's own dropout, which would draw for fewer rows, and its batch statistics are off.

    Raises:
        VerificationError: other rows than the rate says, or an output or a gradient that differs.
    """
    quieten(aug, model)
    skippers = {name: m for name, m in aug._parts.added.items() if isinstance(m, KeptRows)}
    off = "dropout and batch statistics of the model itself off"
    step, rows = _both_steps(aug, model, call, seed, skippers)
    if not step.draws_alike:
        step, rows = _both_steps(aug, model, call, seed, skippers, level=True)
        off += ", its noise the same number everywhere"
    for name, skipper in skippers.items():
        yield _rows_kept(str(aug._parts.targets[name]), skipper, rows[name])
    compare(step.expected, step.found, step.theirs, step.mine, tolerance, step.oracle)
    yield f"training mode ({off}): output and {len(step.mine)} gradients equal those of {step.oracle}"


@dataclass
class _Steps:
    """One step with skipped rows and one with masked branches: outputs, gradients, and whether both drew the same."""

    found: Any
    expected: Any
    mine: dict[str, Tensor | None]
    theirs: dict[str, Tensor | None]
    oracle: str
    draws_alike: bool


def _both_steps(
    aug: AugmentedModule,
    model: nn.Module,
    call: Call,
    seed: Seed,
    skippers: dict[str, KeptRows],
    level: bool = False,
) -> tuple[_Steps, dict[str, int]]:
    """The two steps, and how many rows each branch was given."""
    state = ModelState(model)
    seed(1)
    with NoDropout(), OwnDraws(model, level=level) as drawn, _counting(skippers, drawn) as rows:
        found = call(aug)
    loss, weights = loss_of(found)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    mine = dict(zip(trained, gradients(loss, list(trained.values())), strict=True))

    state.restore()
    seed(1)
    masked = OwnDraws(model, level=level)
    with _masked(aug, model, skippers, rows) as oracle, NoDropout(), masked:
        expected = call(model)
    other, _ = loss_of(expected, weights)
    theirs = dict(zip(trained, gradients(other, list(trained.values())), strict=True))
    return _Steps(found, expected, mine, theirs, oracle, drawn.sampled == masked.sampled), rows


@contextlib.contextmanager
def _counting(skippers: dict[str, KeptRows], own: OwnDraws) -> Iterator[dict[str, int]]:
    """How many rows the batch has, as every branch is told; which are kept is drawn aside."""
    rows: dict[str, int] = {}

    def begin(name: str, skipper: KeptRows, args: tuple[Any, ...]) -> None:
        rows[name] = skipper.place.count(args[0].shape)
        own.is_aside = True

    def end(*_: Any) -> None:
        own.is_aside = False

    handles = [m.register_forward_pre_hook(functools.partial(begin, name)) for name, m in skippers.items()]
    handles += [m.register_forward_hook(end) for m in skippers.values()]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _masked(
    aug: AugmentedModule, model: nn.Module, skippers: dict[str, KeptRows], rows: dict[str, int]
) -> Iterator[str]:
    """Let the original mask its branches; says how.

    By hooks, or where a branch ends in an operation, which no hook reaches, by interpreting the graph with every branch
    on all rows.
    """
    places = {
        str(node.args[1].target): Rows(*node.args[4])
        for node in aug._parts.training_graph.nodes
        if node.target is put_back
    }

    def mask(name: str, value: Tensor) -> Tensor:
        place, kept = places[name], skippers[name].kept
        assert kept is not None
        factor = value.new_zeros(rows[name])
        factor[kept] = rows[name] / len(kept)
        sample = torch.arange(value.shape[place.dim], device=value.device) // place.inner % rows[name]
        shape = [-1 if d == place.dim else 1 for d in range(value.dim())]
        return value * factor[sample].view(shape)

    targets = {name: aug._parts.targets[name] for name in skippers}
    if any(t.op is not None for t in targets.values()):
        with interpreting(aug, model, _AllRows(aug, mask, graph=aug._parts.training_graph)):
            yield "the same graph with every branch on all rows, masked"
        return

    def masked(name: str, value: Any) -> Any:
        return on_first(value, functools.partial(mask, name))

    graph = aug._parts.training_graph
    with contextlib.ExitStack() as hooks:
        for name, target in targets.items():
            hooks.push(hook_at(model, target, functools.partial(masked, name), graph))
        yield "forward hooks that mask the branches of all rows"


class _AllRows(Interpreter):
    """Runs a graph with skipped rows as if nothing was: every branch on all rows, and its result masked."""

    def __init__(self, aug: AugmentedModule, mask: Any, graph: fx.Graph) -> None:
        super().__init__(aug, garbage_collect_values=False, graph=graph)
        self.mask = mask

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The modules that draw give their name."""
        if isinstance(self.fetch_attr(target), KeptRows):
            return target
        return super().call_module(target, args, kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Nothing is taken, and what would be put back is masked."""
        if target in (taken, counted):
            return args[0]
        if target is put_back:
            return self.mask(args[1], args[0])
        return super().call_function(target, args, kwargs)


def _rows_kept(site: str, skipper: KeptRows, rows: int) -> str:
    """The claim about one branch's rows."""
    kept = skipper.kept
    assert kept is not None
    planned = max(1, round((1 - skipper.rate) * rows))
    if len(kept) != planned or len(kept.unique()) != planned:
        raise VerificationError(
            f"'{site}': {len(kept.unique())} of {rows} rows are kept, planned were {planned} (rate {skipper.rate:g})."
        )
    if not bool(((kept >= 0) & (kept < rows)).all()):
        raise VerificationError(f"'{site}': rows are kept that the batch has not.")
    return f"'{site}': {planned} of {rows} rows kept, each once, at rate {skipper.rate:g}"
