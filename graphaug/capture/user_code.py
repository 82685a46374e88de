"""Where in the user's own code something happened: for messages that name a file and a line."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import linecache
import logging
import os
import sys
import types
from typing import Any

import torch


def global_names(cls: type) -> dict[str, Any]:
    """The global names that the code of a class reads: those of its own functions, or where it has none, of its module.

    Code that ``exec`` or ``runpy`` ran, and a class that cloudpickle brought from another process, may bear the name of
    a module that is another one here: ``__main__`` above all.
    """
    for value in vars(cls).values():
        fn = inspect.unwrap(value) if callable(value) else None
        if isinstance(fn, types.FunctionType) and fn.__module__ == cls.__module__:
            return fn.__globals__
    module = sys.modules.get(cls.__module__)
    return {} if module is None else vars(module)


def global_scopes(cls: type) -> list[dict[str, Any]]:
    """Every namespace whose names the functions of a class read: those of its decorators, and of borrowed functions."""
    scopes = [global_names(cls)]
    for value in vars(cls).values():
        fn = value if callable(value) else None
        while isinstance(fn, types.FunctionType):
            if (fn.__module__ or "torch").partition(".")[0] not in ("torch", "graphaug"):
                scopes.append(fn.__globals__)
            fn = getattr(fn, "__wrapped__", None)
    return list({id(scope): scope for scope in scopes}.values())


def user_line() -> str:
    """`` (file.py line 12)`` of the innermost running frame that is neither torch's nor ours."""
    frame = _users_frame()
    return f" ({frame.f_code.co_filename.rpartition('/')[2]} line {frame.f_lineno})" if frame else ""


def _users_frame() -> types.FrameType | None:
    """The innermost running frame that is neither torch's nor ours."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and is_internal(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def users_level() -> int:
    """The ``stacklevel`` with which a warning of the caller's names that frame."""
    level, frame = 1, sys._getframe(1)
    while is_internal(frame.f_code.co_filename) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    return level


def in_message() -> bool:
    """Whether the user's code is inside of a statement that only tells: an error, a warning, a log entry, a print.

    What such a statement asks for decides nothing.
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and is_internal(frame.f_code.co_filename):
        if frame.f_code.co_filename == logging.__file__:
            return True
        frame = frame.f_back
    if frame is None:
        return False
    file, code = frame.f_code.co_filename, frame.f_code
    line, _, column, _ = next(itertools.islice(code.co_positions(), frame.f_lasti // 2, None))
    at = (line or frame.f_lineno, column or 0)
    return any(begin <= at < end for begin, end in _messages("".join(linecache.getlines(file))))


@functools.lru_cache(256)
def _messages(source: str) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    """Where in a file's source messages are made: begin and end as (line, column); none if it cannot be read."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()
    return tuple(
        ((node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or 0))
        for statement in ast.walk(tree)
        if (node := _message_of(statement)) is not None and _only_tells(node)
    )


def _message_of(statement: ast.AST) -> ast.expr | None:
    """The part of a statement that is there for its message: a call, or what is said."""
    if isinstance(statement, ast.Raise):
        return statement.exc
    if isinstance(statement, ast.Assert):
        return statement.msg
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        called = ast.unparse(statement.value.func)
        if called in _ASSERTIONS:
            return statement.value.args[1] if len(statement.value.args) > 1 else None  # not what is asserted
        if called in _MESSAGES or called.rpartition(".")[0].lower().endswith(_LOGS):
            return statement.value
    return None


def _only_tells(message: ast.AST) -> bool:
    """Whether what a message is made of goes nowhere else: nothing holds it, gets it, or is decided by it."""
    return not any(
        isinstance(node, _DECIDING)
        or (isinstance(node, ast.comprehension) and bool(node.ifs))
        or (isinstance(node, ast.Call) and node is not message and not _is_harmless(node))
        for node in ast.walk(message)
    )


def _is_harmless(call: ast.Call) -> bool:
    """Whether a call gets nothing but constants, or is one of Python's own, of torch, numpy or ``math``."""
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    if all(isinstance(value, ast.Constant) for value in given):
        return True
    called = call.func
    if isinstance(called, ast.Attribute) and called.attr in ("format", "join"):
        return True
    while isinstance(called, ast.Attribute):
        called = called.value
    return isinstance(called, ast.Name) and called.id in (
        _LIBRARIES if called is not call.func else _BUILTINS
    )


def is_internal(filename: str) -> bool:
    """Whether a file is torch's, ours, or plumbing of the standard library."""
    return filename.startswith(("<", *_PACKAGES)) or filename.endswith(_PLUMBING)


_MESSAGES = ("print", "warn", "warnings.warn")
_ASSERTIONS = ("torch._assert", "_assert")
_DECIDING = (ast.IfExp, ast.BoolOp, ast.NamedExpr, ast.Lambda, ast.Await, ast.Yield, ast.YieldFrom)
_LIBRARIES = ("torch", "F", "np", "numpy", "math")
_BUILTINS = (
    *("str", "repr", "format", "round", "float", "int", "complex", "bool", "abs", "len", "min", "max", "sum"),
    *("list", "tuple", "set", "dict", "sorted", "zip", "enumerate", "range", "type"),
)
_LOGS = ("logger", "logging", "log")
# by their place, not by name: a checkout of this project may well lie in a directory called graphaug
_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGES = tuple(
    folder + os.sep for folder in (os.path.dirname(str(torch.__file__)), os.path.dirname(_HERE))
)
_PLUMBING = ("/contextlib.py", "/functools.py", "/inspect.py", logging.__file__)
