"""Autocast regions of a graph: the nodes that begin and end them, and torch's modes as a caller gets them back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphaug.torch_private import enter_autocast, exit_autocast, set_grad_enabled

IS_GRAD_ENABLED = torch.is_grad_enabled
"""The function itself, also while another stands in its place."""

SETS_A_MODE: frozenset[Callable[..., Any]] = frozenset({set_grad_enabled, enter_autocast, exit_autocast})
"""What nodes call that set the grad mode or autocast for the nodes behind them."""

KINDS = tuple(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))
"""The types of devices that autocast has a state for."""


def around(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """The nodes that began the regions every node runs in, the innermost last."""
    found: dict[fx.Node, list[fx.Node]] = {}
    within: list[fx.Node] = []
    for node in graph.nodes:
        if node.target is exit_autocast:
            within = [entered for entered in within if entered is not node.args[0]]
        found[node] = within
        if node.target is enter_autocast:
            within = [*within, node]
    return found


def ends_of(nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """The nodes that end the regions which some of the given nodes begin."""
    for node in nodes:
        if node.target is enter_autocast:
            yield from (user for user in node.users if user.target is exit_autocast)


def close(graph: fx.Graph) -> None:
    """End the regions that are open where a graph ends, the innermost first."""
    begun = [n for n in graph.nodes if n.target is enter_autocast]
    for node in reversed(begun):
        if next(ends_of([node]), None) is None:
            graph.call_function(exit_autocast, (node,))


def sets_grad_mode(graph: fx.Graph) -> bool:
    """Whether a graph sets the grad mode for a part of its nodes."""
    return any(node.target is set_grad_enabled for node in graph.nodes)


def autocast_state() -> tuple[Any, ...]:
    """What autocast does here: of each type of device whether it is on and its dtype, and whether casts are kept."""
    kinds = ((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in KINDS)
    return (*kinds, torch.is_autocast_cache_enabled())


@dataclass(frozen=True)
class Modes:
    """The grad mode and autocast, as they were.

    Attributes:
        gradients: whether gradients were on.
        autocast: as `autocast_state` tells.
        nesting: how many regions of autocast there were.
    """

    gradients: bool
    autocast: tuple[Any, ...]
    nesting: int

    @classmethod
    def here(cls) -> Modes:
        """Those of now."""
        torch.autocast_increment_nesting()
        return cls(IS_GRAD_ENABLED(), autocast_state(), torch.autocast_decrement_nesting())

    def put_back(self) -> None:
        """Set them again: an error has left some regions of a graph before their ends."""
        torch.set_grad_enabled(self.gradients)
        *states, cache = self.autocast
        for kind, (enabled, dtype) in zip(KINDS, states, strict=True):
            if torch.is_autocast_enabled(kind) != enabled:
                torch.set_autocast_enabled(kind, enabled)
            if torch.get_autocast_dtype(kind) != dtype:
                torch.set_autocast_dtype(kind, dtype)
        if torch.is_autocast_cache_enabled() != cache:
            torch.set_autocast_cache_enabled(cache)
        depth = torch.autocast_increment_nesting()
        while depth > self.nesting:
            depth = torch.autocast_decrement_nesting()
        if not depth:  # as torch.autocast does when the outermost region ends
            torch.clear_autocast_cache()


@contextlib.contextmanager
def put_back_on_error() -> Iterator[None]:
    """A block in which a graph runs, node by node: an error leaves the modes as they were."""
    before = Modes.here()
    try:
        yield
    except BaseException:
        before.put_back()
        raise
