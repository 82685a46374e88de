"""Whether code of a class asks in which mode a module is: its own, or another's."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator

from torch import nn

from graphaug.capture.recording.relied.asked_names import strings_in
from graphaug.capture.recording.relied.classes import is_of_a_package
from graphaug.capture.recording.relied.code_names import attributes_in, names_in

_ASKED: frozenset[str] = frozenset({"training", "requires_grad"})


def asks_for_mode(kind: type[nn.Module]) -> bool:
    """Whether a class may compute something else in eval mode, for one part of the rows or for all.

    That is where code outside of torch names ``training``. Torch's own is known to leave rows apart in eval mode; but
    where it asks for the grad mode too, it takes other kernels without gradients, which zero what is padded.
    """
    return any(
        "training" in names and (not is_torchs or "is_grad_enabled" in names)
        for is_torchs, names in _names(kind)
    )


def _names(kind: type[nn.Module]) -> Iterator[tuple[bool, set[str]]]:
    """For each function of a class whether it is torch's, and the names in its code."""
    for cls in kind.__mro__:
        if cls in (nn.Module, object):
            continue
        for function in (f for f in vars(cls).values() if isinstance(f, types.FunctionType)):
            waiting, found = [function.__code__], set[str]()
            for code in waiting:  # grows on the way: functions inside of functions
                found.update(code.co_names, strings_in(code))
                waiting.extend(c for c in code.co_consts if isinstance(c, types.CodeType))
            yield cls.__module__.partition(".")[0] == "torch", found


def asks_of_others(kind: type[nn.Module]) -> frozenset[str]:
    """Which of ``training`` and ``requires_grad`` code of a class, torch's aside, reads off others than itself."""
    found = set()
    for cls in kind.__mro__:
        for function in (
            vars(cls).values() if cls.__module__.partition(".")[0] not in ("torch", "builtins") else ()
        ):
            if isinstance(function, types.FunctionType):
                itself = function.__code__.co_varnames[:1]
                found |= {name for owner, name in attributes_in(function.__code__) if owner not in itself}
    return frozenset(found & _ASKED)


def asked_by(functions: Iterable[types.FunctionType], kinds: Iterable[type]) -> frozenset[str]:
    """Which of ``training`` and ``requires_grad`` plain functions of the user's read, of whatever module.

    Args:
        functions: all that the code of modules calls.
        kinds: the classes of the modules, of whose own methods it is asked elsewhere.
    """
    methods = {id(f) for kind in kinds for cls in kind.__mro__ for f in vars(cls).values()}
    plain = [f.__code__ for f in functions if id(f) not in methods and not is_of_a_package(f.__module__)]
    return _ASKED & frozenset[str]().union(*(names_in(code) | strings_in(code) for code in plain))
