"""The nodes of a recorded graph: how they are made, valued and named, and which of them the graph relies on."""

from __future__ import annotations

import builtins
import contextlib
import copy
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from graphaug import torch_private
from graphaug.capture.dataflow import reads_metadata
from graphaug.capture.names import CONSTANTS, PLAIN_NAMES, Assumption, mark
from graphaug.capture.recording.session import Session
from graphaug.capture.recording.values.layouts import PLAIN_TENSORS, TELL, layout, portrait
from graphaug.capture.recording.values.structures import snapshot
from graphaug.capture.recording.values.watched import Asked
from graphaug.capture.regions import IS_GRAD_ENABLED, SETS_A_MODE
from graphaug.capture.target import Target
from graphaug.capture.values import UNKNOWN, assume, describe, value_of

_VALUED = {assume, mark, *TELL, torch_private.set_grad_enabled, IS_GRAD_ENABLED, builtins.len}
"""Targets whose nodes need no example value to be known."""
_UNNAMED = _VALUED | {getattr}


class Nodes:
    """A graph in the making.

    Attributes:
        graph: the graph.
        assumptions: what it relies on, by the node whose value is checked in every call.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.graph = torch_private.graph_without("self")  # a parameter of the code that is generated
        self.assumptions: dict[fx.Node, Assumption] = {}
        self._from_input: set[fx.Node] = set()
        self._of_model: set[fx.Node] = set()
        self._relied: set[fx.Node] = set()
        self._reads: dict[tuple[Any, ...], fx.Node] = {}
        self._answered: set[str] = set()

    # --- making ---------------------------------------------------------------------------------

    def create(self, kind: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        """Make a node; that of a look-up in a known value has a value at once."""
        node = self.graph.create_node(kind, target, args, kwargs)
        if kind == "call_function" and target in SETS_A_MODE:
            self._answered.clear()  # what was said before it may be another answer
        if kind == "placeholder" or any(n in self._from_input for n in node.all_input_nodes):
            self._from_input.add(node)
        if any(n in self._of_model for n in node.all_input_nodes):
            self._of_model.add(node)
        if kind == "call_function" and target in (getattr, operator.getitem):
            with contextlib.suppress(Exception):
                operands: list[Any] = [value_of(a) if isinstance(a, fx.Node) else a for a in node.args]
                held, key = operands
                if held is not UNKNOWN and not isinstance(held, Tensor):
                    node.meta["value"] = held[key] if target is operator.getitem else getattr(held, key)
        return node

    def fact(self, name: str, value: Any) -> fx.Node:
        """A node for what the model, or the graph itself, owns under a name."""
        node = self.create("get_attr", name, (), {})
        node.meta["value"] = value
        if isinstance(value, Tensor) and not name.startswith(CONSTANTS):
            self._of_model.add(node)
        return node

    def once(self, function: Any, *args: Any, value: Any = UNKNOWN) -> fx.Node:
        """A call of a function that only reads its arguments, made once."""
        key = (function, *((type(a), a) for a in args))  # True is no 1
        if key not in self._reads:
            node = self._reads[key] = self.create("call_function", function, args, {})
            if value is not UNKNOWN:
                node.meta["value"] = value
        return self._reads[key]

    def attribute(self, node: fx.Node, name: str) -> fx.Node:
        """The node of an attribute of a node's value, made once."""
        held = value_of(node)
        value = self.session.call_unrecorded(getattr, held, name) if isinstance(held, Tensor) else UNKNOWN
        return self.once(getattr, node, name, value=value)

    def note_value(self, node: fx.Node, value: Any, why_unknown: str = "") -> None:
        """Note a node's example value; unknown if it, or what it is made of, depends on data."""
        if why_unknown:
            node.meta["unknown_because"] = why_unknown
        elif not any(map(is_unknown_node, node.all_input_nodes)):
            node.meta["value"] = snapshot(value)  # the forward may take entries out of it

    def name(self, node: fx.Node) -> None:
        """Name an operation as a site of the module that runs."""
        frames = self.session.frames
        if not frames or node.target in _UNNAMED:
            return
        frame = frames[-1]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "op")
        name = PLAIN_NAMES.get(node.target, name.strip("_"))
        count = frame.ops[name]
        frame.ops[name] += 1
        node.meta["site"] = Target(frame.path, f"{name}_{count}" if count else name, frame.call, "after")

    # --- what the graph relies on -----------------------------------------------------------------

    def assume(self, node: fx.Node, expected: Any) -> None:
        """Record that the graph relies on ``node`` having this value, and check it in every call.

        What comes from the model's tensors alone is checked as well, and is none of the plan's assumptions: those are
        about inputs. Anything else is a constant of the graph.
        """
        if node in self.assumptions or node in self._relied:
            return
        if node in self._from_input:
            self._check(node, expected, describe(node))
        elif node in self._of_model:
            self._relied.add(node)
            self.create("call_function", assume, (node, copy.copy(expected), describe(node)), {})

    def assume_answer(self, function: Any, args: tuple[Any, ...], expected: Any, what: str) -> None:
        """Record that the graph relies on what a function of torch says of its modes."""
        if what not in self._answered:
            self._answered.add(what)
            self._check(self.create("call_function", function, args, {}), expected, what)

    def assume_layout(self, node: fx.Node, value: Any, asked: Asked | None = None) -> None:
        """Record that the graph relies on what is where in a nested value; of a dict, on what was asked of it."""
        found = layout(value, asked=asked)
        made = self.create("call_function", layout, (node,), {} if asked is None else {"asked": asked})
        made.meta["value"] = found
        self.assume(made, found)

    def assume_objects(
        self, nodes: dict[str, fx.Node], inputs: Mapping[str, Any], asked: tuple[Any, ...]
    ) -> None:
        """Record that the graph relies on what the tensors in its inputs are as objects; see `portrait`."""
        with self._behind(list(nodes.values())[-1]):
            made = self.create("call_function", portrait, (nodes, *asked), {})
            made.meta["value"] = portrait(inputs, *asked)
            self._check(made, made.meta["value"], "the tensors given")
        if made.meta["value"] == PLAIN_TENSORS:  # as nearly all are: nothing to tell in a plan
            del self.assumptions[made]

    def assume_asked(self, node: fx.Node, value: Any, asked: Asked | None) -> None:
        """The same of an input, once it is known what was asked of it: checked before anything is computed."""
        with self._behind(node):
            self.assume_layout(node, value, asked)

    @contextlib.contextmanager
    def _behind(self, node: fx.Node) -> Iterator[None]:
        """A context for what is relied on of an input once the forward was recorded: checked before all else."""
        later, self.assumptions = self.assumptions, {}
        with self.graph.inserting_before(node.next):
            yield
        self.assumptions.update(later)

    def _check(self, node: fx.Node, expected: Any, what: str) -> None:
        self.assumptions[node] = Assumption(what, copy.copy(expected))
        told = (what, self.session.guessed, self.session.line())
        self.create("call_function", assume, (node, expected, *told), {})

    def vary(self, node: fx.Node) -> None:
        """Say that a node is no fact of the model: what is asked of it is checked."""
        self._from_input.add(node)

    def of_data(self) -> set[fx.Node]:
        """The nodes that depend on the data in the inputs and the model, not only on their sizes and types."""
        data: set[fx.Node] = set()
        for node in self.graph.nodes:
            given = node.op == "placeholder" or (node.op == "get_attr" and isinstance(value_of(node), Tensor))
            if given or (not reads_metadata(node) and any(n in data for n in node.all_input_nodes)):
                data.add(node)
        return data


def is_fact(node: fx.Node) -> bool:
    """Whether a node is a tensor of the model: its sizes are facts, no assumptions."""
    return node.op == "get_attr"


def is_given(node: fx.Node) -> bool:
    """Whether a node is an input, or an entry of one."""
    while node.op == "call_function" and node.target in (operator.getitem, getattr):
        if not isinstance(node.args[0], fx.Node):
            return False
        node = node.args[0]
    return node.op == "placeholder"


def is_unknown_node(node: fx.Node) -> bool:
    """Whether a node's value on the example depends on data."""
    return "value" not in node.meta and node.op != "output" and node.target not in _VALUED
