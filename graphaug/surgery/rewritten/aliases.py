"""Names that generated code cannot write: a child called ``class`` or ``plan``, or with a quote in its name.

A graph names children as ``self.layer1.conv``. That is no Python where a name is a keyword or no identifier, and
another thing where the class of ``self`` has an attribute of that name. Such paths get an alias, which the rewritten
model looks up.
"""

from __future__ import annotations

import keyword
from typing import Any

from torch import fx, nn

ALIAS = "graphaug_alias_"
_EMPTY = fx.GraphModule(nn.Module(), fx.Graph())
INTERNAL = frozenset(vars(_EMPTY)) | {
    *("_parts", "_aliases", "_own", "_agreed", "_registry", "_frozen_statistics")
}
"""What lies in the ``__dict__`` of a rewritten model itself."""
_TAKEN = INTERNAL | vars(type(_EMPTY)).keys()
"""Beside that, what torch puts into the class that it makes for every graph module: ``_wrapped_call``."""
_BREAKS_QUOTES = set('"\\\n\r\0')


def speakable(graph: fx.Graph, owner: type, aliases: dict[str, list[str]]) -> fx.Graph:
    """The graph itself, or if it names what cannot be written, a copy with aliases; their paths go into ``aliases``."""
    if not any(_is_path(node) and _is_unspeakable(str(node.target), owner) for node in graph.nodes):
        return graph
    copied = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        new = mapping[node] = copied.node_copy(node, lambda n: mapping[n])
        if _is_path(node) and _is_unspeakable(str(node.target), owner):
            new.target = ALIAS + str(node.target).encode().hex()
            aliases[new.target] = str(node.target).split(".")
    return copied


def at_alias(aug: Any, alias: str) -> Any:
    """What an alias stands for: a module, parameter, buffer, number or tensor at a path, whatever its names are."""
    *parents, last = aug._aliases[alias]
    owner: nn.Module = aug
    for parent in parents:
        child = owner._modules[parent]
        assert child is not None
        owner = child
    for registry in (owner._modules, owner._parameters, owner._buffers):
        if last in registry:
            return registry[last]
    return getattr(owner if parents else aug._parts.model, last)


def _is_path(node: fx.Node) -> bool:
    return node.op in ("call_module", "get_attr")


def _is_unspeakable(path: str, owner: type) -> bool:
    """Whether torch's generated code would be no Python, or mean something else; it quotes what is no identifier."""
    first, *rest = path.split(".")
    taken = hasattr(owner, first) or first in _TAKEN or first.startswith(("_forward_", ALIAS, "__"))
    return taken or any(keyword.iskeyword(e) or set(e) & _BREAKS_QUOTES for e in (first, *rest))
