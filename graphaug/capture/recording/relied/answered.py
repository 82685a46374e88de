"""What Python and the system said of files, of the environment and of the process when opened code asked."""

from __future__ import annotations

import copy
import importlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graphaug.capture.recording.relied.facts import ABSENT, is_plain
from graphaug.errors import AssumptionViolated


@dataclass(frozen=True)
class _Raised:
    """An answer that is an error, which code may catch."""

    kind: str

    def __repr__(self) -> str:
        return f"a {self.kind}"


@dataclass(frozen=True)
class Answered:
    """The answer to one question, which every call asks again; compiled code has it from when it was compiled.

    Attributes:
        name: the question, as messages tell it: "os.getcwd()".
        module, function: what is asked, by name: somebody may put another function there.
        args: what it is asked.
        expected: the answer.
    """

    name: str
    module: str
    function: str
    args: tuple[Any, ...]
    expected: Any

    def check(self, model: nn.Module) -> None:
        """Raise unless the answer is the one that it was.

        Raises:
            AssumptionViolated: it is another.
        """
        if torch.compiler.is_compiling() or self.holds():
            return
        now = self.now()
        told = is_plain(self.expected, 0) and is_plain(now, 0)
        what = (
            f"for {self.name} == {self.expected!r}, and now it is {now!r}"
            if told
            else f"before {self.name} changed"
        )
        raise AssumptionViolated(f"this model was captured {what}. Call rewrite again.")

    def holds(self) -> bool:
        """Whether the answer is the one that it was."""
        now = self.now()
        return type(now) is type(self.expected) and bool(now == self.expected)

    def now(self) -> Any:
        """The answer, as it is now."""
        return answer(getattr(importlib.import_module(self.module), self.function), *self.args)


def answer(function: Callable[..., Any], *args: Any) -> Any:
    """What a function answers, also where that is an error."""
    try:
        return copy.deepcopy(function(*args))
    except Exception as error:
        return _Raised(type(error).__name__)


def is_comparable(value: Any) -> bool:
    """Whether an answer can be told from another: made of numbers, strings and containers of such."""
    if isinstance(value, Mapping):
        return all(is_comparable(part) for entry in value.items() for part in entry)
    if type(value) in (tuple, list, set, frozenset):
        return all(map(is_comparable, value))
    return is_plain(value) or isinstance(value, (bytes, _Raised)) or value is ABSENT


# --- questions of ours, by which a graph asks less than code did, but all that it may have used ----------------------


_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


def variable(key: str | bytes) -> Any:
    """A variable of the environment; `ABSENT` if it is not set."""
    return os.environ.get(os.fsdecode(key), ABSENT)


def variables() -> list[str]:
    """The names of all variables of the environment."""
    return list(os.environ)


def listing(path: Any) -> list[Any]:
    """The names in a directory."""
    return sorted(os.listdir(path))


def is_there(path: Any, follow: bool = True) -> bool:
    """Whether there is a file or a directory."""
    return os.path.exists(path) if follow else os.path.lexists(path)


def kind(path: Any, follow: bool = True) -> str | None:
    """What there is: a "file", a "directory", a "link" or something "else"; None if nothing is."""
    found = _stat(path, follow)
    return None if found is None else _KINDS.get(stat.S_IFMT(found.st_mode), "else")


def state(path: Any, follow: bool = True) -> tuple[int, int, int] | None:
    """What there is, its size in bytes, and when it was written; None if nothing is."""
    found = _stat(path, follow)
    return None if found is None else (found.st_mode, found.st_size, found.st_mtime_ns)


def _stat(path: Any, follow: bool) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=follow)
    except (OSError, ValueError):
        return None
