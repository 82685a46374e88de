"""The insertion pass: a node of Deep Augmentation at every site."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import fx

from graphaug.capture.capture import Captured
from graphaug.capture.dataflow import reads_metadata
from graphaug.capture.names import mark
from graphaug.capture.recording.values.used import used_entry
from graphaug.capture.target import Target
from graphaug.capture.values import value_of
from graphaug.errors import SiteNotFound
from graphaug.select.nodes import find_node


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of ``graph`` with its metadata, and the map from old nodes to new ones."""
    copied = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        mapping[node] = copied.node_copy(node, lambda n: mapping[n])
    return copied, mapping


def insert(
    captured: Captured,
    names: Mapping[Target, str],
    resized: Collection[Target] = (),
    *,
    whole: bool = True,
) -> tuple[fx.Graph, dict[Target, fx.Node]]:
    """Put a call of the module ``names[target]`` at every target.

    Args:
        captured: the model's graph; it is left as it is.
        names: target -> name of the augmentation module that acts there.
        resized: targets behind which sizes are others than before.
        whole: give the modules all that a site returns, also where the model goes on with one tensor of it alone.

    Returns:
        The new graph, and the augmentation's node for every target.

    Raises:
        SiteNotFound: the graph has no such site.
    """
    graph, mapping = copy_graph(captured.graph)
    placed: dict[Target, fx.Node] = {}
    for target, name in names.items():
        original = find_node(captured, target)
        if original is None:
            why = "is not called in the forward of this model in this mode"
            if not target.path and target.op is None:
                why = "holds no floating-point tensor: choose a site with activations"
            raise SiteNotFound(f"'{target}' {why}.")
        node = mapping[original]
        if node.target is mark:
            placed[target] = _after(graph, node.args[0], name, users=list(node.users))  # type: ignore[arg-type]
            placed[target].meta.update({key: node.meta[key] for key in ("entry", "in_structure")})
            node.replace_all_uses_with(placed[target])
            graph.erase_node(node)
            mapping[original] = placed[target]
        elif target.side == "before" and target.path + (target.op or ""):
            placed[target] = _before(graph, node, name, target)
        else:
            # sizes read off the value are no business of the augmentation, unless it changes them
            value = node if whole else used_entry(node)
            users = [u for u in value.users if target in resized or not reads_metadata(u)]
            placed[target] = _after(graph, value, name, users)
            placed[target].meta["entry"] = _keys(value, node)
    graph.lint()
    return graph, placed


def _keys(entry: fx.Node, whole: fx.Node) -> tuple[Any, ...]:
    """What leads from a structure to an entry of it."""
    keys: list[Any] = []
    node: Any = entry
    while node is not whole:
        node, key = node.args
        keys.insert(0, key)
    return tuple(keys)


def _after(graph: fx.Graph, node: fx.Node, name: str, users: list[fx.Node]) -> fx.Node:
    with graph.inserting_after(node):
        new = graph.call_module(name, (node,))
    if node.op == "placeholder":  # all placeholders first, or the graph is not one
        last = [n for n in graph.nodes if n.op == "placeholder"][-1]
        last.append(new)
    _describe(new, node)
    for user in users:
        user.replace_input_with(node, new)
    return new


def _before(graph: fx.Graph, consumer: fx.Node, name: str, target: Target) -> fx.Node:
    """Augment what enters ``consumer`` first; others that use the same value get it as it is."""
    first = next((a for a in (*consumer.args, *consumer.kwargs.values()) if isinstance(a, fx.Node)), None)
    if first is None:
        raise SiteNotFound(f"'{target}': that module takes no input of the graph.")
    with graph.inserting_before(consumer):
        new = graph.call_module(name, (first,))
    _describe(new, first)
    position = next((i for i, a in enumerate(consumer.args) if a is first), None)
    if position is not None:
        consumer.update_arg(position, new)
    else:
        key = next(k for k, a in consumer.kwargs.items() if a is first)
        consumer.update_kwarg(key, new)
    return new


def _describe(new: fx.Node, source: fx.Node) -> None:
    new.meta["augmentation"] = True
    new.meta["value"] = value_of(source)
