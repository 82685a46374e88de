"""Proxies that carry example values: what lets opened code look at its inputs while it is captured."""

from __future__ import annotations

import dis
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import fx

from graphaug.capture.user_code import in_message, is_internal
from graphaug.errors import AssumptionViolated


class _Unknown:
    def __repr__(self) -> str:
        return "unknown"

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unknown:
        return self


UNKNOWN: Any = _Unknown()
"""The value of a node that nobody could compute: there was no example, or it depends on data."""


def value_of(node: fx.Node) -> Any:
    """The example value that capture found for ``node``, or ``UNKNOWN``."""
    return node.meta.get("value", UNKNOWN)


def assume(value: Any, expected: Any, what: str) -> None:
    """Raise ``AssumptionViolated`` unless a call sees the value that the capture relied on."""
    if value != expected:
        raise AssumptionViolated(
            f"this model was captured for {what} == {expected!r}, but this call has {value!r}. "
            "Call rewrite again with example_inputs like these."
        )


class ValueProxy(fx.Proxy):
    """A proxy that answers for its example value: its type, its truth, its length, its attributes.

    Whatever leaks into Python this way (``bool``, ``int``, ``len``, iteration) is recorded by the
    tracer as an assumption and checked when the captured model is called.
    """

    tracer: Any  # the one that captures; it builds on this file

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # isinstance(proxy, torch.Tensor) has to answer for the value
        value = value_of(self.node)
        if value is UNKNOWN:
            self._asked("asks for the type of")
            return ValueProxy
        return type(value)

    def _asked(self, verb: str) -> None:
        """Refuse a question that opened code asks of a value that nobody knows."""
        if not is_internal(sys._getframe(2).f_code.co_filename):
            raise self.tracer.refuse(f"it {verb} {describe(self.node)}", unknown=True)

    def __getattr__(self, name: str) -> Any:
        value = value_of(self.node)
        if value is UNKNOWN:
            if name in ("dtype", "device"):  # no methods; what they are looked up in has to be seen
                return self.tracer.create_proxy("call_function", getattr, (self, name), {})
            return super().__getattr__(name)
        if name.startswith("_"):
            return getattr(value, name)  # protocol look-ups (numpy, dataclasses), never data
        attribute = getattr(value, name)  # AttributeError is the right answer, hasattr relies on it
        if isinstance(value, Mapping) and name in ("keys", "values", "items"):
            return _MappingView(self, name)
        if callable(attribute) and not isinstance(attribute, (torch.Tensor, type)):
            return _Method(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __bool__(self) -> bool:
        return bool(self.tracer.leak(self, bool))

    def __int__(self) -> int:
        return int(self.tracer.leak(self, int))

    def __index__(self) -> int:
        return int(self.tracer.leak(self, operator.index))

    def __float__(self) -> float:
        return float(self.tracer.leak(self, float))

    def __len__(self) -> int:
        return int(self.tracer.leak(self, len))

    def __contains__(self, item: Any) -> bool:
        return bool(self.tracer.create_proxy("call_function", operator.contains, (self, item), {}))

    def __getitem__(self, index: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})

    def __iter__(self) -> Iterator[Any]:
        value = value_of(self.node)
        if isinstance(value, Mapping):
            return iter(_keys(self))
        if value is not UNKNOWN:
            return iter([self[i] for i in range(len(self))])
        wanted = _unpacked_into(sys._getframe(1))
        if wanted is not None:
            return iter([self[i] for i in range(wanted)])
        return iter(self.tracer.leak(self, len))  # raises: there is no value to ask

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("node", "tracer"):
            super().__setattr__(name, value)
        elif name == "requires_grad":  # the example may be no leaf where the real input is one
            self.tracer.create_proxy("call_method", "requires_grad_", (self, value), {})
        else:  # of the value it stands for: outputs.logits = ...
            self.tracer.create_proxy("call_function", setattr, (self, name, value), {})

    def __hash__(self) -> int:
        self._asked("looks up")
        return id(self)

    def __str__(self) -> str:
        if not in_message(sys._getframe(1)):
            self._asked("prints")
        return super().__str__()

    def __format__(self, spec: str) -> str:
        if not in_message(sys._getframe(1)):
            self._asked("prints")
        return super().__format__(spec)


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[ValueProxy, Any], Any]:
    def method(self: ValueProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


# `h += 1` changes h for every other name it has; Python's fallback, h = h + 1, would not
for _name in (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "iand",
    "ior",
    "ixor",
    "imatmul",
):
    setattr(ValueProxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Method:
    """A bound method of a proxy's value; calling it makes a node."""

    def __init__(self, proxy: ValueProxy, name: str) -> None:
        self.proxy, self.name = proxy, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.proxy.tracer.create_proxy("call_method", self.name, (self.proxy, *args), kwargs)


class _MappingView:
    """``keys``, ``values`` or ``items`` of a proxy whose value is a mapping."""

    def __init__(self, proxy: ValueProxy, name: str) -> None:
        self.proxy, self.name = proxy, name

    def __call__(self) -> list[Any]:
        keys = _keys(self.proxy)
        if self.name == "keys":
            return keys
        if self.name == "values":
            return [self.proxy[key] for key in keys]
        return [(key, self.proxy[key]) for key in keys]


def _keys(proxy: ValueProxy) -> list[Any]:
    value = value_of(proxy.node)
    names = proxy.tracer.create_proxy("call_function", list, (proxy,), {})
    proxy.tracer.assume(names.node, list(value))
    return list(value)


def _unpacked_into(frame: FrameType) -> int | None:
    """How many names the statement running in ``frame`` unpacks into, or None if it is no unpacking."""
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset == frame.f_lasti:
            return instruction.argval if instruction.opname == "UNPACK_SEQUENCE" else None
    return None


def describe(node: Any, deep: int = 3) -> str:
    """Spell a node as the expression it stands for: ``x.shape[2]``.

    Operations on tensors are followed ``deep`` levels, then named: in a residual network an expression would double in
    length with every block.
    """
    if isinstance(node, slice):
        bounds = [describe(b, deep) if b is not None else "" for b in (node.start, node.stop, node.step)]
        return ":".join(bounds[:2] if node.step is None else bounds)
    if not isinstance(node, fx.Node):
        return repr(node)
    if node.op in ("placeholder", "get_attr", "call_module"):
        return str(node.target)
    value = value_of(node)
    if isinstance(value, torch.Tensor) or (value is UNKNOWN and node.target not in _LOOKUPS):
        if deep == 0:
            return str(node.name)
        deep -= 1
    args = [describe(a, deep) for a in node.args]
    if node.op == "call_function":
        if node.target is getattr:
            return f"{args[0]}.{node.args[1]}"
        if node.target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        symbol = _INFIX.get(node.target)  # type: ignore[arg-type]
        if symbol and len(args) == 2:
            return f"{args[0]} {symbol} {args[1]}"
        return f"{getattr(node.target, '__name__', node.target)}({', '.join(args)})"
    if node.op == "call_method":
        return f"{args[0]}.{node.target}({', '.join(args[1:])})"
    return str(node.target)


_LOOKUPS = (getattr, operator.getitem)

_INFIX = {
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.mod: "%",
    operator.floordiv: "//",
    operator.truediv: "/",
}
