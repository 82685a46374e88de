"""The walk through a model's modules: the opened ones run their own code, every other one is a leaf of the graph."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.capture.inputs.signature import Signature
from graphaug.capture.inputs.uncached import what_turns_off_caches
from graphaug.capture.names import Assumption, Frame
from graphaug.capture.recording.closures import closes_over_a_capture
from graphaug.capture.recording.hooks import (
    has_backward_hooks,
    hooks_of_every_module,
    run_forward_hooks,
    run_pre_hooks,
)
from graphaug.capture.recording.marks import Marks
from graphaug.capture.recording.opened.attributes import Attributes
from graphaug.capture.recording.opened.functions import PlainFunctions
from graphaug.capture.recording.opened.inputs import assume_asked, assume_objects, placeholders
from graphaug.capture.recording.opened.unseen_calls import UnseenCalls
from graphaug.capture.recording.patches import Patches, behind
from graphaug.capture.recording.recorder import Recorder
from graphaug.capture.recording.relied.children import Registered
from graphaug.capture.recording.relied.classes import can_be_watched, is_foreign
from graphaug.capture.recording.relied.comparisons import Comparisons
from graphaug.capture.recording.relied.facts import ALL, Fact, NoGlobalHooks, Relied
from graphaug.capture.recording.relied.objects import asked_by
from graphaug.capture.recording.relied.reach import any_module, reached_by
from graphaug.capture.recording.relied.reached import Reached
from graphaug.capture.recording.relied.reads import is_entered, read_of
from graphaug.capture.recording.relied.tensors import Tied, Unmarked
from graphaug.capture.recording.session import Session
from graphaug.capture.recording.values.structures import holders_in
from graphaug.capture.state import ModelState
from graphaug.capture.target import Target
from graphaug.capture.user_checks import begins_a_forward


class Walk:
    """Records a model through the modules in ``opened``; every other module stays one node.

    Attributes:
        calls: how often each module was called.
        marks: the inputs and outputs of opened modules that are sites.
        failed_in: the opened module in which an error came up.
        hooked: of opened modules, whether the graph calls their forward pre-hooks and their forward hooks.
        held: what the graph relies on of registries and of hooks; told once the forward was recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        opened: frozenset[str],
        signature: Signature,
        *,
        marks: frozenset[Target] = frozenset(),
        open_functions: frozenset[str] = frozenset(),
        count_flops: bool = False,
        shared: bool = True,
        lenient: bool = False,
    ) -> None:
        self.model, self.opened, self.signature = model, opened, signature
        self.in_reach = reached_by(model, opened, any_module)
        self.registered = Registered(model)
        self.hooked: dict[str, list[bool]] = {}
        self.held: tuple[Relied, ...] = ()
        without_caches = functools.partial(what_turns_off_caches, signature, model)
        self.session = Session(model, signature.guessed, without_caches)
        self.recorder = Recorder(model, self.session, count_flops=count_flops)
        self.recorder.leaves.lenient = lenient
        self.ledger = self.recorder.ledger
        self.patches = Patches(lambda: not self.session.aside and self._running)
        self.unseen_calls = UnseenCalls(self.recorder, self.patches)
        self.attributes = Attributes(model, opened, self.recorder, self.unseen_calls.seen)
        self.functions = PlainFunctions(self.recorder, self.patches, opened, open_functions)
        self.calls: Counter[str] = Counter()
        self.marks = Marks(self.recorder, marks)
        self.failed_in: str | None = None
        self._shared = shared
        self._entering: nn.Module | None = None
        self._running = False

    @property
    def shared_for_nothing(self) -> bool:
        """Whether inputs were taken for one tensor, as in the example, and the forward never asked."""
        return self.recorder.shared and not self.recorder.compared

    @property
    def assumptions(self) -> dict[fx.Node, Assumption]:
        """What the graph relies on of its inputs, by the node whose value is checked."""
        return self.recorder.nodes.assumptions

    @property
    def facts(self) -> dict[tuple[str, str], Fact]:
        """What the graph relies on of the opened modules."""
        return self.attributes.facts

    @property
    def reached(self) -> list[Reached]:
        """What opened code may have read beside them."""
        return read_of(self.in_reach, self.model, self.opened, self._reads)

    @property
    def unwatched(self) -> list[str]:
        """What it may have read that is not compared in every call: too large, or of a kind that nothing tells."""
        found = self.in_reach.unwatched
        read = (name for name, within in found if within is None or within.is_read(self._reads))
        return list(dict.fromkeys(read))

    @property
    def _reads(self) -> set[tuple[int, str]]:
        """What opened code read, of a ``__dict__`` all that its code names, and all where it went through one."""
        names, by_dict = self.in_reach.names, self.attributes.by_dict
        whole = self.in_reach.goes_through_attributes
        reads = self.attributes.reads | {(owner, n) for owner, n in by_dict if whole or n in names}
        if self.in_reach.copies:  # which reads what nothing sees
            reads |= {(id(thing.holder), ALL) for thing in self.in_reach.things}
        return reads

    @property
    def constants(self) -> dict[str, Any]:
        """Objects that the graph refers to and no module owns."""
        return self.ledger.constants

    @begins_a_forward
    def record(self, state: ModelState) -> fx.Graph:
        """Run the forward on fakes of the examples.

        Args:
            state: the model as it was, to tell what the forward changes.

        Raises:
            CaptureError: it does what a graph cannot hold.
            Exception: whatever the forward itself raises.
        """
        recorder = self.recorder
        recorder.modes.begin()
        self.session.training = self.model.training
        if hooks_of_every_module():
            raise self.session.refuse(
                "hooks are registered for all modules of the process", reason=" Remove them first."
            )
        with self.patches, self.ledger.fake_mode:
            objects: list[Any] = []
            asked = asked_by(self.in_reach.functions)
            asked = replace(asked, identity=asked.identity and self._shared)
            arguments = placeholders(
                recorder, self.signature, not self.in_reach.by_type, objects.append, asked
            )
            positional, keywords = self.signature.arrange(arguments)
            recorder.leaves.given = [*objects, *holders_in(list(arguments.values()))]
            self._watch(objects)
            self._running = True
            try:
                seen = Comparisons(self.in_reach.functions, recorder.compare)
                with recorder, self.session.unrecorded(), seen:
                    result = self._opened(self.model, "", 0, self.model.forward, tuple(positional), keywords)
                    recorder.modes.check_end()
                    self.ledger.labels.check(result, "it returns", self.session.refuse)
                    self.held = tuple(self._held())
                    self.attributes.write_back(state)
                    recorder.nodes.create("output", "output", (self.ledger.lower(result),), {})
                    assume_asked(recorder, arguments, self.attributes.reads)
                    assume_objects(recorder, self.signature, asked)
                    self.marks.settle()
            finally:
                self._running = False
        if self.session.refused is not None:
            raise self.session.refused
        return recorder.nodes.graph

    def _watch(self, objects: list[Any]) -> None:
        classes = {c for m in self.model.modules() for c in type(m).__mro__ if "__call__" in vars(c)}
        for cls in (classes | {nn.Module}) - {object}:
            self.patches.method(cls, "__call__", self._called)
        things = (r for r in self.in_reach.things if r.kind in ("attribute", "method", "property"))
        held = [r.holder for r in things if can_be_watched(r.holder)]
        self.attributes.watch(self.patches, [*held, *self.in_reach.beside, *objects])
        self.unseen_calls.watch()
        own = [f for f in self.in_reach.functions if not is_foreign(f.__module__)]
        self.unseen_calls.watch_functions(own)
        self.functions.watch_functions(own)

    # --- calls of modules -----------------------------------------------------------------------

    def _called(self, call: Callable[..., Any], m: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        """What opened code gets when it calls a module."""
        if m is self._entering:  # the inner half of a class with a ``__call__`` of its own
            self._entering = None
            return call(m, *args, **kwargs)
        path = self.ledger.paths.get(m)
        if path is None:  # a container made on the fly, such as a slice of a Sequential
            return call(m, *args, **kwargs)
        number = self.calls[path]
        self.calls[path] += 1

        def enter(*args: Any, **kwargs: Any) -> Any:
            if behind(call) is not _MODULE_CALL:
                self._entering = m
                return call(m, *args, **kwargs)
            return m.forward(*args, **kwargs)

        with self.session.unrecorded():
            if path in self.opened:
                return self._opened(m, path, number, enter, args, kwargs)
            if closes_over_a_capture((args, kwargs), modules=True):
                raise self._to_be_opened(m, path)
            self.attributes.check_call(m, path)
            node, value = self.recorder.call("call_module", path, m, args, kwargs)
            node.meta["site"] = Target(path, None, number, "after")
            return self.recorder.adopt(value, node, m)

    def _to_be_opened(self, m: nn.Module, path: str) -> Exception:
        """Note a module that calls a function of this very call, so that a graph has to stand for its code, too."""
        if not isinstance(m, torch.jit.ScriptModule):
            self.session.to_open = frozenset({path})
        return self.session.refuse(
            f"it hands {path!r} a function that holds tensors of this call, or modules",
            reason=" Give them as arguments, or choose a site outside the module that makes the function.",
        )

    def _opened(
        self, m: nn.Module, path: str, number: int, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Run an opened module's own code, with its hooks; mark its input and output where asked for."""
        self.unseen_calls.watch_names(m)
        self.functions.watch(m)
        self.attributes.reads.add((id(m), "forward"))
        if path:
            args, kwargs = self._before(m, path, number, args, kwargs)
        self.session.frames.append(Frame(path, number, Counter()))
        try:
            with self.session.recorded():
                result = forward(*args, **kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = path
            raise
        finally:
            self.session.frames.pop()
        if path:
            self._note_hooks(path, 1, bool(m._forward_hooks))
        if path and m._forward_hooks:
            result = self._hooks(run_forward_hooks, m, (tuple(args), dict(kwargs), result))
        target = Target(path, None, number, "after")
        return self.marks.mark(target, result) if path and target in self.marks else result

    def _before(self, m: nn.Module, path: str, number: int, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of an opened module's forward."""
        if has_backward_hooks(m):
            raise self.session.refuse(
                f"module {path!r}, which has to be opened, has a hook on its gradients",
                reason=" Remove the hook, or choose a site outside that module.",
            )
        self._note_hooks(path, 0, bool(m._forward_pre_hooks))
        if m._forward_pre_hooks:
            args, kwargs = self._hooks(run_pre_hooks, m, (tuple(args), dict(kwargs)))
        target = Target(path, None, number, "before")
        if target not in self.marks:
            return args, kwargs
        if args:
            return (self.marks.mark(target, args[0]), *args[1:]), kwargs
        first = next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
        return args, {k: self.marks.mark(target, v) if k == first else v for k, v in kwargs.items()}

    def _note_hooks(self, path: str, which: int, called: bool) -> None:
        self.hooked.setdefault(path, [True, True])[which] &= called  # of several calls each has to call them

    def _held(self) -> Iterator[Relied]:
        reads = self.attributes.reads | self.attributes.by_dict
        entered = {self.ledger.paths.get(m, "") for m in self.in_reach.beside if is_entered(m, reads)}
        yield from self.registered.facts(self.opened | entered, reads, self.in_reach.names)
        if self.recorder.tied:
            yield Tied.of(self.model)
        if self.in_reach.of_locals:
            yield Unmarked.of(self.model, self.in_reach.of_locals)
        for path, hooks in self.hooked.items():
            yield Fact(path, "", tuple(hooks))
        if self.hooked:
            yield NoGlobalHooks(next(iter(self.hooked)))

    def _hooks(self, function: Callable[..., Any], m: nn.Module, args: tuple[Any, ...]) -> Any:
        """One node that calls a module's hooks."""
        node, value = self.recorder.call("call_function", function, function, (m, *args))
        return self.session.call_unrecorded(self.ledger.adopt, value, node)


_MODULE_CALL = nn.Module.__call__
