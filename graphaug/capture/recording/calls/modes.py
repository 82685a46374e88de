"""The modes of torch that opened code switches: grad mode and autocast are kept in the graph, all else is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import torch
from torch import fx

from graphaug.capture.recording.calls.autocast import Regions
from graphaug.capture.recording.nodes import Nodes
from graphaug.capture.recording.session import Session
from graphaug.capture.regions import IS_GRAD_ENABLED
from graphaug.capture.switches import entered, switched, switches
from graphaug.capture.user_code import is_internal
from graphaug.errors import CaptureError


class Modes:
    """The modes in which opened code runs; those of its start are the caller's.

    Attributes:
        autocast: its regions of autocast.
    """

    def __init__(self, session: Session, nodes: Nodes, lower: Callable[[Any], Any]) -> None:
        self.session, self.nodes = session, nodes
        self.autocast = Regions(session, nodes, lower)
        self._entered: list[
            fx.Node
        ] = []  # per block that sets the grad mode: the node that asks for the one before
        self._seed = torch.initial_seed()
        self.begin()

    def begin(self) -> None:
        """Remember the modes that the forward starts in; what differs later, it set itself.

        Raises:
            CaptureError: they are those of ``torch.inference_mode()``, in which nothing is trained.
        """
        if torch.is_inference_mode_enabled():
            raise CaptureError(
                f"{self.session.model} cannot be captured inside of torch.inference_mode(), whose tensors never have "
                "gradients: call this outside of it."
            )
        self.autocast.begin()
        self._grad_mode = torch.is_grad_enabled()
        self._switches, self._device = switches(), torch.get_default_device()
        self._of_functions, self._of_operations = entered(of_functions=True), entered(of_functions=False)

    def set_grad_mode(self, function: Any, mode: bool, caller: FrameType) -> None:
        """Keep ``with torch.no_grad():`` as it nests: at its end comes back what the caller had.

        Args:
            function: what sets the mode, one of torch's private functions.
            mode: whether gradients are wanted.
            caller: the frame that called it.
        """
        before = torch.is_grad_enabled()
        function(mode)
        self._grad_mode = mode
        create = self.nodes.create
        if _is_second_half(caller):
            if before != mode:
                create("call_function", function, (mode,), {})
            return
        if not self._entered or not _is_exit(caller):
            self._entered.append(create("call_function", IS_GRAD_ENABLED, (), {}))
            create("call_function", function, (mode,), {})
            return
        outer = self._entered.pop()
        last = next(iter(reversed(self.nodes.graph.nodes)), None)
        if last is not None and last.target is function and last.prev is outer:  # nothing in between
            self.nodes.graph.erase_node(last)
            if not outer.users:
                self.nodes.graph.erase_node(outer)
            return
        create("call_function", function, (outer,), {})

    def follow(self) -> None:
        """What closed code left switched it leaves so in every call of the graph, too."""
        self._switches = switches()

    def check_end(self) -> None:
        """Refuse what a graph does not keep where the forward ends; raises as `check` does."""
        self.check()
        self.autocast.check_left()

    def check(self, *, module: bool = False) -> None:
        """Refuse what a graph does not keep.

        Args:
            module: whether a closed module is called next; a function of opened code has its device as an argument, and
                passed the modes of functions on its way here.

        Raises:
            CaptureError: opened code runs in an inference region of its own, set autocast or a switch of torch, or
                seeded its generator.
        """
        refuse = self.session.refuse
        around = " Set it around the call of the model, or choose a site outside that module, so that it stays closed."
        if name := switched(self._switches):
            raise refuse(f"it sets {name}, which a graph does not keep", reason=around)
        if module and torch.get_default_device() != self._device:
            raise refuse("it sets torch's default device, which a graph does not keep", reason=around)
        within = entered(of_functions=False) != self._of_operations
        if within or (module and entered(of_functions=True) != self._of_functions):
            raise refuse(
                "it enters a mode that sees what torch runs, which a graph does not keep", reason=around
            )
        self.autocast.check()
        if torch.is_inference_mode_enabled():
            raise refuse("it opens an inference_mode region, which a graph does not keep")
        if torch.is_grad_enabled() != self._grad_mode:
            raise refuse(
                "it calls an autograd function by a name bound earlier (`f = Function.apply`)",
                reason=" Call Function.apply itself, or choose a site outside that module.",
            )
        if torch.initial_seed() != self._seed and threading.active_count() == 1:  # else it may be another's
            raise refuse("it seeds torch's generator, and a graph would go on drawing from the caller's")


def _is_second_half(frame: FrameType) -> bool:
    """Whether a ``with torch.set_grad_enabled(...)`` begins: its constructor has set the mode and noted the old one."""
    code = next(_internal_codes(_past_functions(frame), 1), None)
    return code is not None and code.co_qualname == "set_grad_enabled.__enter__"


def _is_exit(frame: FrameType) -> bool:
    """Whether a block ends here: the code of torch that called is, or is called by, an ``__exit__``."""
    return any(code.co_name == "__exit__" for code in _internal_codes(_past_functions(frame), 3))


def _past_functions(frame: FrameType | None) -> FrameType | None:
    """The frame behind those of function modes."""
    while frame is not None and frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    return frame


def _internal_codes(frame: FrameType | None, count: int) -> Iterator[CodeType]:
    for _ in range(count):
        if frame is None:
            return
        if is_internal(frame.f_code.co_filename):
            yield frame.f_code
        frame = frame.f_back
