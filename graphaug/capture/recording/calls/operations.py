"""How a call of torch, as a function mode sees it, becomes a node: which kind, which target, which name."""

from __future__ import annotations

import dis
import operator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """A call of torch.

    Attributes:
        kind: "function", "method", "get" (an attribute is read) or "set" (one is assigned).
        target: the function, or the name of the method or attribute.
        swapped: whether the first two arguments change places: ``1 - h`` arrives as a method of ``h``.
    """

    kind: str
    target: Any
    swapped: bool = False


_DUNDERS = {
    "__getitem__": operator.getitem, "__setitem__": operator.setitem, "__floordiv__": operator.floordiv,
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor, "__invert__": operator.invert,
    "__eq__": operator.eq, "__ne__": operator.ne, "__lt__": operator.lt, "__le__": operator.le,
    "__gt__": operator.gt, "__ge__": operator.ge, "__mod__": operator.mod, "__pow__": operator.pow,
    "__lshift__": operator.lshift, "__rshift__": operator.rshift, "__delitem__": operator.delitem,
    "__iand__": operator.iand, "__ior__": operator.ior, "__ixor__": operator.ixor, "__ipow__": operator.ipow,
    "__ilshift__": operator.ilshift, "__irshift__": operator.irshift, "__ifloordiv__": operator.ifloordiv,
    "__imod__": operator.imod, "__pos__": operator.pos, "__abs__": operator.abs, "__matmul__": operator.matmul,
}  # fmt: skip
_SWAPPED = {
    "__radd__": operator.add, "__rsub__": operator.sub, "__rmul__": operator.mul, "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv, "__rpow__": operator.pow, "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod, "__rmatmul__": operator.matmul, "__rand__": operator.and_, "__ror__": operator.or_,
    "__rxor__": operator.xor, "__rlshift__": operator.lshift, "__rrshift__": operator.rshift,
}  # fmt: skip
# Tensor's own slots arrive as the methods that implement them; whether an operator was written tells the instruction
_WRITTEN = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "true_divide": operator.truediv, "matmul": operator.matmul, "remainder": operator.mod, "pow": operator.pow,
    "neg": operator.neg, "gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le,
    "eq": operator.eq, "ne": operator.ne, "add_": operator.iadd, "sub_": operator.isub, "mul_": operator.imul,
    "div_": operator.itruediv, "remainder_": operator.imod, "pow_": operator.ipow,
}  # fmt: skip
# some arrive as functions of Python's, which have the name of another method: Tensor.__pow__ that of pow
_BY_FUNCTION = {
    getattr(Tensor, name): operator for name, operator in _DUNDERS.items() if hasattr(Tensor, name)
}
_OPERATORS = ("BINARY_", "COMPARE_", "UNARY_", "INPLACE_")


def classify(function: Any, frame: FrameType | None) -> Call:
    """What a function mode was called with; ``frame`` is the code that called torch."""
    name = getattr(function, "__name__", "")
    if name in ("__get__", "__set__", "__delete__"):
        owner = function.__self__
        attribute = getattr(owner, "__name__", None) or getattr(getattr(owner, "fget", None), "__name__", "")
        return Call({"__get__": "get", "__set__": "set", "__delete__": "delete"}[name], attribute)
    if getattr(Tensor, name, None) is not function:
        return Call("function", _BY_FUNCTION.get(function, function))
    if name in _SWAPPED:
        return Call("function", _SWAPPED[name], swapped=True)
    if name in _DUNDERS:
        return Call("function", _DUNDERS[name])
    if name in _WRITTEN and frame is not None and _is_operator(frame):
        return Call("function", _WRITTEN[name])
    return Call("method", name)


def _is_operator(frame: FrameType) -> bool:
    """Whether the instruction that runs in a frame is an operator, and no call."""
    code = frame.f_code.co_code
    return 0 <= frame.f_lasti < len(code) and dis.opname[code[frame.f_lasti]].startswith(_OPERATORS)


DATA_METHODS = {
    "__bool__": "branches on", "__int__": "needs the number in", "__index__": "needs the number in",
    "__float__": "needs the number in", "__complex__": "needs the number in", "tolist": "needs the numbers in",
    "numpy": "hands to numpy", "__array__": "hands to numpy", "__contains__": "looks for a value in",
    "is_nonzero": "branches on", "data_ptr": "asks for the address of", "untyped_storage": "takes the storage of",
    "storage": "takes the storage of", "__deepcopy__": "copies", "__reduce_ex__": "pickles", "__dlpack__": "exports",
    "__dlpack_device__": "exports", "backward": "runs a backward from", "__cuda_array_interface__": "exports",
    "__torch_dispatch__": "dispatches", "share_memory_": "shares",
}  # fmt: skip
"""Methods of a tensor that a graph cannot hold, with what they do to it."""

SIZED = {"numel", "nelement", torch.numel}
"""Counts that say how large a tensor is, and so how large data made it."""

WITHOUT_GRAPH = {torch.equal: "compares", torch.allclose: "compares", torch.is_nonzero: "branches on"}
"""Functions whose answer is a Python value that depends on data."""
