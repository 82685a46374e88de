"""What code asks of tensors as Python objects: which of them are one, of what class they are, what was set on them."""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from graphaug.capture.recording.relied.called import content
from graphaug.capture.recording.relied.classes import is_foreign
from graphaug.capture.recording.relied.code_names import (
    globals_in,
    methods_in,
    names_in,
    single_steps,
    strings_in,
)

_BY_IDENTITY = {"id", "is_", "is_not"}
"""Functions that tell one object from another."""
_LAYOUT = {"is_contiguous", "stride", "as_strided", "storage_offset"}
"""Methods that tell how a tensor lies in memory."""
_OF_ONE = {"_version", "_base", "_is_view", "data_ptr", "untyped_storage"}
"""What tells of one tensor alone, and of none that is taken of it."""


@dataclass(frozen=True)
class Asked:
    """What opened code asks of tensors as objects.

    Attributes:
        identity: where it asks whether two objects are one, `` (file.py line 12)``; "" if it does not.
        classes: whether it may tell a class of tensors from another.
        labels: the names that it looks up, and that no tensor has by itself.
    """

    identity: str = ""
    classes: bool = False
    labels: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.identity or self.classes or self.labels)

    @property
    def arguments(self) -> tuple[bool, bool, tuple[str, ...]]:
        """What `portrait` takes beside the inputs."""
        return bool(self.identity), self.classes, tuple(sorted(self.labels))


NOTHING_ASKED = Asked()


def asked_by(functions: Iterable[types.FunctionType]) -> Asked:
    """What functions ask of tensors as objects, by their code; nothing is run."""
    identity, classes, labels = "", False, set[str]()
    for function in (f for f in functions if not is_foreign(f.__module__)):
        code = function.__code__
        identity = identity or next(_places(function, code), "")
        labels |= strings_in(code)
        named = (_value(function, name) for name in names_in(code))
        classes = classes or any(
            isinstance(v, type) and issubclass(v, Tensor) and v is not Tensor for v in named
        )
        classes = classes or "type" in globals_in(code) or "__class__" in names_in(code)
    return Asked(identity, classes, frozenset(name for name in labels if not hasattr(Tensor, name)))


def _places(function: types.FunctionType, code: types.CodeType) -> Iterator[str]:
    """Where code asks whether two objects are one that may both be tensors."""
    steps = single_steps(code)
    line = code.co_firstlineno
    for i, step in enumerate(steps):
        line = (
            step.starts_line if type(step.starts_line) is int else getattr(step, "line_number", None) or line
        )
        asks = step.opname == "IS_OP" and not _is_no_tensor(function, steps[:i])
        asks = asks or (
            step.opname in ("LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD") and step.argval in _BY_IDENTITY
        )
        if asks:
            yield f" ({code.co_filename.rpartition('/')[2]} line {line})"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _places(function, constant)


def _is_no_tensor(function: types.FunctionType, before: list[dis.Instruction]) -> bool:
    """Whether what was loaded last is known to be no tensor: a constant, or a global's and what lies in it."""
    names: list[str] = []
    if [(s.opname, s.argval) for s in before[-3:-2]] == [("LOAD_GLOBAL", "type")]:  # type(a) is type(b)
        return before[-1].opname == "CALL"
    for step in reversed(before):
        if step.opname == "LOAD_CONST" or (step.opname == "LOAD_ATTR" and step.argval == "__class__"):
            return True
        if step.opname == "LOAD_ATTR":
            names.append(str(step.argval))
            continue
        if step.opname not in ("LOAD_GLOBAL", "LOAD_DEREF"):
            return False
        value = _value(function, str(step.argval))
        for name in reversed(names):
            value = inspect.getattr_static(value, name, None)
        return value is not None and not isinstance(value, Tensor)
    return False


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


def asks_for_layout(functions: Iterable[types.FunctionType], nodes: Iterable[fx.Node]) -> bool:
    """Whether closed code, or a graph, asks how a tensor lies in memory."""
    called = any(_LAYOUT & methods_in(f.__code__) for f in functions if not is_foreign(f.__module__))
    return called or any(n.op == "call_method" and n.target in _LAYOUT for n in nodes)


def asked_of_one(functions: Iterable[types.FunctionType], nodes: Iterable[fx.Node]) -> str:
    """What closed code, or a graph, asks of one tensor alone; an empty string if nothing."""
    own = (f for f in functions if not is_foreign(f.__module__))
    named = (name for f in own for name in sorted(_OF_ONE & names_in(f.__code__)))
    asked = (str(n.args[1] if n.target is getattr else n.target) for n in nodes if n.op != "call_module")
    return next(named, "") or next((name for name in asked if name in _OF_ONE), "")
