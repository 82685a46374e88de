"""Where in the user's own code something happened: for messages that name a file and a line."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import itertools
import linecache
import logging
import os
import sys
import sysconfig
import tokenize
import traceback
import types
import warnings
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import nn


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


_STANDARD = sysconfig.get_path("stdlib") + os.sep
_FOLDERS = tuple(os.sep + folder + os.sep for folder in ("site-packages", "dist-packages"))
"""Folders of packages: the second is that of Debian's and Ubuntu's own Python, which notebooks in the cloud use."""


def is_installed_file(file: str) -> bool:
    """Whether a file lies where packages are installed, and is not one that the user works on."""
    return any(folder in file for folder in _FOLDERS)


def user_line() -> str:
    """`` (file.py line 12)`` of the innermost running frame that is neither torch's, ours nor Python's own."""
    frame = inner = users_frame()
    while frame is not None and _is_internal_or_standard(frame.f_code.co_filename):
        frame = frame.f_back
    frame = frame or inner
    return f" ({frame.f_code.co_filename.rpartition('/')[2]} line {frame.f_lineno})" if frame else ""


def defined_at(function: Any) -> str:
    """`` (file.py line 12)`` of where a function of a file of the user's begins; empty of any other."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or is_internal(code.co_filename):
        return ""
    return f" ({code.co_filename.rpartition('/')[2]} line {code.co_firstlineno})"


def _is_internal_or_standard(file: str) -> bool:
    return is_internal(file) or (file.startswith(_STANDARD) and not is_installed_file(file))


def asking(frame: types.FrameType | None, files: AbstractSet[str]) -> tuple[str, str]:
    """Who asks the system something, by whatever library, if it is code in one of these files.

    Returns:
        ``file.py line 12`` of that code, empty if it is asked for another reason: an import, the text of a source, what
        is logged. And the function of Python's own that was called for it; empty if none was.
    """
    by, in_python = "", True
    while frame is not None and (file := frame.f_code.co_filename) not in files:
        if file.startswith(_ASIDE):
            return "", ""
        in_python &= file.startswith((_STANDARD, "<frozen ")) and not is_installed_file(file)
        by, frame = frame.f_code.co_name if in_python else by, frame.f_back
    return ("", "") if frame is None else (f"{file.rpartition('/')[2]} line {frame.f_lineno}", by)


def users_frame() -> types.FrameType | None:
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


def in_message() -> str:
    """Whether the user's code is inside of a statement that only tells: an error, a warning, a log entry, a print.

    What such a statement asks for decides nothing.

    Returns:
        "now" if it is told in this call alone, "later" if it is what a check in the graph says, of other data; else "".
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and is_internal(frame.f_code.co_filename):
        if frame.f_code.co_filename == logging.__file__:
            return "now"
        frame = frame.f_back
    if frame is None:
        return ""
    file, code = frame.f_code.co_filename, frame.f_code
    line, _, column, _ = next(itertools.islice(code.co_positions(), frame.f_lasti // 2, None))
    at = (line or frame.f_lineno, column or 0)
    told = _messages("".join(linecache.getlines(file)))
    return next((when for begin, end, when in told if begin <= at < end), "")


def statements_of(source: str) -> tuple[ast.AST, ...]:
    """All that a file's source is made of; nothing, if it cannot be read."""
    try:
        return tuple(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return ()


@functools.lru_cache(256)
def _messages(source: str) -> tuple[tuple[tuple[int, int], tuple[int, int], str], ...]:
    """Where in a file's source messages are made, begin and end as (line, column), and when they are told.

    None, if it cannot be read.
    """
    return tuple(
        ((node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or 0), when)
        for node, when in filter(None, map(_message_of, statements_of(source)))
        if _only_tells(node)
    )


def _message_of(statement: ast.AST) -> tuple[ast.expr, str] | None:
    """The part of a statement that is there for its message, a call or what is said; and when that is told."""
    said: ast.expr | None = None
    if isinstance(statement, ast.Raise):
        said = statement.exc
    elif isinstance(statement, ast.Assert):
        said = statement.msg
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        called = ast.unparse(statement.value.func)
        if called in ASSERTIONS:  # not what is asserted
            named = [k.value for k in statement.value.keywords if k.arg in ("message", "msg")]
            texts = [*statement.value.args[1:2], *named]
            return (texts[0], "later") if texts else None
        if called in _MESSAGES or called.rpartition(".")[0].lower().endswith(_LOGS):
            said = statement.value
    return None if said is None else (said, "now")


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


def may_return_none(what: Any) -> bool:
    """Whether a module or function of the user's shows a way by which it returns None: of one inside of it, too."""
    functions = [_forward_of(m) for m in what.modules()] if isinstance(what, nn.Module) else [what]
    users = (f for f in functions if isinstance(f, types.FunctionType))
    found = (inspect.unwrap(f) for f in users if (f.__module__ or "torch").partition(".")[0] != "torch")
    return any(_returns_none(f.__code__, _unset(f)) for f in found if isinstance(f, types.FunctionType))


def _forward_of(module: nn.Module) -> Any:
    """The function that a call of a module runs; of a scripted one, what tells nothing of it."""
    own = vars(module).get("forward", inspect.getattr_static(type(module), "forward", None))
    return getattr(own, "__func__", own)


def _unset(function: types.FunctionType) -> frozenset[str]:
    """The parameters that are None unless they are given."""
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    given = [
        *zip(reversed(positional), reversed(defaults), strict=False),
        *(function.__kwdefaults__ or {}).items(),
    ]
    return frozenset(name for name, default in given if default is None)


@functools.lru_cache(4096)
def _returns_none(code: types.CodeType, unset: frozenset[str]) -> bool:
    def is_none(step: dis.Instruction) -> bool:
        return step.opname == "LOAD_CONST" and step.argval is None

    pairs = list(itertools.pairwise(dis.get_instructions(code)))
    names = unset | {step.argval for before, step in pairs if step.opname == "STORE_FAST" and is_none(before)}
    return any(
        (step.opname == "RETURN_CONST" and step.argval is None)
        or (
            step.opname == "RETURN_VALUE"
            and (is_none(before) or (before.opname.startswith("LOAD_FAST") and before.argval in names))
        )
        for before, step in pairs
    )


def is_internal(filename: str) -> bool:
    """Whether a file is torch's, ours, or plumbing of the standard library."""
    return filename.startswith(("<", *_PACKAGES)) or filename.endswith(_PLUMBING)


OF_THAT_CALL = "…"
"""Stands in the message of a check for what is another in each call."""
_MESSAGES = ("print", "warn", "warnings.warn")
ASSERTIONS = (
    *(
        "torch._assert",
        "_assert",
        "torch._check",
        "torch._check_value",
        "torch._check_index",
        "torch._check_type",
    ),
    *("torch._check_tensor_all", "torch_compilable_check"),  # transformers' own, which calls torch's
)
"""What raises if its first argument does not hold; the second says so."""
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
_ASIDE = (
    "<frozen importlib",
    *(inspect.__file__, linecache.__file__, logging.__file__, tokenize.__file__),
    *(traceback.__file__, warnings.__file__),
)
"""Files whose code asks the system for reasons of its own: for the text of a source, or the process that logs."""
_PLUMBING = ("/contextlib.py", "/functools.py", "/inspect.py", logging.__file__)
