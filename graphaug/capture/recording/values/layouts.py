"""What is where in a nested value, in words: what a graph relies on of inputs and results that are no tensors."""

from __future__ import annotations

import decimal
import enum
import fractions
import functools
import types
import uuid
import weakref
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphaug.capture.recording.relied.classes import can_be_watched
from graphaug.capture.recording.relied.facts import is_plain
from graphaug.capture.recording.values.structures import WATCHED_DEPTH, plain
from graphaug.capture.recording.values.tracked import is_tracked
from graphaug.capture.recording.values.watched import Asked
from graphaug.capture.values import UNSEEN

_NUMBERS = (
    *(int, float, range, fractions.Fraction, decimal.Decimal, np.generic, np.dtype),
    *(torch.layout, torch.memory_format),
)
_EMPTY_CELL = types.CellType()
PLAIN_TENSORS = "plain tensors, each by itself"
"""What `portrait` says of nothing special."""
_MODULES: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""A name for every module that was an input, which no other has."""


def layout(value: Any, depth: int = WATCHED_DEPTH, asked: Asked | None = None) -> str:
    """What is where in a nested value: ``(Tensor, None)``, ``Output{logits: Tensor}``.

    Args:
        value: the value.
        depth: how many containers deep to look.
        asked: of a dict or an object, only what was asked of it: ``{image: Tensor, no mask, …}``.
    """
    if isinstance(value, Tensor):
        return "Tensor"
    if type(value) in (int, float):
        return type(value).__name__
    if value is None or isinstance(value, (bool, str, bytes, complex, torch.dtype, torch.device)):
        return repr(value)
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}({', '.join(sorted([repr(v) for v in value]))})"
    if depth > 0 and isinstance(value, Mapping):
        if asked is not None:
            return "{" + ", ".join(_asked_parts(value, depth, asked)) + "}"
        return "{" + ", ".join(f"{k}: {layout(v, depth - 1)}" for k, v in value.items()) + "}"
    if depth > 0 and isinstance(value, (tuple, list)):
        inner = ", ".join([layout(v, depth - 1) for v in value])
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if asked is not None:
        parts = [f"{name}: {layout(_attribute(value, name), depth - 1)}" for name, _ in asked[1]]
        return f"{type(value).__name__}{{{', '.join([*parts, '…'])}}}"
    return _of_other(value, depth)


def _of_other(value: Any, depth: int) -> str:
    """What tells a value that is no container from another, as far as code may branch on it."""
    if is_tracked(value):
        return layout(plain(value), depth)
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, slice):
        return f"slice({', '.join([_exact(v, depth) for v in (value.start, value.stop, value.step)])})"
    if isinstance(value, _NUMBERS):
        return repr(value)
    if isinstance(value, np.ndarray):
        if torch.compiler.is_compiling():
            return UNSEEN
        content = value.tobytes() if value.dtype != object else repr(value).encode()
        return f"ndarray{value.shape} {value.dtype} #{zlib.crc32(content):08x}"
    if isinstance(value, functools.partial):
        held = (value.func, value.args, value.keywords)
        return f"partial({', '.join([layout(v, depth - 1) for v in held])})"
    if isinstance(value, types.MethodType):
        return f"{type(value.__self__).__name__}.{_of_function(value.__func__)}"
    if isinstance(value, types.FunctionType):
        return _of_function(value)
    if isinstance(value, (type, types.BuiltinFunctionType)):
        return str(value.__qualname__)
    if isinstance(value, nn.Module):
        return f"{type(value).__name__} #{_MODULES.setdefault(value, uuid.uuid4().hex[:8])}"
    if depth > 0 and (can_be_watched(value) or isinstance(value, types.SimpleNamespace)):
        return f"{type(value).__name__}{{{', '.join(_attribute_parts(value, depth))}}}"
    return type(value).__name__


def _exact(value: Any, depth: int) -> str:
    value = plain(value)
    return repr(value) if type(value) is int else layout(value, depth - 1)


def _attribute_parts(value: Any, depth: int) -> list[str]:
    slots = [
        n for c in type(value).__mro__ for n, v in vars(c).items() if type(v) is types.MemberDescriptorType
    ]
    names = dict.fromkeys([*getattr(value, "__dict__", {}), *slots])
    return [f"{name}: {layout(_attribute(value, name), depth - 1)}" for name in names]


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name)
    except Exception:  # whatever a property of the user's raises
        return None


def _described(function: Any) -> str:
    """A function's name, and what its code and its closure are: two lambdas have one name."""
    code = getattr(function, "__code__", None)
    if code is None:
        return str(getattr(function, "__qualname__", type(function).__name__))
    bound = [cell.cell_contents for cell in function.__closure__ or () if cell != _EMPTY_CELL]
    held = (_of_code(code), layout((*bound, *(function.__defaults__ or ()))), _numbers_of(bound))
    return f"{function.__qualname__} #{zlib.crc32(repr(held).encode()):08x}"


_of_function: Callable[[Any], str] = torch.compiler.assume_constant_result(_described)
"""The same; torch's compiler looks at which function it is."""


def _numbers_of(values: list[Any]) -> list[str]:
    return [repr(v) for v in values if type(v) in (int, float)]


def _of_code(code: types.CodeType) -> tuple[Any, ...]:
    constants = [_of_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return code.co_code, code.co_names, code.co_freevars, constants


def _asked_parts(value: Mapping[Any, Any], depth: int, asked: Asked) -> list[str]:
    """What was asked for; where the keys were gone through, all of them, in their order."""
    listed, known = asked[0], dict(asked[1])
    keys = [*value, *(key for key in known if key not in value)] if listed else list(known)
    parts = []
    for key in keys:
        how = known.get(key, False)
        if key not in value:
            parts.append(f"no {key}")
        elif how is False:
            parts.append(f"{key}: …")
        else:
            parts.append(f"{key}: {layout(value[key], depth - 1, None if how is True else how)}")
    return parts if listed else [*parts, "…"]


def portrait(inputs: Mapping[str, Any], identity: bool, classes: bool, labels: tuple[str, ...]) -> str:
    """What the tensors in inputs are as objects, in words: "k is q, mask is a Mask, x.scale is 3.0".

    Args:
        inputs: them by name; tensors in tuples, lists and dicts are found.
        identity: tell which are one object.
        classes: tell of what class they are.
        labels: tell these of their attributes.
    """
    found: list[tuple[str, Tensor]] = []
    for name, value in inputs.items():
        _collect(name, value, found, WATCHED_DEPTH)
    told = []
    for i, (name, tensor) in enumerate(found):
        if identity:
            one = [other for other, before in found[:i] if before is tensor]
            told += [f"{name} is {one[0]}"] if one else []
        # a fake stands for a plain tensor, as in an export
        if classes and type(tensor).__name__ not in ("Tensor", "FakeTensor"):
            told.append(f"{name} is a {type(tensor).__name__}")
        for label in labels:
            if hasattr(tensor, label):
                told.append(f"{name}.{label} is {_label(getattr(tensor, label))}")
    return ", ".join(told) or PLAIN_TENSORS


def _collect(name: str, value: Any, found: list[tuple[str, Tensor]], depth: int) -> None:
    if isinstance(value, Tensor):
        found.append((name, value))
    elif depth and isinstance(value, Mapping):
        for key, entry in value.items():
            _collect(f"{name}[{key!r}]", entry, found, depth - 1)
    elif depth and isinstance(value, (tuple, list)):
        for i, entry in enumerate(value):
            _collect(f"{name}[{i}]", entry, found, depth - 1)


def _label(value: Any) -> str:
    return repr(value) if is_plain(value) else layout(value)


TELL: tuple[Callable[..., str], ...] = (layout, portrait)
"""What only tells of values, and computes nothing of their data."""
