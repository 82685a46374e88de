"""Whose code runs in a recording, whether it is opened code, and how what it does is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from graphaug.capture.dataflow import upstream
from graphaug.capture.names import Frame
from graphaug.capture.user_checks import only_checks
from graphaug.capture.user_code import defined_at, user_line, users_frame
from graphaug.capture.values import describe
from graphaug.errors import CaptureError

_LAYER_DROP = (
    " A draw decides what runs, as LayerDrop does: set it to 0 for this model (transformers: "
    "model.config.layerdrop = 0.0), or choose a site outside that module, so that it stays closed."
)
_CHECK = (
    " A graph keeps a check that is an operation: write torch._assert_async(condition, 'message'), of one entry, "
    "or choose a site outside that module, so that it stays closed."
)
"""What to do about a condition that only leads to an error."""

RETURN_IT = (
    " A graph knows what modules return: let it return that too, "
    "or choose a site outside the module that reads it."
)
"""What to do about a value that a closed module keeps and opened code reads."""


class Session:
    """What the parts of one recording share.

    Attributes:
        model: the name of the model's class, for errors.
        defined: where its forward is defined, as `user_line` tells it.
        aside: whether code of ours or closed code runs: nothing is recorded.
        frames: the opened modules whose forwards run, the innermost last.
        refused: the first refusal, also if opened code caught it.
        guessed: where the examples come from, if the user gave none; else empty.
        without_caches: tells what turns off the caches that the model's modules fill, as advice; empty if nothing does.
        training: the mode of the model.
        to_open: closed modules that have to be opened before anything can be recorded.
        left_tensors: whether they are to be opened for tensors alone, which none need read.
        unless_opened: what is refused if they cannot be recorded either; None to refuse what is in the way there.
    """

    def __init__(self, model: nn.Module, guessed: str, without_caches: Callable[[], str]) -> None:
        self.model, self.defined = type(model).__name__, defined_at(type(model).forward)
        self.guessed, self.without_caches = guessed, without_caches
        self.aside, self.training = False, True
        self.frames: list[Frame] = []
        self.refused: CaptureError | None = None
        self.to_open: frozenset[str] = frozenset()
        self.unless_opened: CaptureError | None = None
        self.left_tensors = False
        self._caller = id(users_frame())

    @contextlib.contextmanager
    def _with(self, aside: bool) -> Iterator[None]:
        before, self.aside = self.aside, aside
        try:
            yield
        finally:
            self.aside = before

    def unrecorded(self) -> contextlib.AbstractContextManager[None]:
        """A context for code of ours, or closed code."""
        return self._with(aside=True)

    def recorded(self) -> contextlib.AbstractContextManager[None]:
        """A context for opened code, inside of an unrecorded one."""
        return self._with(aside=False)

    def call_unrecorded(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call something without recording it."""
        with self.unrecorded():
            return function(*args, **kwargs)

    def line(self) -> str:
        """`` (file.py line 12)`` of the opened code that runs; empty if none does."""
        return "" if id(users_frame()) == self._caller else user_line()

    def about_caches(self, *objects: Any) -> str:
        """What turns them off, as advice after a space, if one of these is a cache by its name; else empty."""
        named = any("cache" in type(held).__name__.lower() for held in objects)
        return self.without_caches() if named else ""

    def depends(self, node: fx.Node, verb: str) -> CaptureError:
        """The refusal of a step that data decide, and what to do if they are a draw.

        Args:
            node: the data.
            verb: what the code does with them, such as "branches on".
        """
        drawn = any(n.target is torch.rand for n in upstream(node))
        reason = _LAYER_DROP if drawn else _CHECK if only_checks() else ""
        return self.refuse(f"it {verb} the data in {describe(node)}", reason=reason)

    def refuse(self, why: str, *, reason: str = "", line: str | None = None) -> CaptureError:
        """A `CaptureError` that names the model, the file and the line of the opened code that runs.

        Args:
            why: what the code does, as "it ...".
            reason: what to do about it, after a space; without one, to choose another site.
            line: the place, of what is refused once the code has run; else that of the forward itself.
        """
        advice = (
            reason or " A graph cannot hold it; choose a site outside that module, so that it stays closed."
        )
        at = (self.line() or self.defined) if line is None else line
        error = CaptureError(f"{self.model}.forward cannot be captured: {why}{at}.{advice}")
        self.refused = self.refused or error
        return error
