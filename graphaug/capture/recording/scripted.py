"""Functions that ``torch.jit.script`` made: a recording runs the Python that they were made of."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from graphaug.capture.recording.relied.code_names import names_in
from graphaug.torch_private import scripted_from

CALL = "__call__"
"""The method of ``torch.jit.ScriptFunction`` that is replaced."""


def python_of(function: Any) -> types.FunctionType | None:
    """The Python function that a scripted one was made of; None where the two may do different things.

    That is where it was traced, which keeps one way through its code, or asks whether it is scripted.
    """
    python = scripted_from(function)
    if not isinstance(python, types.FunctionType) or "is_scripting" in names_in(python.__code__):
        return None
    return python


def as_python(call: Callable[..., Any], function: Any, *args: Any, **kwargs: Any) -> Any:
    """What stands for the call of a scripted function: that of its Python, which function modes see."""
    python = python_of(function)
    return call(function, *args, **kwargs) if python is None else python(*args, **kwargs)
