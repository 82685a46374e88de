"""Whose class something is of: the user's, a library's, or one that is taken not to change."""

from __future__ import annotations

import argparse
import collections
import configparser
import enum
import functools
import io
import sys
import threading
import types
from typing import Any

from torch import Tensor, nn

from graphaug.capture.recording.relied.facts import WITHOUT_EFFECT, is_plain
from graphaug.capture.user_code import is_installed_file

_FOREIGN = {
    *("torch", "numpy", "builtins", "typing", "collections", "functools", "graphaug", "logging", "_pytest"),
    *sys.stdlib_module_names,
}
"""Packages whose globals do not change."""
_OPTIONS = (
    argparse.Namespace,
    *(collections.UserDict, collections.UserList, collections.ChainMap),
    *(configparser.RawConfigParser, configparser.SectionProxy),
)
"""Classes of Python's own that hold what users put into them."""
_HOLDERS = (
    *(dict, list, set, tuple, bytearray, types.SimpleNamespace),
    *(collections.OrderedDict, collections.defaultdict, collections.Counter, collections.deque, *_OPTIONS),
)
"""Classes of Python's whose objects users make."""
NAMESPACES = (types.SimpleNamespace, threading.local)
"""Objects whose reads nobody sees: what names say of them is all there is."""
_LIBRARIES = {"transformers", "timm", "torchvision", "diffusers", "peft", "sentence_transformers"}
"""Packages in which the switches of `WITHOUT_EFFECT` mean what they say, and which load things when they are used."""
_THREADS = {"threading", "queue", "multiprocessing.sharedctypes", "multiprocessing.managers"}
"""Modules of Python whose objects tell what another thread or process has done: events, counts, queues, values."""
_HEAP_TYPE, _IMMUTABLE = 1 << 9, 1 << 8
"""Flags of types: that Python code may have made it, and that nothing may be set on it."""
_NO_HOLDERS = (type, enum.Enum, nn.Module, Tensor, types.ModuleType, types.FunctionType)


def is_foreign(module: str | None) -> bool:
    """Whether a module's globals, and the objects of its classes, are taken not to change."""
    return (module or "").partition(".")[0] in _FOREIGN


def may_be_put_there(name: str, value: Any) -> bool:
    """Whether a user may have put a value on a module or a class that is none of his: `torch.scale = 2.0`.

    What torch, NumPy and Python put there themselves is code, or of types of their own; their few plain constants are
    told from a user's by nothing, and stay.
    """
    if name.startswith("__") or value is sys.modules or isinstance(value, (types.ModuleType, io.IOBase)):
        return False
    if isinstance(value, (property, functools.cached_property, classmethod, staticmethod)):
        value = (
            getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", None)
        )
    if isinstance(value, (type, types.FunctionType)):
        return not is_foreign(value.__module__)
    return is_plain(value) or type(value) in _HOLDERS or not is_foreign(type(value).__module__)


def is_of_a_library(*names: str) -> bool:
    """Whether one of these names is of a package whose tables are filled when they are first used, and stay."""
    return not _LIBRARIES.isdisjoint(name.partition(".")[0] for name in names)


def is_of_a_package(module: str | None) -> bool:
    """Whether a Python module lies where packages are installed."""
    return is_installed_file(getattr(sys.modules.get(module or ""), "__file__", None) or "")


def is_of_threads(value: Any) -> bool:
    """Whether an object passes something on between threads, in attributes of its own; threads themselves do not."""
    return type(value).__module__ in _THREADS and not isinstance(value, (threading.Thread, threading.local))


def can_be_watched(value: Any) -> bool:
    """Whether reads of an object's attributes can be seen: it is of a class of the user's, written in Python."""
    kind = type(value)
    if (
        isinstance(value, (*_NO_HOLDERS, tuple))
        or not kind.__flags__ & _HEAP_TYPE
        or kind.__flags__ & _IMMUTABLE
    ):
        return False
    if not _holds_attributes(kind):
        return False
    return not is_foreign(kind.__module__) or issubclass(kind, _OPTIONS)


def _holds_attributes(kind: type) -> bool:
    slots = any(isinstance(v, types.MemberDescriptorType) for c in kind.__mro__ for v in vars(c).values())
    return bool(kind.__dictoffset__) or slots


def has_no_effect(owner: Any, name: Any) -> bool:
    """Whether an attribute is a switch of a library's that changes no value and no gradient."""
    if name not in WITHOUT_EFFECT:
        return False
    packages = [c.__module__.partition(".")[0] for c in type(owner).__mro__ if not is_foreign(c.__module__)]
    # a module of the user's own class may do anything with it; a configuration of one does nothing
    return bool(_LIBRARIES.intersection(packages[:1] if isinstance(owner, nn.Module) else packages))


def with_code(modules: dict[str, nn.Module], opened: set[str]) -> dict[str, nn.Module]:
    """Closed modules of which opened code may read what is not torch's: those of other people's classes."""
    return {
        path: m
        for path, m in modules.items()
        if path not in opened and (not is_foreign(type(m).__module__) or isinstance(m, nn.ParameterDict))
    }
