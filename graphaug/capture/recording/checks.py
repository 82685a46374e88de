"""Checks of data, the user's (``assert x.isfinite().all()``) and torch's: assertions in the graph, in every call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from graphaug.capture.recording.patches import Patches
from graphaug.capture.recording.scripted import CALL, as_python
from graphaug.capture.user_checks import check_asked
from graphaug.torch_private import FakeTensor, assert_async

CHECK = "_check_tensor_all_with"
"""The function of torch that reads a tensor to decide whether to raise; the other checks of tensors call it."""
ALL_TRUE = "_is_all_true"
"""The one that torch's distributions ask whether parameters and samples are such as they allow, before they raise."""


def assert_number(number: Any, wanted: bool, said: str) -> None:
    """Raise if the truth of a number, or of a comparison of numbers, is another one than wanted.

    Raises:
        RuntimeError: it is; says what the check of the forward says, but in compiled code.
    """
    truth = number if isinstance(number, (bool, torch.SymBool)) else number != 0
    holds = truth if wanted else torch.sym_not(truth)
    if torch.compiler.is_compiling():  # which takes no text of a variable, up to torch 2.11
        torch._check(holds)
    else:
        torch._check(holds, lambda: said)


ASSERTIONS = (torch._assert, assert_async, assert_number)
"""What checks data in a graph."""


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


def all_true_as_assertion(ask: Callable[..., Any], condition: Any) -> Any:
    """What stands for the question of a distribution: an assertion, and yes.

    Args:
        ask: the function that it stands for, for what is no tensor.
        condition: as given to it.
    """
    if not isinstance(condition, Tensor):
        return ask(condition)
    assert_async(condition.all(), "ValueError: a parameter or a sample that its distribution does not allow")
    return True


def truth_as_assertion(ask: Callable[[Tensor], bool], tensor: Tensor) -> bool:
    """What stands for the truth of a tensor: where it only tells whether to raise, an assertion, and what goes on.

    Args:
        ask: the function that it stands for, where it may decide anything else.
        tensor: of one entry.
    """
    check = check_asked()
    if check is None:
        return ask(tensor)
    assert_async(tensor if check.wanted else tensor.logical_not(), check.said)
    return check.wanted


@contextlib.contextmanager
def replaced_by(check: Callable[..., None], all_true: Callable[..., Any]) -> Iterator[None]:
    """Let ``check`` and ``all_true`` stand for torch's in this block, wherever called, and Python for scripts."""
    with Patches(lambda: True) as patches:
        patches.method(torch.jit.ScriptFunction, CALL, as_python)
        patches.method(torch, CHECK, check)
        patches.method(torch, ALL_TRUE, all_true)
        yield


def unchecked() -> contextlib.AbstractContextManager[None]:
    """Let closed code run without data: in this block, checks of fake tensors pass."""
    return replaced_by(_passing, _passing_all)


def _passing(
    check: Callable[..., Any], error_type: type[BaseException], cond: Any, message: Any = None
) -> None:
    if not isinstance(cond, FakeTensor):
        check(error_type, cond, message)


def _passing_all(ask: Callable[..., Any], condition: Any) -> Any:
    return True if isinstance(condition, FakeTensor) else ask(condition)
