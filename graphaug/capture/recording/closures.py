"""Functions that opened code makes in a call, and what of that call they hold."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from graphaug.capture.recording.kept.kinds import is_of_a_capture
from graphaug.capture.recording.values.inside import any_inside, content_of, isinstance_of


def closes_over_a_capture(value: Any, modules: bool = False) -> bool:
    """Whether a function in a value holds a fake tensor, or what was read off one: ``lambda h: attend(h, mask)``.

    Args:
        value: anything.
        modules: count modules too, ``lambda h: self.attend(h)``: a copy of the graph has others.
    """
    waiting, seen = torch.utils._pytree.tree_leaves(value), set[int]()
    while waiting:
        function = waiting.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        for held in _held_by(function):
            if any_inside(held, lambda v: is_of_a_capture(v) or (modules and isinstance_of(v, nn.Module))):
                return True
            waiting.extend(torch.utils._pytree.tree_leaves(held))
    return False


def _held_by(function: Any) -> Iterator[Any]:
    """What a function, a method or a partial function holds; nothing of anything else."""
    if isinstance(function, functools.partial):
        yield from (function.func, function.args, function.keywords)
    elif isinstance(function, types.MethodType):
        yield function.__func__
    elif isinstance(function, types.FunctionType):
        yield from map(content_of, function.__closure__ or ())
        yield from (function.__defaults__, function.__kwdefaults__)
