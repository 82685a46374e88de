"""Running what stays closed, a module or a plain function: on fake tensors, or where those fail on real ones."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graphaug import torch_private
from graphaug.capture.inputs.signature import map_tensors
from graphaug.capture.recording.checks import unchecked
from graphaug.capture.recording.fills import Filled, Fills, holders
from graphaug.capture.recording.flops import FlopCounter
from graphaug.capture.recording.ledger import Ledger
from graphaug.capture.recording.session import RETURN_IT, Session
from graphaug.capture.recording.tables import Tables
from graphaug.capture.recording.values.structures import (
    memories_of,
    tensors_in,
)
from graphaug.capture.state import evaluating, undrawn, undrawn_in_python
from graphaug.errors import an
from graphaug.torch_private import FakeTensor

DATA_DEPENDENT = (
    torch_private.DataDependentOutputException,
    torch_private.DynamicOutputShapeException,
)
_GRADIENTS_INSIDE = "_will_engine_execute_node"
"""What torch says where its counter of FLOPs meets ``torch.autograd.grad`` inside of a module."""


@dataclass(frozen=True)
class Outcome:
    """What running something closed came to.

    Attributes:
        value: its result, with fake tensors.
        why_unknown: why sizes of the result depend on data; empty if they do not.
        flops: what it cost, if FLOPs are counted.
        uncounted: names of operators in it whose FLOPs nothing says.
        written, shared: the memory of arguments that it wrote into, and that its result lies in.
    """

    value: Any
    why_unknown: str
    flops: int = 0
    uncounted: frozenset[str] = frozenset()
    written: frozenset[int] = frozenset()
    shared: frozenset[int] = frozenset()


class Leaves:
    """Runs modules and functions for their example values; nothing of the model moves.

    Attributes:
        tables: what the model's code can reach, whose generators are put back after every run.
        given: the containers and objects among the inputs, as opened code gets them.
        lenient: let modules leave tensors in what the forward makes, for none to read.
    """

    def __init__(self, session: Session, ledger: Ledger, *, count_flops: bool) -> None:
        self.session, self.ledger = session, ledger
        self.counter = FlopCounter() if count_flops else None
        self.tables: Tables | None = None
        self.given: list[Any] = []
        self.lenient = False
        self._filled: Filled | None = None
        self._written: list[Tensor] = []

    def run(self, what: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        """Run a closed module, or a function, on arguments of opened code."""
        args, kwargs = self.ledger.evaluable((args, kwargs))
        try:
            outcome = self._counted(what, args, kwargs)
        except RuntimeError as error:
            if self.counter is None or _GRADIENTS_INSIDE not in str(error):
                raise
            counter, self.counter = self.counter, None
            outcome = replace(self._counted(what, args, kwargs), uncounted=frozenset({"torch.autograd.grad"}))
            self.counter = counter
        if self._filled is not None:
            raise self._fills(what, self._filled, args, kwargs)
        return outcome

    def made_it(self, value: Any) -> bool:
        """Whether the forward has made an object itself: the model's code cannot reach it, and no input is it."""
        return not (self.tables and self.tables.reaches(value)) and all(o is not value for o in self.given)

    def _fills(self, what: Any, filled: Filled, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception:
        """The refusal of what fills an object; one of this call may be filled by opened code, of all like it."""
        path = self.ledger.paths.get(what, "") if isinstance(what, nn.Module) else ""
        advice = self.session.about_caches(*holders(args, kwargs))
        if path and not advice and self.made_it(filled.holder) and not _is_scripted(what):
            alike = (p for m, p in self.ledger.paths.items() if type(m) is type(what))
            self.session.to_open = frozenset(alike)
        said = f"it hands {an(filled.holder)} to {path!r}, which fills or changes it"
        found = self.session.refuse(said, reason=advice or RETURN_IT)
        if filled.by_tensors:
            self.session.left_tensors = True
        else:
            self.session.unless_opened = found
        return found

    def _counted(self, what: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        run: Any = self._module if isinstance(what, nn.Module) else self._function
        self._filled = None
        with self.session.unrecorded(), self._undrawn():
            given = list(tensors_in((args, kwargs)))
            self._written, before = [], list(map(_writes_so_far, given))
            with self.counter or contextlib.nullcontext():
                value, why_unknown = run(what, args, kwargs)
            self._written += [t for t, count in zip(given, before, strict=True) if _writes_so_far(t) != count]
            outcome = Outcome(
                value,
                why_unknown,
                written=memories_of(self._written),
                shared=memories_of(given) & memories_of(value),
            )
        if self.counter is None:
            return outcome
        return replace(outcome, flops=self.counter.total, uncounted=frozenset(self.counter.unknown))

    @contextlib.contextmanager
    def _undrawn(self) -> Iterator[None]:
        """Let closed code draw from no generator, the model's own ones included."""
        states = self.tables.states() if self.tables else []
        with undrawn_in_python():
            try:
                yield
            finally:
                if self.tables:
                    self.tables.set_states(states)

    def _module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, str]:
        """A closed module's result, with fakes for all that it owns, and why it is unknown."""
        if _is_scripted(module):
            return self._small(module, args, kwargs, RuntimeError("a scripted module takes no fakes")), ""
        try:
            return self._fake(module, args, kwargs), ""
        except DATA_DEPENDENT as error:
            reason: Exception = error
            if module.training:  # observers and samplers look at data in training only
                with evaluating(module), contextlib.suppress(Exception):
                    return self._fake(module, args, kwargs), ""
        except Exception as error:
            reason = error
        return self._small(module, args, kwargs, reason), _why_unknown(reason)

    def _function(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, str]:
        """A function's result, and why it is unknown."""
        try:
            return function(*args, **kwargs), ""
        except (*DATA_DEPENDENT, NotImplementedError) as error:
            reason: Exception = error
        return self._small(function, args, kwargs, reason), _why_unknown(reason)

    def _on_no_tensors(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Exception | None:
        """The refusal of a module that runs neither on fakes nor on real ones, if it may be for a cache."""
        advice = self.session.about_caches(*holders(args, kwargs))
        if not advice:
            return None
        return self.session.refuse(
            f"it hands a cache to {an(function)}, which does not run without data", reason=advice
        )

    def _fake(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self._call(module, args, kwargs, self.ledger.fake)
        except RuntimeError as error:
            if "requires_grad flags of leaf" not in str(error):
                raise
            args, kwargs = map_tensors(Tensor.detach, (args, kwargs))  # leaves, as in the user's hands
            return self._call(module, args, kwargs, self.ledger.fake)

    def _call(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        stand_in: Callable[[Tensor], Tensor],
    ) -> Any:
        """Run a module on stand-ins of its tensors, so that not even a running mean of the user's changes."""
        if self.counter is not None:
            self.counter.begin_again()
        owned = itertools.chain(
            module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
        )
        # a tensor in them is known to be another's, if it is a fake; a number is not
        in_fakes = stand_in == self.ledger.fake
        fills = Fills(args, kwargs)
        with unchecked():
            if _is_scripted(module):  # whose tensors nothing can stand in for
                return copy.deepcopy(module)(*args, **kwargs)
            # one that this forward has bound anew is a fake by now
            before_it = {
                name: t if isinstance(t, FakeTensor) and in_fakes else stand_in(t) for name, t in owned
            }
            own = dict(before_it)
            result = torch.func.functional_call(module, own, args, kwargs)
        if in_fakes:
            _bind_anew(module, {name: t for name, t in own.items() if t is not before_it[name]})
        self._filled = fills.found(
            in_fakes=in_fakes, is_watched=lambda holder: not self.lenient and self.made_it(holder)
        )
        return result

    def _small(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], reason: Exception) -> Any:
        """Run on real tensors of the example's shapes; its result as fakes.

        Inputs are the example's own, and integers that come from them alone (lengths) too; other numbers mean nothing.

        Raises:
            the reason why fakes did not do, if these do not either.
        """
        with_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors_in((args, kwargs)))
        if isinstance(function, nn.Module):
            tensors = [*function.parameters(), *function.buffers()]
            with_gradient = with_gradient or (
                torch.is_grad_enabled() and any(p.requires_grad for p in tensors)
            )
            if any(t.is_meta for t in tensors):
                raise reason
        made: dict[int, Tensor] = {}
        try:
            with torch_private.without_fakes(), torch.no_grad(), undrawn():
                generator = torch.Generator().manual_seed(0)

                def real(t: Tensor) -> Tensor:
                    if id(t) not in made:
                        known = self.ledger.example_of(t)
                        known = self.ledger.integers(t) if known is None else known
                        made[id(t)] = _real(t, generator) if known is None else known.detach().clone()
                    return made[id(t)]

                given = list(tensors_in((args, kwargs)))
                args, kwargs = map_tensors(real, (args, kwargs))
                before = {id(t): _writes_so_far(made[id(t)]) for t in given}
                if isinstance(function, nn.Module):
                    result = self._call(function, args, kwargs, lambda t: t.detach().clone())
                else:
                    if self.counter is not None:
                        self.counter.begin_again()
                    result = function(*args, **kwargs)
                self._written = [t for t in given if _writes_so_far(made[id(t)]) != before[id(t)]]
        except Exception:
            raise self._on_no_tensors(function, args, kwargs) or reason from None

        def fake(t: Tensor) -> Tensor:
            found = self.ledger.fake_mode.from_tensor(t.detach())
            return found.requires_grad_(True).clone() if with_gradient and t.is_floating_point() else found

        return map_tensors(fake, result)


def _bind_anew(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Leave what a call bound to the names of buffers: whoever reads them next, in this forward, finds it."""
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        buffers = module.get_submodule(path)._buffers
        if last in buffers:
            buffers[last] = tensor


def _writes_so_far(tensor: Tensor) -> int:
    """How often a tensor, or what shares its memory, was written into, as far as torch counts."""
    return 0 if tensor.is_inference() else tensor._version


def _is_scripted(module: nn.Module) -> bool:
    return any(isinstance(m, torch.jit.ScriptModule) for m in module.modules())


def _why_unknown(reason: Exception) -> str:
    if not isinstance(reason, DATA_DEPENDENT):
        return ""
    said = str(reason).splitlines()
    return said[0] if said else type(reason).__name__


def _real(t: Tensor, generator: torch.Generator) -> Tensor:
    if not isinstance(t, FakeTensor):
        return t.detach().clone()
    if t.is_floating_point():
        return torch.randn(t.shape, generator=generator).to(t.dtype)
    return (
        torch.ones(t.shape, dtype=t.dtype) if t.dtype == torch.bool else torch.zeros(t.shape, dtype=t.dtype)
    )
