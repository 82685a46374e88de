"""What Python says of the moment: the time, the stack of calls, the thread. No answer of it holds for another call."""

from __future__ import annotations

import datetime
import decimal
import gc
import importlib.util
import inspect
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Iterator
from typing import Any

import torch

from graphaug.capture.recording.relied.code_names import attributes_in, globals_in

_NO_QUESTIONS = {"sleep", "strftime", "strptime", "mktime", "asctime", "tzset", "get_clock_info"}
_NAMES: dict[types.ModuleType, tuple[str, ...]] = {
    time: tuple(n for n, f in vars(time).items() if callable(f) and not isinstance(f, type)),
    os: ("times", "getloadavg"),
    sys: ("_getframe", "_current_frames", "exc_info", "getrefcount", "gettrace", "getprofile"),
    inspect: ("currentframe", "stack", "trace"),
    traceback: ("extract_stack", "format_stack", "walk_stack"),
    gc: ("get_count", "get_objects", "get_stats", "get_referrers"),
    threading: ("current_thread", "main_thread", "enumerate", "active_count", "get_ident", "get_native_id"),
    multiprocessing: ("current_process", "active_children", "parent_process"),
    decimal: ("getcontext",),
    signal: ("getsignal", "getitimer"),
    importlib.util: ("find_spec",),
    torch.cuda: tuple(n for n in vars(torch.cuda) if n.startswith(("memory_", "max_memory_", "mem_get"))),
}
_MOVING: dict[Any, str] = {
    getattr(module, name): f"{module.__name__}.{name}"
    for module, names in _NAMES.items()
    for name in names
    if hasattr(module, name) and name not in _NO_QUESTIONS
}
_OF_DATES = {"now", "utcnow", "today"}
_OF_STREAMS = {"isatty", "encoding", "closed"}
_OF_LOGGERS = {"isEnabledFor", "getEffectiveLevel"}


def moving_in(function: types.FunctionType) -> Iterator[str]:
    """Those of these questions that a function names, as Python spells them: "time.time"."""
    code, scope = function.__code__, function.__globals__
    pairs = attributes_in(code)
    held = [
        vars(m)[name] for m in _NAMES for owner, name in pairs if _is_it(scope, owner, m) and name in vars(m)
    ]
    for value in (*map(scope.get, sorted(globals_in(code))), *held):
        with_hash = isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType))
        if with_hash and value in _MOVING:
            yield _MOVING[value]
    for owner, name in sorted(pairs):
        if owner in ("stdin", "stdout", "stderr") and name in _OF_STREAMS:
            yield f"sys.{owner}.{name}"
        if name in _OF_LOGGERS:
            yield f"{name} of a logger"
        for cls in (scope.get(owner), vars(datetime).get(owner)) if name in _OF_DATES else ():
            if isinstance(cls, type) and issubclass(cls, datetime.date):
                yield f"datetime.{cls.__name__}.{name}"


def _is_it(scope: dict[str, Any], owner: str, module: types.ModuleType) -> bool:
    """Whether a name in code is a module, of its file or imported while it runs."""
    return scope.get(owner) is module or owner == module.__name__.rpartition(".")[2]
