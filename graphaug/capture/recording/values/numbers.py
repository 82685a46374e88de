"""Integers and floats that remember where they come from: arithmetic on them is arithmetic in the graph."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from graphaug.capture.recording.values.tracked import DATA, Answers, Tracked, is_unknown
from graphaug.capture.user_code import OF_THAT_CALL, in_message
from graphaug.torch_private import ShapeEnv


def _as_python(number: Any) -> Any:
    """numpy's numbers as wide as Python's, which generated code spells otherwise, as those."""
    return number.item() if isinstance(number, (np.float64, np.int64)) else number


def _binary(function: Callable[..., Any], reverse: bool = False) -> Any:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        other = _as_python(other)
        return self._answers.derived(function, (other, self) if reverse else (self, other))

    return method


def _unary(function: Callable[..., Any]) -> Any:
    return lambda self: self._answers.derived(function, (self,))


def _comparison(function: Callable[..., Any]) -> Any:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        return self._answers.answer(function, (self, _as_python(other)))

    return method


_OF_NUMPY: dict[Any, Callable[..., Any]] = {
    **{np.add: operator.add, np.subtract: operator.sub, np.multiply: operator.mul, np.power: operator.pow},
    **{np.true_divide: operator.truediv, np.floor_divide: operator.floordiv, np.remainder: operator.mod},
    **{np.negative: operator.neg, np.absolute: operator.abs, np.sqrt: math.sqrt},
}


class _Number(Tracked):
    """What integers and floats have in common."""

    def __bool__(self) -> bool:
        return bool(self._answers.answer(operator.ne, (self, 0)))

    def _asked_or_told(self, unknown: float = math.nan) -> Any:
        """The value itself; what is only told in a message is nothing that the graph relies on."""
        if not in_message():
            return self._ask()
        return unknown if self._value is DATA else self._value

    def __int__(self) -> int:
        if in_message() or is_unknown(self):
            return int(self._asked_or_told(0))
        return int(self._whole(math.trunc)._ask())  # Python takes no number of ours for it

    def __index__(self) -> int:
        return operator.index(self._asked_or_told(0))

    def __float__(self) -> float:
        return float(self._asked_or_told())

    def __complex__(self) -> complex:
        return complex(self._asked_or_told())

    def __hash__(self) -> int:
        return hash(self._ask())

    def __repr__(self) -> str:
        return self._text(repr)

    def __str__(self) -> str:
        return self._text(str)

    def __format__(self, spec: str) -> str:
        return self._text(lambda value: format(value, spec))

    def _text(self, made: Callable[[Any], str]) -> str:
        return OF_THAT_CALL if in_message() == "later" else made(self._asked_or_told())

    def __round__(self, digits: int | None = None) -> Any:
        if digits is None and not in_message():
            return self._whole(round)
        return round(self._asked_or_told(), *(() if digits is None else (digits,)))

    def __trunc__(self) -> Any:
        return self._whole(math.trunc)

    def __floor__(self) -> Any:
        return self._whole(math.floor)

    def __ceil__(self) -> Any:
        return self._whole(math.ceil)

    def _whole(self, function: Callable[..., Any]) -> Any:
        """The whole number that a function makes of it, in the graph."""
        if is_unknown(self):
            return function(self._ask())
        return self if issubclass(type(self), Int) else self._answers.derived(function, (self,))

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """What numpy computes of it: arithmetic as Python's in the graph, all else of the value itself."""
        known = _OF_NUMPY.get(ufunc) if method == "__call__" and not kwargs else None
        if ufunc is np.sqrt and not issubclass(type(self), Int):  # of what is negative numpy makes a NaN
            known = None
        if known is not None and all(isinstance(x, (int, float, np.int64)) for x in inputs):
            return self._answers.derived(known, tuple(map(_as_python, inputs)))
        return getattr(ufunc, method)(*(x._ask() if isinstance(x, _Number) else x for x in inputs), **kwargs)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self._ask(), dtype)

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


class Int(_Number, torch.SymInt):  # type: ignore[override]
    """An integer: a size, a rank, a product of sizes."""

    def __init__(self, answers: Answers, value: Any, make: Callable[[], fx.Node]) -> None:
        self._set(answers, value, make)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # isinstance(h.shape[0], int) is true of the model
        return int


setattr(Int, "__invert__", _unary(operator.invert))  # noqa: B010 mypy takes SymInt to have none
for _name in ("and", "or", "xor", "lshift", "rshift"):
    _function = getattr(operator, f"{_name}_" if _name in ("and", "or") else _name)
    setattr(Int, f"__{_name}__", _binary(_function))
    setattr(Int, f"__r{_name}__", _binary(_function, reverse=True))


class Float(_Number, torch.SymFloat):  # type: ignore[misc, override]
    """A floating-point number: a quotient of sizes, a scale of the module, an item of a tensor."""

    def __init__(self, answers: Answers, value: Any, make: Callable[[], fx.Node]) -> None:
        self._set(answers, value, make)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return float
