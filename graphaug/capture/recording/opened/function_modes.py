"""The question whether a function mode is active: while we watch one is, and later calls of the model run in none."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch

from graphaug.capture.recording.patches import Patches
from graphaug.capture.recording.values.tracked import is_tracked
from graphaug.torch_private import takes_over

_NAMES = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def without_modes(patches: Patches, asks: Callable[[FrameType], bool]) -> None:
    """Answer ``torch.overrides.has_torch_function`` as it would be without our modes.

    Torch's own functions call it by names of their own, and go on seeing the modes, which see them by that.

    Args:
        patches: puts the answers in their places.
        asks: whether the code in a frame gets them.
    """
    for name in _NAMES:
        patches.method(torch.overrides, name, functools.partial(_answer, asks, name == _NAMES[0]))


@contextlib.contextmanager
def unnoticed(asks: Callable[[FrameType], bool]) -> Iterator[None]:
    """The same in this block."""
    with Patches(lambda: True) as patches:
        without_modes(patches, asks)
        yield


def _answer(asks: Callable[[FrameType], bool], in_one: bool, original: Any, *args: Any) -> bool:
    if not asks(sys._getframe(2)):
        return bool(original(*args))
    return any(takes_over(value) for value in (args[0] if in_one else args) if not is_tracked(value))
