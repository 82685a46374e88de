"""The recorder: a model's forward on fake tensors, and the functions of torch that opened code calls as a graph."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from graphaug import torch_private
from graphaug.capture.dataflow import BESIDE, HOLDS, SHARES, WRITTEN, nodes_in, writes
from graphaug.capture.recording.answers import RecordedAnswers
from graphaug.capture.recording.calls import operations
from graphaug.capture.recording.calls.lineage import Lineage
from graphaug.capture.recording.calls.modes import Modes
from graphaug.capture.recording.calls.operations import Call
from graphaug.capture.recording.calls.questions import Questions
from graphaug.capture.recording.leaves import Leaves
from graphaug.capture.recording.ledger import READ_IN_EVERY_CALL, Ledger
from graphaug.capture.recording.nodes import Nodes, is_given, is_unknown_node
from graphaug.capture.recording.session import Session
from graphaug.capture.recording.values.structures import holds, memories_of, plain, tensors_in
from graphaug.capture.recording.values.tracked import doubtful, is_tracked
from graphaug.capture.user_code import may_return_none
from graphaug.capture.values import UNKNOWN, describe, value_of

_MADE_UNSEEN: Any = torch.ops.aten.lift_fresh.default


class Recorder(TorchFunctionMode):
    """A function mode that records what opened code calls as nodes of an fx graph.

    Args:
        root: the model.
        session: of this recording.
        count_flops: note each node's FLOPs.

    Attributes:
        session, nodes, ledger, answers, leaves, modes: the parts that share the work; each says what it does.
        compared: whether opened code asked which of its inputs are one tensor.
        tied: whether it asked the same of tensors of the model.
        shared: whether inputs that are one tensor in the example are one in the graph, for code that may ask.
    """

    def __init__(self, root: nn.Module, session: Session, *, count_flops: bool) -> None:
        super().__init__()
        self.session = session
        self.compared = self.shared = self.tied = False
        self.nodes = Nodes(self.session)
        self.answers = RecordedAnswers(self.session, self.nodes, lambda value: self.ledger.lower(value))
        self.ledger = Ledger(root, self.session, self.nodes, self.answers)
        self.leaves = Leaves(self.session, self.ledger, count_flops=count_flops)
        self.ledger.objects.made_it = self.leaves.made_it
        self.modes = Modes(self.session, self.nodes, self.ledger.lower)
        self._lineage = Lineage(self.nodes.graph)
        self._questions = Questions(self.session, self.nodes, self.ledger, self.answers)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record one call of opened code; whatever closed code calls runs as it is."""
        kwargs = kwargs or {}
        if self.session.aside:
            return func(*args, **kwargs)
        if func is torch_private.set_grad_enabled:
            return self.modes.set_grad_mode(func, bool(args[0]), sys._getframe(1))
        if func is torch._assert and not isinstance(args[0], Tensor):  # of sizes: an assumption by now
            return func(*plain(args))
        if func is torch.device:
            named = [kwargs[name] for name in ("type", "index") if name in kwargs]
            if holds((args, named), is_tracked):
                return self.answers.derived(func, (*args, *named))
            return func(*args, **kwargs)
        if func is _MADE_UNSEEN:
            raise self.session.refuse(
                "it makes a tensor by torch.Tensor(...), or by another of torch's old constructors, which nothing sees",
                reason=" Write torch.tensor(...), or choose a site outside that module, so that it stays closed.",
            )
        call = operations.classify(func, sys._getframe(1))
        if call.kind == "get":
            return self._questions.attribute(args[0], call.target)
        if call.kind in ("set", "delete"):
            return self._questions.assign(args[0], call.target, args[1] if len(args) > 1 else None)
        if call.kind == "method":
            if call.target == "new" and len(args) == 2 and type(args[1]) is Size:
                args = (args[0], *args[1])  # a plain tuple, which a node would hold, is taken for numbers
            found = self._questions.method(call.target, args, kwargs)
            if found is not NotImplemented:
                return found
        if func in operations.WITHOUT_GRAPH:
            first = next(iter((*args, *kwargs.values())))
            raise self._questions.data(operations.WITHOUT_GRAPH[func], first)
        if call.swapped:
            return self.record(call, call.target, (args[1], args[0], *args[2:]), kwargs)
        return self.record(call, func, args, kwargs)

    def call(
        self,
        kind: str,
        target: Any,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
    ) -> tuple[fx.Node, Any]:
        """Run a function or a closed module on fakes, and make its node.

        Args:
            kind: of the node, as in `torch.fx.Node.op`.
            target: of the node.
            run: what to run.
            args, kwargs: as opened code gave them.

        Returns:
            The node, and the value on the example.
        """
        self.modes.check(module=kind == "call_module")
        kwargs = dict(kwargs or {})
        if kind == "call_module":
            given = (f"{str(target)!r} is given", self.session.refuse, lambda: self._is_of_users(target))
            self.session.call_unrecorded(self.ledger.labels.check, (args, kwargs), *given)
        lowered = self.ledger.lower(args), {k: self.ledger.lower(v) for k, v in kwargs.items()}
        handed: dict[Any, tuple[Any, Any]] = dict(enumerate(zip(args, lowered[0], strict=True)))
        handed.update((key, (value, lowered[1][key])) for key, value in kwargs.items())
        self.session.call_unrecorded(self._lineage.begin, self.ledger.evaluable((args, kwargs)))
        outcome = self.leaves.run(run, args, kwargs)
        self.modes.follow()
        node = self.nodes.create(kind, target, *lowered)
        node.meta.update(flops=outcome.flops, uncounted=outcome.uncounted)
        for what, places in ((WRITTEN, outcome.written), (SHARES, outcome.shared)):
            if places and (found := self.session.call_unrecorded(_among, handed, places)):
                node.meta[what] = found
        self._lineage.made(node)
        self.nodes.note_value(node, outcome.value, outcome.why_unknown)
        if kind == "call_module":
            node.meta[HOLDS] = self.session.call_unrecorded(self.ledger.nodes_within, run)
            self._check_lineage(node, outcome.value)
        return node, outcome.value

    def numbers(self, tensor: Tensor) -> Any:
        """The integers of a tensor as lists, as opened code gets them."""
        self.modes.check(module=False)
        return self._questions.numbers(tensor)

    def _is_of_users(self, path: str) -> bool:
        """Whether a closed module, or one inside of it, has code of its own, which torch's have not."""
        within = (m for m, at in self.ledger.paths.items() if at == path or at.startswith(f"{path}."))
        return any(type(m).__module__.partition(".")[0] != "torch" for m in within)

    def _check_lineage(self, node: fx.Node, value: Any) -> None:
        """Note what passes from one closed module to another beside the arguments.

        Raises:
            CaptureError: opened code left it for the module, which a graph does behind all calls.
        """
        beside = self.session.call_unrecorded(self._lineage.beside, node, value)
        for owner in beside:
            if owner.op not in ("call_module", "placeholder"):
                raise self.session.refuse(
                    f"it computes {describe(owner)}, and {str(node.target)!r}, which is not given that, finds it",
                    reason=" A graph knows what it hands over: make it an argument, or choose a site outside the "
                    "module that computes it.",
                    line="",
                )
        if beside:
            node.meta[BESIDE] = tuple(owner.name for owner in beside)

    def compare(self, tensors: list[Tensor], made: bool = False) -> None:
        """Note that opened code asks whether tensors are one, or which one each of them is.

        Args:
            tensors: those that are known.
            made: whether another one of those that are compared was made by a call.

        Raises:
            CaptureError: they are not all inputs, or tensors of the model's: a graph has a tensor for each value.
        """
        with self.session.unrecorded():
            of_call = [(t, self.ledger.node_of(t)) for t in tensors if id(t) not in self.ledger.owned]
            one = len(tensors) > 1 and all(t is tensors[0] for t in tensors)  # by the code, in every call
            of_inputs = self.shared and of_call and is_given(of_call[0][1])
            self.tied |= len(of_call) < len(tensors)
            if not of_call or (one and not of_inputs):
                return
            given = sum(is_given(node) for _, node in of_call)
            may_be_one = any(
                self.ledger.aliases.may_be_one(*two) for two in itertools.combinations(of_call, 2)
            )
            if made or (given < len(of_call) and (may_be_one or len(tensors) == 1)):
                raise self.session.refuse(
                    "it asks whether two tensors are one",
                    reason=" A graph has a tensor for each value: compare something else, or choose a site outside "
                    "that module, so that it stays closed.",
                )
        self.compared = self.compared or given > 1 or len(tensors) == 1

    def adopt(self, value: Any, node: fx.Node, what: Callable[..., Any]) -> Any:
        """The result of a closed module or function, as opened code gets it; its layout is relied on.

        Of a tensor, only where it might be None in another call, which no operation may ever notice.
        """
        adopted = self.session.call_unrecorded(self.ledger.adopt, value, node)
        if isinstance(value, bool):
            self.nodes.assume(node, value)
        elif not isinstance(value, (Tensor, np.ndarray)) and type(value) not in READ_IN_EVERY_CALL:
            self.nodes.assume_layout(node, value)  # an array is made anew, as of masks that are drawn
        elif isinstance(value, Tensor) and may_return_none(what):
            self.nodes.assume_layout(node, value)
        return adopted

    def record(self, call: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function of torch and make its node; its result as opened code gets it."""
        args = tuple(args)
        before = self._identities(args)
        kind = "call_method" if call.kind == "method" else "call_function"
        node, value = self.call(kind, call.target, func, args, kwargs)
        self.nodes.name(node)
        if isinstance(value, Tensor):
            owner = before.get(id(value), value)
            if self.ledger.knows(owner) and not writes(
                node
            ):  # handed on as it is, and in another call perhaps a copy
                owner = self.session.call_unrecorded(self.ledger.aliases.made_of, value)
            self.ledger.claim(owner, node)  # what was written in place is the result from now on
            return owner
        if isinstance(value, (tuple, list)) and not isinstance(value, Size):
            return self._several(value, node)
        if isinstance(value, (int, float, str, torch.dtype, torch.device, Size)):
            found = self.answers.tracked(value, lambda: node)
            return doubtful(found) if is_unknown_node(node) and call.target in operations.SIZED else found
        return value

    def _several(self, value: Any, node: fx.Node) -> Any:
        """Several results, each a site of its own."""
        if type(value) in (tuple, list):  # its length may depend on a size, as that of split
            self.nodes.assume(self.nodes.once(len, node, value=len(value)), len(value))
        value = self.ledger.adopt(value, node)
        for i, entry in enumerate(value):
            if isinstance(entry, Tensor):
                self.nodes.name(self.ledger.entry(node, (("item", i),)))
        return value

    def _identities(self, args: Any) -> dict[int, Tensor]:
        """The tensors of the model among the arguments, by the identity of the fakes that stand for them."""
        owned = (t for t in tensors_in(args) if id(t) in self.ledger.owned)
        return {id(self.ledger.fake(t)): t for t in owned}


def _among(handed: dict[Any, tuple[Any, Any]], places: frozenset[int]) -> tuple[tuple[Any, int], ...]:
    """The nodes in arguments that hold memory at ``places``, as `graphaug.capture.dataflow.WRITTEN` tells them.

    Args:
        handed: every argument by its index or keyword: as opened code gave it, and as the graph has it.
        places: addresses of memory.
    """
    found = []
    for key, (argument, lowered) in handed.items():
        for place, node in enumerate(nodes_in(lowered)):
            value = value_of(node)
            if not places.isdisjoint(memories_of(argument if value is UNKNOWN else value)):
                found.append((key, place))
    return tuple(found)
