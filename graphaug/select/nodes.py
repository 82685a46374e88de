"""Between targets and the nodes of a captured graph: which node a target is, and how a user would name a node."""

from __future__ import annotations

from torch import Tensor, fx

from graphaug.capture.capture import Captured
from graphaug.capture.target import Target
from graphaug.capture.values import UNKNOWN, value_of


def target_of(node: fx.Node) -> Target | None:
    """The place that a node is the value of, or None if it is none that can be targeted."""
    if node.op == "placeholder":
        return Target("", None, None, "before")
    return node.meta.get("site")


def node_name(node: fx.Node, captured: Captured) -> str:
    """A node as a user would name it."""
    target = target_of(node)
    packed = target is None and all(user.op == "output" for user in node.users)
    if node.op == "output" or packed:  # what wraps the results for the caller has no name of its own
        return "the output"
    if target is None:
        parents = [n for n in node.all_input_nodes if target_of(n) is not None]
        return node_name(parents[0], captured) if parents else str(node.name)
    calls = captured.calls.get(target.path, 1) if target.path else 1
    return str(target if calls > 1 else Target(target.path, target.op, None, target.side))


def find_node(captured: Captured, target: Target) -> fx.Node | None:
    """The node that a target stands for: its value, or for an input side the node that consumes it."""
    if target.path == "" and target.op is None:
        return next((n for n in captured.graph.nodes if _is_data_input(n)), None)
    marked = captured.edges.get(Target(target.path, target.op, target.call or 0, target.side))
    if marked is not None:
        return marked
    wanted = Target(target.path, target.op, target.call or 0, "after")
    return next((n for n in captured.graph.nodes if n.meta.get("site") == wanted), None)


def _is_data_input(node: fx.Node) -> bool:
    """A placeholder that is no baked constant, and where that is known no integer tensor."""
    if node.op != "placeholder" or node.args:
        return False
    value = value_of(node)
    return value is UNKNOWN or (isinstance(value, Tensor) and value.is_floating_point())
