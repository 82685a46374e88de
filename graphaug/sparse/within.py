"""The autocast regions that a cut lies in: what a split step does there, between its graphs, it does in them, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx

from graphaug.capture.regions import around

Result = TypeVar("Result")


@dataclass(frozen=True)
class Crossing:
    """Stands for a value that crosses the cut, by its place among those."""

    place: int


Options = tuple[Any, ...]
"""What ``torch.autocast`` is given: plain values, or what stands for one."""


def read_around(cut: fx.Node) -> list[fx.Node]:
    """The nodes that a cut's regions are told by, as the type of a tensor's device."""
    return [node for begun in around(cut.graph)[cut] for node in begun.all_input_nodes]


def regions_of(cut: fx.Node, crossing: Sequence[fx.Node]) -> tuple[Options, ...]:
    """The regions that a cut lies in, the outermost first.

    Args:
        cut: the node of the augmentation.
        crossing: what crosses it; all of `read_around` are among these.
    """

    def told(option: Any) -> Any:
        return Crossing(crossing.index(option)) if isinstance(option, fx.Node) else option

    return tuple(tuple(map(told, begun.args)) for begun in around(cut.graph)[cut])


def within(regions: Sequence[Options], crossing: Sequence[Any], run: Callable[[], Result]) -> Result:
    """Run something in regions.

    Args:
        regions: as `regions_of` gives them.
        crossing: the values that cross the cut.
        run: what is run.
    """
    if not regions:
        return run()
    options = [crossing[o.place] if isinstance(o, Crossing) else o for o in regions[0]]
    with torch.autocast(*options):
        return within(regions[1:], crossing, run)
