"""What opened code asks of a tensor without computing: sizes, types, lengths, single numbers; and what it assigns."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Size, Tensor, fx, nn

from graphaug import torch_private
from graphaug.capture.dataflow import why_unknown
from graphaug.capture.recording.answers import RecordedAnswers
from graphaug.capture.recording.calls import operations
from graphaug.capture.recording.ledger import Ledger
from graphaug.capture.recording.nodes import Nodes, is_fact, is_unknown_node
from graphaug.capture.recording.session import Session
from graphaug.capture.recording.values.tracked import DATA, doubtful
from graphaug.capture.user_code import OF_THAT_CALL, in_message
from graphaug.capture.values import describe, value_of

_SPELLED = ("__repr__", "__str__", "__dir__", "__hash__")
"""Methods that tell about the tensor as a Python object, and nothing of what it is in another call."""
_TOLD = ("__format__", "__len__", "item", "__bool__", "__int__", "__index__", "__float__", "__complex__")
"""Methods whose answer is a number, or says one."""
_UNTRACKED = ("grad_fn", "layout", "grad", "_version", "names", "_backward_hooks", "__dict__", "_base")
"""Attributes that opened code gets as they are."""
_OF_THE_OBJECT = ("grad", "_version", "_base", "_backward_hooks", "__dict__")
"""Those that tell of one tensor in one call, and not of what stands for it in another; two also of the model's own."""


class Questions:
    """Answers what opened code asks of its tensors; facts of the model as they are, all else as the graph finds it."""

    def __init__(self, session: Session, nodes: Nodes, ledger: Ledger, answers: RecordedAnswers) -> None:
        self.session, self.nodes, self.ledger, self.answers = session, nodes, ledger, answers

    def method(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a method of a tensor, the first of ``args``; NotImplemented if it is an operation.

        Raises:
            CaptureError: the answer depends on data.
        """
        tensor = args[0]
        if name in _TOLD and (told := in_message()):
            return self._told(name, tensor, told)
        if name == "__format__":
            raise self.session.refuse(
                f"it makes a text of the data in {describe(self.ledger.node_of(tensor))}",
                reason=" Make it inside of the print or the logger's call, or choose a site outside that module.",
            )
        if name in _SPELLED:
            return self.session.call_unrecorded(getattr(Tensor, name), *args, **kwargs)
        if name == "__len__":
            return self.length(tensor)
        if name == "size":
            shape = self.attribute(tensor, "shape")
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return shape if dim is None else shape[dim]
        if name == "item":
            return self._item(tensor)
        if name == "__bool__" and (certain := self._certain(tensor)) is not None:
            return certain
        if name in ("__index__", "__int__") and (number := self._of_sizes(tensor)) is not None:
            return number
        if name in operations.DATA_METHODS:
            raise self.data(operations.DATA_METHODS[name], tensor)
        return NotImplemented

    def data(self, verb: str, tensor: Any) -> Exception:
        """The refusal of a question about data."""
        if isinstance(tensor, Tensor):
            return self.session.depends(self.ledger.node_of(tensor), verb)
        return self.session.refuse(f"it {verb} the data in {tensor!r}")

    def _told(self, name: str, tensor: Tensor, when: str) -> Any:
        """Something to say in a message that nobody reads: it makes no node, and nothing relies on it."""
        if name == "__format__":
            return OF_THAT_CALL if when == "later" else self.session.call_unrecorded(repr, tensor)
        if name == "__len__":
            return self.session.call_unrecorded(len, self.ledger.evaluable(tensor))
        kinds = {"__bool__": False, "__int__": 0, "__index__": 0, "__complex__": complex(math.nan)}
        return kinds.get(name, 0 if name == "item" and not tensor.is_floating_point() else math.nan)

    def length(self, tensor: Tensor) -> int:
        """The size of the first dimension, which the graph then relies on."""
        node = self.ledger.node_of(tensor)
        length: int = self.session.call_unrecorded(len, self.ledger.evaluable(tensor))
        self._known(node, "takes the length of")
        self.nodes.assume(self.nodes.once(len, node, value=length), length)
        return length

    def attribute(self, tensor: Tensor, name: str) -> Any:
        """Read an attribute."""
        node, held = self.ledger.node_of(tensor), self.ledger.evaluable(tensor)
        if name in _OF_THE_OBJECT and (not is_fact(node) or name in ("grad", "_version")):
            raise self.session.refuse(
                f"it reads {describe(node)}.{name}, which may be another in each call",
            )
        value = self.session.call_unrecorded(getattr, held, name)
        if name in ("shape", "ndim") and is_fact(node):
            # a number, so that what is made of it is one: checked, as a parameter may be exchanged for a longer one
            self.nodes.assume(self.nodes.attribute(node, name), tuple(value) if name == "shape" else value)
            return value
        if name == "shape":
            return self._shape(value, node)
        if name == "requires_grad" and (is_fact(node) or name in node.meta):
            return self._wants_gradient(tensor, node)
        if name == "grad_fn" and value is not None:
            raise self.session.refuse(
                f"it reaches into the backward graph by {describe(node)}.grad_fn, which is another in each call"
            )
        if isinstance(value, Tensor):
            made = self.nodes.create("call_function", getattr, (node, name), {})
            self.nodes.note_value(made, value)
            self.ledger.claim(value, made)
            return value
        if name in _UNTRACKED or (type(value) is int and is_fact(node)):
            return value
        if type(value) is bool and not is_fact(node):
            self._known(node, "asks about")
        if isinstance(value, (int, float, torch.dtype, torch.device)):
            return self.answers.tracked(value, lambda: self.nodes.attribute(node, name))
        return value

    def assign(self, tensor: Tensor, name: str, value: Any) -> None:
        """Assign to an attribute.

        Raises:
            CaptureError: of the model's own tensor, or one that a graph cannot set.
        """
        node = self.ledger.node_of(tensor)
        if is_fact(node) or name not in ("requires_grad", "data"):
            in_place = (
                " Write into it in place, as by .data.copy_(...),"
                if name == "data"
                else " A graph cannot hold it;"
            )
            way = f"{in_place} or choose a site outside that module, so that it stays closed."
            raise self.session.refuse(f"it assigns to {describe(node)}.{name}", reason=way)
        if name == "requires_grad":
            self.session.call_unrecorded(self.ledger.evaluable(tensor).requires_grad_, value)
            self.nodes.create("call_method", "requires_grad_", (node, value), {})
        else:
            self.session.call_unrecorded(setattr, tensor, name, self.ledger.evaluable(value))
            self.nodes.create("call_function", setattr, (node, name, self.ledger.lower(value)), {})

    def _wants_gradient(self, tensor: Tensor, node: fx.Node) -> bool:
        """Whether a tensor of the model or an input requires a gradient: as it is, whatever its fake does.

        In eval mode the model's own are taken to: code that does something else without gradients, as with kernels for
        inference alone, is left to the original.
        """
        if not is_fact(node):
            value = bool(node.meta["requires_grad"])
        else:
            floating = tensor.is_floating_point() and isinstance(tensor, nn.Parameter)
            value = tensor.requires_grad or (floating and not self.session.training)
        asked = self.nodes.once(getattr, node, "requires_grad", value=value)
        self.nodes.vary(asked)  # a parameter may be frozen later
        self.nodes.assume(asked, value)
        return value

    def _shape(self, shape: Size, node: fx.Node) -> Size:
        sizes = self.answers.sizes(shape, lambda: self.nodes.attribute(node, "shape"))
        return Size(map(doubtful, sizes)) if is_unknown_node(node) else sizes

    def _item(self, tensor: Tensor) -> Any:
        """The number in a tensor: known where the tensor is a constant, and only to run on where inputs tell it."""
        lowered = self.ledger.node_of(tensor)
        try:
            value: Any = self.session.call_unrecorded(Tensor.item, self.ledger.evaluable(tensor))
        except Exception:  # a fake has none
            value = DATA
        node = self.nodes.create("call_method", "item", (lowered,), {})
        self.nodes.note_value(node, value, "its value depends on data" if value is DATA else "")
        if value is DATA and (known := self._integers(tensor)) is not None:
            return doubtful(self.answers.tracked(known, lambda: node))
        return self.answers.tracked(value, lambda: node)

    def _of_sizes(self, tensor: Tensor) -> int | None:
        """The number in a tensor that sizes alone tell, ``torch.tensor([x.shape[0]])``; the graph relies on it."""
        node = self.ledger.node_of(tensor)
        known = None if node in self.nodes.of_data() else self._integers(tensor)
        if type(known) is not int:
            return None
        item = self.nodes.create("call_method", "item", (node,), {})
        item.meta["value"] = known
        self.nodes.assume(item, known)
        return known

    def numbers(self, tensor: Tensor) -> Any:
        """The integers of a tensor as lists, which the graph reads in every call; how many there are it relies on.

        Raises:
            CaptureError: the inputs do not tell them.
        """
        known = self._integers(tensor)
        if known is None:
            raise self.data(operations.DATA_METHODS["tolist"], tensor)
        held = self.ledger.node_of(tensor)
        self.nodes.assume(self.nodes.attribute(held, "shape"), tuple(tensor.shape))
        node = self.nodes.create("call_method", "tolist", (held,), {})
        self.nodes.note_value(node, DATA, "its values depend on data")

        def read(values: Any, keys: tuple[Any, ...]) -> Any:
            if isinstance(values, list):
                return [read(inner, (*keys, ("item", i))) for i, inner in enumerate(values)]
            return doubtful(self.answers.tracked(values, lambda: self.ledger.entry(node, keys)))

        return read(known, ())

    def _integers(self, tensor: Tensor) -> Any:
        """The integers in a tensor on the example, as Python has them, if its inputs alone tell them; else None."""
        if tensor.dtype == torch.bool:  # an answer, and none to run on
            return None
        with torch_private.without_fakes():
            known = self.session.call_unrecorded(self.ledger.integers, tensor)
            return None if known is None else self.session.call_unrecorded(known.tolist)

    def _known(self, node: fx.Node, verb: str) -> None:
        if is_unknown_node(node):
            raise self.session.refuse(
                f"it {verb} {describe(node)}, which depends on data", reason=why_unknown(node)
            )

    def _certain(self, tensor: Tensor) -> bool | None:
        """Whether ``torch.rand(...) < number`` holds for every draw from [0, 1), or for none; else None."""
        node = self.ledger.node_of(tensor)
        if node.target is not operator.lt or not isinstance(node.args[0], fx.Node):
            return None
        draw, bound = node.args
        value = value_of(bound) if isinstance(bound, fx.Node) else bound
        if draw.target is not torch.rand or not isinstance(value, (int, float)) or 0 < value < 1:  # type: ignore[union-attr]
            return None
        if isinstance(bound, fx.Node):
            self.nodes.assume(bound, value)
        return bool(value >= 1)
