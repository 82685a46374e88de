"""Checks of data that torch makes in Python (`torch._check_tensor_all`): assertions in the graph, in every call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from graphaug.capture.recording.patches import Patches
from graphaug.torch_private import FakeTensor, assert_async

CHECKS = tuple(name for name in ("_check_tensor_all_with",) if hasattr(torch, name))
"""Functions of torch that read a tensor to decide whether to raise; the other checks of tensors call them."""


def as_assertion(
    check: Callable[..., Any], error_type: type[BaseException], cond: Any, message: Any = None
) -> None:
    """What stands for such a check: an assertion that function modes see and compilers keep.

    Args:
        check: the function that it stands for, for what is no tensor.
        error_type, cond, message: as given to it.
    """
    if not isinstance(cond, Tensor):
        check(error_type, cond, message)
        return
    # a message that is made when it is needed may show data
    said = message if isinstance(message, str) else f"{error_type.__name__}: a check of the data failed"
    assert_async(cond.all(), said)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Let closed code run without data: in this block, checks of fake tensors pass."""
    with Patches(lambda: True) as patches:
        for name in CHECKS:
            patches.method(torch, name, _passing)
        yield


def _passing(
    check: Callable[..., Any], error_type: type[BaseException], cond: Any, message: Any = None
) -> None:
    if not isinstance(cond, FakeTensor):
        check(error_type, cond, message)
