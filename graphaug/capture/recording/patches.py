"""What is replaced while a forward is recorded, for the recording thread alone.

One capture runs at a time. Other threads see the replaced functions too, and for them each is what it was.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import threading
import types
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

LOCK = threading.RLock()
"""Held through a capture."""

_MISSING = object()
_BEHIND: weakref.WeakKeyDictionary[Callable[..., Any], Any] = weakref.WeakKeyDictionary()
"""What the replacements stand for."""


def stands_for(replacement: Callable[..., Any], original: Callable[..., Any]) -> None:
    """Note what a function is put in the place of."""
    _BEHIND[replacement] = original


def behind(value: Any) -> Any:
    """What a function stands for, which a recording put there; anything else is what it is."""
    while isinstance(value, types.FunctionType) and value in _BEHIND:
        value = _BEHIND[value]
    return value


class Patches:
    """Replaced attributes of classes and modules, put back at the end of the block.

    A replacement acts in the thread that made it, and only while ``active()`` is true. Compiled functions run as they
    are written meanwhile: torch's compiler would trace what is replaced, and takes what it finds in torch when it first
    compiles for torch's own for good.
    """

    def __init__(self, active: Callable[[], bool]) -> None:
        self._active = active
        self._thread = threading.get_ident()
        self._saved: list[tuple[Any, str, Any]] = []
        self._scopes: set[int] = set()
        self._uncompiled = contextlib.ExitStack()

    def __enter__(self) -> Patches:
        self._uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._uncompiled.close()
        for owner, name, value in reversed(self._saved):
            if isinstance(owner, dict) and value is _MISSING:
                del owner[name]
            elif isinstance(owner, dict):
                owner[name] = value
            elif value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        self._saved.clear()

    def here(self) -> bool:
        """Whether this is the recording thread, in opened code."""
        return threading.get_ident() == self._thread and self._active()

    def first_visit(self, scope: dict[str, Any]) -> bool:
        """Whether a namespace is seen for the first time."""
        if id(scope) in self._scopes:
            return False
        self._scopes.add(id(scope))
        return True

    def method(self, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        """Replace an attribute of a class or a module by a function that gets the original first."""
        saved = vars(owner).get(name, _MISSING)
        original = (
            getattr(owner, name)
            if saved is _MISSING or isinstance(saved, (classmethod, staticmethod))
            else saved
        )

        def guard(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs) if self.here() else original(*args, **kwargs)

        guard.__wrapped__ = original  # type: ignore[attr-defined]
        guard.__name__ = getattr(original, "__name__", name)
        _BEHIND[guard] = original
        self._saved.append((owner, name, saved))
        setattr(owner, name, guard)

    def class_method(self, owner: type, name: str, replacement: Callable[..., Any]) -> None:
        """The same for a class method: the replacement gets the original, bound to the class, then the class."""
        saved = vars(owner)[name]

        def guard(cls: type, *args: Any, **kwargs: Any) -> Any:
            original = saved.__get__(None, cls)
            if self.here():
                return replacement(original, cls, *args, **kwargs)
            return original(*args, **kwargs)

        self._saved.append((owner, name, saved))
        setattr(owner, name, classmethod(guard))

    def getter(self, owner: type, name: str, replacement: Callable[..., Any]) -> None:
        """The same for a property: the replacement gets the function that reads it, then the object."""
        saved = vars(owner)[name]

        def guard(value: Any) -> Any:
            return replacement(saved.fget, value) if self.here() else saved.fget(value)

        self._saved.append((owner, name, saved))
        setattr(owner, name, property(guard, saved.fset))

    def entry(self, scope: dict[str, Any], name: str, replacement: Callable[..., Any]) -> None:
        """The same for a function in a module's namespace, or for a builtin one that it does not name itself."""
        saved = scope.get(name, _MISSING)
        original = getattr(builtins, name) if saved is _MISSING else saved

        @functools.wraps(original)
        def guard(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs) if self.here() else original(*args, **kwargs)

        _BEHIND[guard] = original
        self._saved.append((scope, name, saved))
        scope[name] = guard
