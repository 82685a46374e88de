"""Numbers, dtypes and devices that opened code reads off its tensors, and the questions it asks of them.

A recorded forward runs on fake tensors, which *are* tensors. What must not become a constant of the graph are the
things that it reads off them: a size, a dtype, a device. They are objects that remember where they come from.
Arithmetic on them is arithmetic in the graph; whatever needs the value itself (a branch, ``range``, ``hash``, a
look-up, a format) gets it, and the graph then checks in every call that it is the same.

No C code believes them to be something that they are not: torch sees its own ``SymInt`` and ``SymFloat``, or an object
with ``__torch_function__``, and hands the call to the recorder; everything else has to go through a method below.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphaug.capture.user_code import in_message

Recorder = Any  # what records; it builds on this file


class _Unknown:
    def __repr__(self) -> str:
        return "unknown"


DATA: Any = _Unknown()
"""The value of a number that depends on data: ``x.max().item()``."""


class Tracked:
    """Something that was read off a tensor: its value on the example, and a node that reads it in every call."""

    _recorder: Recorder
    _value: Any
    _make: Callable[[], fx.Node]
    _made: fx.Node | None
    _doubtful: bool = False
    """Whether the value on the example may depend on data: it is good enough to run on, and no answer to a question."""

    def _set(self, recorder: Recorder, value: Any, make: Callable[[], fx.Node]) -> None:
        object.__setattr__(self, "_recorder", recorder)
        object.__setattr__(self, "_value", value)
        object.__setattr__(self, "_make", make)
        object.__setattr__(self, "_made", None)

    def _fx_node(self) -> fx.Node:
        """The node that reads it; made when it is first needed, so that what is not needed leaves nothing behind."""
        if self._made is None:
            object.__setattr__(self, "_made", self._make())
        assert self._made is not None
        return self._made

    def _ask(self, verb: str = "needs the number") -> Any:
        """The value itself; from here on the graph holds for that value only."""
        return self._recorder.ask(self, verb)


def _binary(function: Callable[..., Any], reverse: bool = False) -> Any:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        return self._recorder.derived(function, (other, self) if reverse else (self, other))

    return method


def _unary(function: Callable[..., Any]) -> Any:
    return lambda self: self._recorder.derived(function, (self,))


def _comparison(function: Callable[..., Any]) -> Any:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        return self._recorder.answer(function, (self, other))

    return method


class _Number(Tracked):
    """What integers and floats have in common."""

    def __bool__(self) -> bool:
        return bool(self._recorder.answer(operator.ne, (self, 0)))

    def __int__(self) -> int:
        return int(self._ask())

    def __index__(self) -> int:
        return operator.index(self._ask())

    def __float__(self) -> float:
        return float(self._ask())

    def __complex__(self) -> complex:
        return complex(self._ask())

    def __hash__(self) -> int:
        return hash(self._ask())

    def __repr__(self) -> str:
        return repr(self._value if in_message(sys._getframe(1)) else self._ask())

    def __str__(self) -> str:
        return str(self._value if in_message(sys._getframe(1)) else self._ask())

    def __format__(self, spec: str) -> str:
        return format(self._value if in_message(sys._getframe(1)) else self._ask(), spec)

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._ask(), digits) if digits is not None else round(self._ask())

    def __trunc__(self) -> int:
        return math.trunc(self._ask())  # type: ignore[no-any-return]

    def __floor__(self) -> int:
        return math.floor(self._ask())  # type: ignore[no-any-return]

    def __ceil__(self) -> int:
        return math.ceil(self._ask())  # type: ignore[no-any-return]

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self._ask()), (self._value,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._ask(), name)  # bit_length, is_integer, real

    @property
    def node(self) -> Any:
        """What torch's own C code asks a SymInt for, past every recorded function: the value as a constant."""
        import sympy

        from graphaug.torch_private import ShapeEnv

        value = self._ask()
        if isinstance(value, int):
            return ShapeEnv().create_symintnode(sympy.Integer(value), hint=value).node  # type: ignore[union-attr]
        return ShapeEnv().create_symfloatnode(sympy.Float(value), hint=value).node  # type: ignore[union-attr]


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(_Number, f"__{_name}__", _binary(getattr(operator, _name)))
    setattr(_Number, f"__r{_name}__", _binary(getattr(operator, _name), reverse=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(_Number, f"__{_name}__", _comparison(getattr(operator, _name)))
for _name in ("neg", "pos", "abs"):
    setattr(_Number, f"__{_name}__", _unary(getattr(operator, _name)))


class Int(_Number, torch.SymInt):  # type: ignore[misc, override]
    """An integer: a size, a rank, a product of sizes."""

    def __init__(self, recorder: Recorder, value: Any, make: Callable[[], fx.Node]) -> None:
        self._set(recorder, value, make)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # isinstance(h.shape[0], int) is true of the model
        return int


for _name in ("and", "or", "xor", "lshift", "rshift"):
    _function = getattr(operator, f"{_name}_" if _name in ("and", "or") else _name)
    setattr(Int, f"__{_name}__", _binary(_function))
    setattr(Int, f"__r{_name}__", _binary(_function, reverse=True))


class Float(_Number, torch.SymFloat):  # type: ignore[misc, override]
    """A floating-point number: a quotient of sizes, a scale of the module, an item of a tensor."""

    def __init__(self, recorder: Recorder, value: Any, make: Callable[[], fx.Node]) -> None:
        self._set(recorder, value, make)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return float


class Text(Tracked, str):
    """The type of a device, as a string whose comparisons are recorded."""

    def __new__(cls, recorder: Recorder, value: str, make: Callable[[], fx.Node]) -> Text:
        """Make one."""
        self = str.__new__(cls, value)
        self._set(recorder, value, make)
        return self

    def __eq__(self, other: object) -> bool:
        return bool(isinstance(other, str) and self._recorder.answer(operator.eq, (self, str.__str__(other))))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._ask())

    def __str__(self) -> str:
        return str(self._ask())

    def __format__(self, spec: str) -> str:
        return format(self._ask(), spec)

    def __contains__(self, part: Any) -> bool:
        return part in self._ask()

    def startswith(self, *args: Any) -> bool:
        """As `str.startswith`, of the value that the graph then relies on."""
        return bool(self._ask().startswith(*args))


class Handle(Tracked):
    """A dtype, a device, or what ``torch.finfo`` says of a dtype."""

    def __init__(self, recorder: Recorder, value: Any, make: Callable[[], fx.Node]) -> None:
        self._set(recorder, value, make)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._value)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What makes torch's argument parser accept it; the recorder's mode sees the call first."""
        return NotImplemented

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._recorder.attribute(self, name)

    def __eq__(self, other: object) -> bool:
        return bool(self._recorder.answer(operator.eq, (self, other)))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._ask("looks up"))

    def __repr__(self) -> str:
        return repr(self._ask("prints"))

    def __str__(self) -> str:
        return str(self._ask("prints"))

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self


def is_tracked(value: Any) -> bool:
    """Whether a value was read off a tensor; by its true type, since ``__class__`` answers for the value."""
    return type(value) in (Int, Float, Handle, Text)


def plain(value: Any) -> Any:
    """The value on the example, in nested tuples, lists, dicts and slices; containers without any are kept."""
    kind = type(value)
    if kind in (Int, Float, Handle, Text):
        return 0.5 if value._value is DATA else value._value
    if kind is torch.Size or kind is tuple or kind is list:
        new = [plain(v) for v in value]
        if all(a is b for a, b in zip(new, value, strict=True)):
            return value
        return torch.Size(new) if kind is torch.Size else kind(new)
    if kind is dict:
        filled = {k: plain(v) for k, v in value.items()}
        return value if all(filled[k] is value[k] for k in value) else filled
    if kind is slice:
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        new = [plain(v) for v in value]
        return value if all(a is b for a, b in zip(new, value, strict=True)) else kind(*new)
    return value


def unknown(value: Any) -> bool:
    """Whether a number depends on data."""
    return is_tracked(value) and (value._value is DATA or value._doubtful)


def doubtful(value: Any) -> Any:
    """The number, marked as one that may depend on data."""
    if is_tracked(value):
        object.__setattr__(value, "_doubtful", True)
    return value
