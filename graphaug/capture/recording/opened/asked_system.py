"""What opened code asks Python and the system: of files, the environment, the process. The graph holds for the answers.

What cannot be compared with another answer is a note in the plan, by the line that asks.
"""

from __future__ import annotations

import gc
import os
import stat
import sys
import types
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch

from graphaug.capture.recording.patches import Patches
from graphaug.capture.recording.relied import answered
from graphaug.capture.recording.relied.answered import Answered, answer, is_comparable
from graphaug.capture.recording.session import Session
from graphaug.capture.user_code import asking

_OF_OS = (
    *("access", "cpu_count", "process_cpu_count", "sched_getaffinity", "readlink", "urandom"),
    *("getcwd", "getcwdb", "getpid", "getppid", "getuid", "geteuid", "getgid", "getegid", "getlogin"),
)
ASKED = (
    (os, _OF_OS),
    (sys, ("getrecursionlimit", "getswitchinterval")),
    (gc, ("isenabled", "get_threshold", "get_debug")),
    (np, ("geterr", "get_printoptions", "getbufsize")),
)
"""What answers by itself: modules, and names of functions in them."""
_OF_DEVICES = ("is_available", "device_count", "current_device", "get_device_name", "get_device_capability")
ASKED_OF_TORCH = ((torch.utils.data, ("get_worker_info",)), (torch.cuda, _OF_DEVICES))
"""The same of torch, whose own code asks too, where that is no question of the model's."""
_USED = {
    **dict.fromkeys(("exists", "lexists"), "is_there"),
    **dict.fromkeys(
        ("isfile", "isdir", "islink", "is_file", "is_dir", "is_symlink", "glob", "iglob"), "kind"
    ),
}
"""Functions of Python's that use less of what the system says of a file than all, and what that is."""
_WRITES = frozenset("wax+")


class AskedSystem:
    """Notes what opened code asks Python and the system.

    Args:
        session: tells whether opened code runs.
        patches: puts functions of ours in the places of the questions.
        asks: whether a frame runs opened code.
        files: those with the code of opened modules.

    Attributes:
        lines: where it asks what nothing compares, or writes to a file.
    """

    def __init__(
        self,
        session: Session,
        patches: Patches,
        asks: Callable[[types.FrameType], bool],
        files: AbstractSet[str],
    ) -> None:
        self._session, self.patches, self._asks, self._files = session, patches, asks, files
        self.lines: dict[str, None] = {}
        self._answers: dict[tuple[Any, ...], tuple[Answered, str]] = {}
        self._trace = sys.gettrace()

    def watch(self, by_function: dict[Any, Callable[..., Any]]) -> None:
        """See what is asked; a question with what takes its place is added for those that go by another name."""
        method = self.patches.method
        for owner, names in (*ASKED, *ASKED_OF_TORCH):
            for name in (n for n in names if hasattr(owner, n)):
                by_function[getattr(owner, name)] = self._named(owner, name)
                method(owner, name, by_function[getattr(owner, name)])
        for name in ("listdir", "scandir", "stat", "lstat"):
            asked = self._listed if name in ("listdir", "scandir") else self._file(follows=name == "stat")
            by_function[getattr(os, name)] = asked
            method(os, name, asked)
        method(np.lib.npyio.DataSource, "open", self._by_numpy)
        environment: Any = type(os.environ)
        method(environment, "__getitem__", self._variable)
        for name in ("__iter__", "__len__"):
            method(environment, name, self._variables)
        method(sys, "gettrace", lambda _: self._trace)  # a recording has one of its own

    def answers(self) -> list[Answered]:
        """What the graph relies on; what does not hold any more when the forward has run is a note instead."""
        found = []
        for answered_, line in self._answers.values():
            if answered_.holds():
                found.append(answered_)
            else:
                self.lines[line] = None
        return found

    def open(
        self, original: Callable[..., Any], /, file: Any, mode: str = "r", *args: Any, **kwargs: Any
    ) -> Any:
        """A file that opened code reads, by whatever library."""
        self._opens(file, mode)
        return original(file, mode, *args, **kwargs)

    def _by_numpy(
        self,
        original: Callable[..., Any],
        source: Any,
        /,
        path: Any,
        mode: str = "r",
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The same of ``np.loadtxt`` and its like, which hold on to Python's ``open``."""
        self._opens(path, mode)
        return original(source, path, mode, *args, **kwargs)

    def _opens(self, file: Any, mode: str) -> None:
        line, _ = asking(sys._getframe(3), self._files)
        if line and _WRITES.isdisjoint(mode) and _is_regular(file):
            self._note_file(file, "state", True, line)
        elif line:
            self.lines[line] = None

    # --- what is asked ----------------------------------------------------------------------------

    def _named(self, owner: types.ModuleType, name: str) -> Callable[..., Any]:
        by_others = owner.__name__.partition(".")[0] != "torch"

        def asked(original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(2)
            line = asking(frame, self._files)[0] if by_others or self._asks(frame) else ""
            if line and not kwargs:
                asked_of = tuple(os.fspath(arg) if isinstance(arg, os.PathLike) else arg for arg in args)
                told = ", ".join(map(repr, asked_of))
                self._note(f"{owner.__name__}.{name}({told})", owner, name, asked_of, line)
            elif line:
                self.lines[line] = None
            return original(*args, **kwargs)

        return asked

    def _listed(self, original: Callable[..., Any], /, path: Any = ".") -> Any:
        """What is in a directory."""
        line, _ = asking(sys._getframe(2), self._files)
        if line:
            held = os.fspath(path) if isinstance(path, os.PathLike) else path
            self._note(f"what is in {held!r}", answered, "listing", (held,), line)
        return original(path)

    def _file(self, follows: bool) -> Callable[..., Any]:
        def asked(original: Callable[..., Any], /, path: Any, **kwargs: Any) -> Any:
            line, by = asking(sys._getframe(2), self._files)
            follow = follows and kwargs.get("follow_symlinks", True)
            if line and (isinstance(path, int) or kwargs.get("dir_fd") is not None):
                self.lines[line] = None
            elif line:
                self._note_file(path, _USED.get(by, "state"), follow, line)
            return original(path, **kwargs)

        return asked

    def _variable(self, original: Callable[..., Any], environment: Any, key: Any) -> Any:
        """A variable of the environment."""
        line, _ = asking(sys._getframe(2), self._files)
        if line and isinstance(key, (str, bytes)):
            self._note(f"the environment's {os.fsdecode(key)}", answered, "variable", (key,), line)
        return original(environment, key)

    def _variables(self, original: Callable[..., Any], environment: Any) -> Any:
        line, _ = asking(sys._getframe(2), self._files)
        if line:
            self._note("the names in the environment", answered, "variables", (), line)
        return original(environment)

    def _note_file(self, path: Any, what: str, follow: bool, line: str) -> None:
        path = os.fspath(path)
        said = f"os.path.exists({path!r})" if what == "is_there" else f"the file {path!r}"
        self._note(said, answered, what, (path, follow), line)

    def _note(self, name: str, owner: Any, function: str, args: tuple[Any, ...], line: str) -> None:
        """Rely on an answer, or say in the plan that nobody does."""
        with self._session.unrecorded():
            said = answer(getattr(owner, function), *args)
        if is_comparable(args) and is_comparable(said):
            key = (owner.__name__, function, repr(args))
            self._answers.setdefault(key, (Answered(name, owner.__name__, function, args, said), line))
        else:
            self.lines[line] = None


def _is_regular(file: Any) -> bool:
    """Whether there is a file with something in it; what the kernel makes up when it is read has no size."""
    try:
        found = os.stat(file)
    except (OSError, TypeError, ValueError):
        return isinstance(file, (str, bytes, os.PathLike))  # none: whether it is there is relied on
    return not isinstance(file, int) and stat.S_ISREG(found.st_mode) and found.st_size > 0
