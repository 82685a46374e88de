"""Autocast regions of opened code: each is kept as it nests, relative to what the caller has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphaug.capture.recording.nodes import Nodes
from graphaug.capture.recording.session import Session
from graphaug.capture.recording.values.structures import plain
from graphaug.capture.regions import autocast_state
from graphaug.torch_private import enter_autocast, exit_autocast

_INIT = inspect.signature(torch.autocast.__init__)
_AS_A_REGION = (
    " A graph keeps autocast as a region alone: write `with torch.autocast(...):` around that part, or choose a site "
    "outside that module, so that it stays closed."
)


class Regions:
    """The autocast regions that opened code makes, enters and leaves.

    Args:
        session: of the recording.
        nodes: its graph.
        lower: what a node holds for a value of opened code.
    """

    def __init__(self, session: Session, nodes: Nodes, lower: Callable[[Any], Any]) -> None:
        self.session, self.nodes, self._lower = session, nodes, lower
        self._made: dict[int, tuple[Any, tuple[Any, ...], list[fx.Node]]] = {}
        self._open: list[tuple[Any, fx.Node]] = []
        self.begin()

    def begin(self) -> None:
        """Remember the state that the forward starts in."""
        self._state = autocast_state()

    def make(self, original: Callable[..., Any], region: Any, /, *args: Any, **kwargs: Any) -> None:
        """``torch.autocast(...)`` in opened code: what it leaves open is what the caller has, in every call."""
        given = _INIT.bind(region, *args, **kwargs)
        given.apply_defaults()
        _, *options = given.arguments.values()
        self.session.call_unrecorded(original, region, *map(plain, options))
        self._made[id(region)] = region, tuple(map(self._lower, options)), self._around()

    def enter(self, original: Callable[..., Any], region: Any) -> Any:
        """A region begins. One that was made elsewhere, as a decorator's, has by now what it was made with.

        Raises:
            CaptureError: it was made in the forward, and not where it begins, so that it is of another region.
        """
        made = self._made.get(id(region))
        if made is None:
            options: tuple[Any, ...] = (
                region.device,
                region.fast_dtype,
                region._enabled,
                region._cache_enabled,
            )
        else:
            _, options, within = made
            if within != self._around():
                raise self.session.refuse(
                    "it makes an autocast region outside of another one, and enters it inside, or the other way round",
                    reason=" Make it where it is entered: `with torch.autocast(...):`.",
                )
        entered = self.session.call_unrecorded(original, region)
        node = self.nodes.create("call_function", enter_autocast, options, {})
        node.meta["value"] = None  # it computes nothing, and is known
        self._open.append((region, node))
        self._state = autocast_state()
        return entered

    def leave(self, original: Callable[..., Any], region: Any, *error: Any) -> Any:
        """A region ends, and what was there before it comes back.

        Raises:
            CaptureError: it is not the innermost one.
        """
        if not self._open or self._open[-1][0] is not region:
            raise self.session.refuse(
                "it leaves an autocast region that is not the innermost one", reason=_AS_A_REGION
            )
        found = self.session.call_unrecorded(original, region, *error)
        _, begun = self._open.pop()
        self._state = autocast_state()
        if next(iter(reversed(self.nodes.graph.nodes)), None) is begun:  # nothing in between
            self.nodes.graph.erase_node(begun)
        else:
            node = self.nodes.create("call_function", exit_autocast, (begun,), {})
            node.meta["value"] = None
        return found

    def check(self) -> None:
        """Refuse what is no region.

        Raises:
            CaptureError: opened code set autocast by itself.
        """
        if self._state != autocast_state():
            raise self.session.refuse(
                "it sets autocast by itself (torch.set_autocast_enabled, say)", reason=_AS_A_REGION
            )

    def check_left(self) -> None:
        """Refuse a region that the forward has not left when it ends."""
        if self._open:
            raise self.session.refuse(
                "it enters an autocast region and does not leave it", reason=_AS_A_REGION, line=""
            )

    def _around(self) -> list[fx.Node]:
        return [node for _, node in self._open]


def region_of_maybe(original: Callable[..., Any], device_type: str, *args: Any, **kwargs: Any) -> Any:
    """What stands for ``maybe_autocast`` of transformers, which opens no region where it would change nothing.

    That depends on the caller; a region that changes nothing does not.
    """
    if plain(device_type) == "meta":  # which has no autocast
        return original(device_type, *args, **kwargs)
    return torch.autocast(device_type, *args, **kwargs)
