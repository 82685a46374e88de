"""How a graph makes the objects that a forward makes: by their class, of what they hold."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx

from graphaug.capture.recording.nodes import Nodes
from graphaug.capture.recording.session import Session
from graphaug.capture.recording.values.inside import attributes_of
from graphaug.capture.recording.values.remade import Remade, can_be_remade
from graphaug.capture.recording.values.structures import holds, set_afterwards
from graphaug.capture.values import extended
from graphaug.errors import an


class Ledger(Protocol):
    """What knows where values come from."""

    session: Session
    nodes: Nodes

    def lower(self, value: Any) -> Any:
        """What a node holds for a value of opened code."""

    def constant(self, kind: str, value: Any) -> fx.Node:
        """The node of an object that no module owns."""

    def is_made(self, value: Any) -> bool:
        """Whether a value is a tensor or a number of this call."""


class Objects:
    """Makes nodes of objects.

    Args:
        ledger: makes those of what they hold.

    Attributes:
        made_it: tells whether the forward has made an object itself.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.made_it: Callable[[Any], bool] = lambda _: False
        self._remade: dict[int, tuple[Any, fx.Node, dict[str, Any]]] = {}
        self._within: list[Any] = []

    def lower(self, value: Any) -> Any:
        """What a node holds for an object.

        Raises:
            CaptureError: it holds itself.
        """
        lower, create = self._ledger.lower, self._ledger.nodes.create
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            args = tuple(map(lower, value))
        elif isinstance(value, dict) and hasattr(value, "__dataclass_fields__"):
            # a ModelOutput of transformers; its None fields stay out
            kwargs = {k: lower(v) for k, v in value.items() if v is not None}
            late = set_afterwards(value.__dataclass_fields__, kwargs)
            if late:  # set after it was made, and its values are in this order
                at_once = {k: v for k, v in kwargs.items() if k not in late}
                made = create("call_function", type(value), args, at_once)
                return create("call_function", extended, (made, late), {})
        elif isinstance(value, OrderedDict):
            args = ({k: lower(v) for k, v in value.items()},)
        elif isinstance(value, (int, float, str)):  # enumerations, subclasses of str
            return value
        elif isinstance(value, type) or not holds(value, self._ledger.is_made):
            return self._ledger.constant("object", value)
        elif dataclasses.is_dataclass(value):
            given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            kwargs = {name: self._as_it_was(entry, lower(entry)) for name, entry in given.items()}
        elif self.made_it(value) and can_be_remade(value):
            return self._made_again(value)
        else:
            return self._ledger.constant("object", value)
        return create("call_function", type(value), args, kwargs)

    def _as_it_was(self, value: Any, lowered: Any) -> Any:
        """What a node holds for an entry of an object: of a size, which nodes hold as a tuple, a size again."""
        if not isinstance(value, torch.Size):
            return lowered
        return self._ledger.nodes.create("call_function", torch.Size, (lowered,), {})

    def _made_again(self, value: Any) -> fx.Node:
        """The node of an object with what it holds by now: one, for as long as it holds that."""
        if any(outer is value for outer in self._within):
            raise self._ledger.session.refuse(f"it hands on {an(value)} that holds itself")
        self._within.append(value)
        attributes = dict(attributes_of(value) or {})
        held = {name: self._ledger.lower(entry) for name, entry in attributes.items()}
        self._within.pop()
        kept, node, before = self._remade.get(id(value), (None, None, {}))
        if kept is None or node is None or before != held:
            make = Remade(type(value))
            whole = {name: self._as_it_was(attributes[name], entry) for name, entry in held.items()}
            node = self._ledger.nodes.create("call_function", make, (whole,), {})
            self._ledger.nodes.note_value(node, make(attributes))
            self._remade[id(value)] = (value, node, held)  # kept alive: its id is its name
        return node
