"""What is done with the objects of a type, and whose code is the user's."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphaug.capture.recording.kept.generators import ITERATORS
from graphaug.capture.recording.kept.kinds import KINDS
from graphaug.capture.recording.values.inside import bases, package_of

_FOREIGN = frozenset(
    {"torch", "numpy", "graphaug", "builtins", "typing", "_pytest", *sys.stdlib_module_names}
) - {"__main__"}
"""Packages whose code keeps nothing of a capture, or what it should."""
_CONTAINERS = frozenset(
    {
        "types",
        "collections",
        "functools",
        "argparse",
        "queue",
        "_queue",
        "weakref",
        "_thread",
        "_threading_local",
    }
)
"""Packages of the standard library whose objects hold what users put into them."""
_FUTURES = (torch.futures.Future, concurrent.futures.Future)
"""What has a result once and for all, which whoever gives it may be about to do in another thread."""


class Layout:
    """What is done with the objects of a type.

    Attributes:
        contents: how they are put back; None if that cannot be done, or need not.
        own: whether their attributes are the user's.
        followed: whether what they hold is looked at.
        may_move: whether they may be generators or counters.
        is_opaque: whether they may hold something and nothing can be put back, as iterators and futures.
    """

    def __init__(self, kind: type) -> None:
        line = bases(kind)
        self.contents = next((how for base, how in KINDS if base in line), None)
        package = package_of(kind)
        theirs = is_foreign(package) and package not in _CONTAINERS and not _holds_the_users(kind)
        self.own = (nn.Module in line or not theirs) and not (
            {Tensor, np.ndarray, threading.Thread} & set(line)  # a thread changes its own whenever it likes
        )
        self.may_move = package in ("random", "numpy", "itertools") or kind in ITERATORS or self.own
        # not into those of itertools: what they keep for later is their own
        inner = package in ("builtins", "_contextvars", "_collections")
        self.followed = self.own or inner or self.contents is not None
        self.is_opaque = self.contents is None and (kind in ITERATORS or bool(set(_FUTURES) & set(line)))


def _holds_the_users(kind: type) -> bool:
    """Whether a class is one of torch's optimizers and schedulers, which count steps, or holds a number of C."""
    module = vars(kind).get("__module__")
    return type(module) is str and module.startswith(("torch.optim", "multiprocessing.sharedctypes"))


def is_foreign(module: Any) -> bool:
    """Whether the code of a module or package keeps nothing of a capture, or what it should."""
    return type(module) is not str or not module or module.partition(".")[0] in _FOREIGN
