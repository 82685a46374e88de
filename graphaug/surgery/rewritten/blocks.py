"""Autocast regions in generated code: ``with`` blocks, which an error leaves too, and which every compiler follows."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

from torch import fx

from graphaug.torch_private import enter_autocast, exit_autocast

_Body = list[str]
_BLOCK = "    "


def _call_of(function: Callable[..., object]) -> re.Pattern[str]:
    """The line of a node that calls a function of torch: its name, the arguments, and what is freed behind it."""
    name = f"{function.__module__}.{function.__name__}"
    if not name.startswith("torch."):  # which fx writes as it is
        name = name.replace(".", "_")
    return re.compile(rf"(\w+) = {re.escape(name)}\(([^()]*)\)(?:;  (.*))?")


_BEGINS, _ENDS = _call_of(enter_autocast), _call_of(exit_autocast)


def in_blocks(graph: fx.Graph) -> contextlib.AbstractContextManager[None]:
    """A context in which the code that a graph generates has a block for every region.

    Where regions do not nest, as after an edit, it calls what begins and ends them.
    """
    context: contextlib.AbstractContextManager[None] = graph.on_generate_code(lambda _: _blocks)
    return context


def _blocks(body: _Body) -> _Body:
    """The lines of a body with blocks in the places of such calls."""
    made: _Body = []
    begun: list[str] = []
    empty = False
    for line in "".join(body).split("\n"):
        within = _BLOCK * len(begun)
        if begins := _BEGINS.fullmatch(line):
            name, options, frees = begins.groups()
            made.append(f"{within}with torch.autocast({options}):")
            made += [f"{within}{_BLOCK}{frees}"] if frees else []
            begun.append(name)
            empty = not frees
        elif ends := _ENDS.fullmatch(line):
            if not begun or begun.pop() != ends.group(2):
                return body
            made += [f"{within}pass"] if empty else []
            empty = False
        else:
            made.append(f"{within}{line}")
            empty = empty and (not line or line.startswith("#"))
    return body if begun else ["\n".join(made)]
