"""What code asks of tensors as Python objects: which of them are one, of what class they are, what was set on them."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from graphaug.capture.recording.relied.asked_names import strings_in
from graphaug.capture.recording.relied.classes import is_foreign
from graphaug.capture.recording.relied.code_names import attributes_in, globals_in, methods_in, names_in
from graphaug.capture.recording.relied.comparisons import comparisons_in
from graphaug.capture.recording.relied.modules import content

_BY_IDENTITY = {"id", "hash", "set", "dict"}
_LAYOUT = {"is_contiguous", "stride", "as_strided", "storage_offset"}
"""Methods that tell how a tensor lies in memory."""
_OF_ONE = {"_version", "_base", "_is_view", "data_ptr", "untyped_storage"}
"""What tells of one tensor alone, and of none that is taken of it."""


@dataclass(frozen=True)
class AskedOfTensors:
    """What opened code asks of tensors as objects.

    Attributes:
        identity: whether it may ask which of its tensors are one object; `Comparisons` sees whether it does.
        classes: whether it may tell a class of tensors from another.
        labels: the names that it looks up, and that no tensor has by itself.
    """

    identity: bool = False
    classes: bool = False
    labels: frozenset[str] = frozenset()


def asked_by(functions: Iterable[types.FunctionType]) -> AskedOfTensors:
    """What functions ask of tensors as objects, by their code; nothing is run."""
    identity, classes, labels = False, False, set[str]()
    for function in (f for f in functions if not is_foreign(f.__module__)):
        code = function.__code__
        identity = identity or bool(comparisons_in(code)) or not _BY_IDENTITY.isdisjoint(names_in(code))
        labels |= strings_in(code)
        named = (_value(function, name) for name in names_in(code))
        classes = classes or any(
            isinstance(v, type) and issubclass(v, Tensor) and v is not Tensor for v in named
        )
        classes = classes or "type" in globals_in(code) or "__class__" in names_in(code)
    return AskedOfTensors(identity, classes, frozenset(name for name in labels if not hasattr(Tensor, name)))


def _value(function: types.FunctionType, name: str) -> Any:
    """What a name stands for in a function, among its globals, its closure, or what modules that it names hold."""
    if name in function.__code__.co_freevars:
        return content((function.__closure__ or ())[function.__code__.co_freevars.index(name)])
    if name in function.__globals__:
        return function.__globals__[name]
    modules = (function.__globals__.get(n) for n in globals_in(function.__code__))
    held = (vars(m)[name] for m in modules if isinstance(m, types.ModuleType) and name in vars(m))
    return next(held, None)


def has_labels(tensor: Tensor) -> bool:
    """Whether something was set on a tensor, but by torch's compiler."""
    return any(not name.startswith("_dynamo") for name in vars(tensor))


def _variables(function: types.FunctionType) -> tuple[str, ...]:
    """The variables of a function, without the object of a method."""
    around = function.__qualname__.rpartition(".")[0]
    return function.__code__.co_varnames[bool(around) and not around.endswith("<locals>") :]


def asks_for_layout(functions: Iterable[types.FunctionType], nodes: Iterable[fx.Node]) -> bool:
    """Whether closed code, or a graph, asks how a tensor lies in memory."""
    called = any(_LAYOUT & methods_in(f.__code__) for f in functions if not is_foreign(f.__module__))
    return called or any(n.op == "call_method" and n.target in _LAYOUT for n in nodes)


def asked_of_one(functions: Iterable[types.FunctionType], nodes: Iterable[fx.Node]) -> str:
    """What closed code, or a graph, asks of one tensor alone; an empty string if nothing."""
    own = (f for f in functions if not is_foreign(f.__module__))
    read = ((f, *pair) for f in own for pair in sorted(attributes_in(f.__code__)))
    named = (name for f, owner, name in read if name in _OF_ONE and owner in _variables(f))
    asked = (str(n.args[1] if n.target is getattr else n.target) for n in nodes if n.op != "call_module")
    return next(named, "") or next((name for name in asked if name in _OF_ONE), "")
