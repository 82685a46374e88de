"""Which part of a graph lies before a node, and whether that node separates the input from the output."""

from __future__ import annotations

import builtins
import inspect
import operator
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from graphaug.values import UNKNOWN, value_of

if TYPE_CHECKING:  # imported where it is used: it takes half of the library's own import time
    import networkx as nx

# What these read of a tensor is no data of its rows, and carries no gradient.
_SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad", "names"}
_SHAPE_METHODS = {
    "size", "dim", "numel", "nelement", "ndimension", "stride", "is_floating_point", "is_contiguous",
    "get_device", "item", "tolist", "new_zeros", "new_ones", "new_empty", "new_full", "detach",
}  # fmt: skip
_SHAPE_FUNCTIONS: set[Any] = {
    builtins.len, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
    torch.is_floating_point, torch.numel, torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like,
}  # fmt: skip


_METADATA_METHODS = {"size", "dim", "numel", "nelement", "ndimension", "stride", "get_device"} | {
    "is_floating_point", "is_contiguous",
}  # fmt: skip


def reads_metadata(node: fx.Node) -> bool:
    """True for what asks a tensor for its shape, type or place: augmented or not, the answer is the same."""
    if node.op == "call_function":
        if node.target is getattr:
            return node.args[1] in _SHAPE_ATTRIBUTES - {"requires_grad"}
        return node.target in (builtins.len, torch.is_floating_point, torch.numel)
    return node.op == "call_method" and node.target in _METADATA_METHODS


def reads_no_data(node: fx.Node) -> bool:
    """True for shape look-ups, comparisons, detaching: nothing differentiable comes out."""
    if node.op == "call_function":
        if node.target is getattr:
            return node.args[1] in _SHAPE_ATTRIBUTES
        return node.target in _SHAPE_FUNCTIONS
    return node.op == "call_method" and node.target in _SHAPE_METHODS


def carries_gradient(value: Any) -> bool:
    """True if a value holds a tensor that requires a gradient."""
    leaves = torch.utils._pytree.tree_leaves(value)
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)


_VIEWS = {
    "view", "view_as", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "narrow", "select",
    "chunk", "split", "unbind", "flatten", "unflatten", "t", "movedim", "diagonal", "unfold",
}  # fmt: skip
_WRITES = {operator.setitem, setattr} | {
    getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
}


def writes(node: fx.Node) -> bool:
    """True for what changes its first argument in place."""
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).startswith("_")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    return node.target in _WRITES or (name.endswith("_") and not name.endswith("__")) or _is_inplace(node)


def _is_inplace(node: fx.Node) -> bool:
    """Whether a function is called with ``inplace=True``, as a keyword or by its place."""
    if "inplace" in node.kwargs or not isinstance(node.target, types.FunctionType):
        return bool(node.kwargs.get("inplace"))
    names = list(inspect.signature(node.target).parameters)
    place = names.index("inplace") if "inplace" in names else len(node.args)
    return place < len(node.args) and bool(node.args[place])


def _is_view(node: fx.Node) -> bool:
    """Whether a node's value lies in the memory of its first argument, as far as its name tells."""
    if node.op == "call_method":
        return node.target in _VIEWS
    named = getattr(node.target, "__name__", "") in _VIEWS
    return node.target in (operator.getitem, getattr) or (node.op == "call_function" and named)


def memory(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Whose memory every node's value lies in: its own, or that of what it is a view of or writes into."""
    owner: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        first = node.args[0] if node.args else None
        shares = isinstance(first, fx.Node) and (writes(node) or _is_view(node))
        owner[node] = owner[first] if shares else node  # type: ignore[index]
    return owner


def reads(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """What every node reads: its arguments, and what was last written into them or a view of them."""
    owner = memory(graph)
    last: dict[fx.Node, fx.Node] = {}
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        written = [last[owner[n]] for n in inputs if owner[n] in last]
        found[node] = list(dict.fromkeys([*inputs, *written]))
        if writes(node):
            last[owner[node]] = node
    return found


def data_graph(graph: fx.Graph) -> nx.DiGraph:
    """The differentiable data flow: nodes that depend on an input and carry a gradient, and the output.

    Where example values are known, their ``requires_grad`` decides; elsewhere the kind of the node does.
    """
    import networkx as nx

    flow = nx.DiGraph()
    depends: set[fx.Node] = set()
    for node, inputs in reads(graph).items():
        if node.op == "output":
            flow.add_node(node)
            flow.add_edges_from((n, node) for n in inputs if n in flow)
            continue
        value = value_of(node)
        known = value is not UNKNOWN
        from_input = node.op == "placeholder" or any(n in depends for n in inputs)
        if not from_input or (reads_no_data(node) and not known):
            continue
        if writes(node) and value is None:  # what it changed carries what it wrote
            value = [value_of(n) for n in node.all_input_nodes]
            known = not any(v is UNKNOWN for v in value)
        if known and not torch.utils._pytree.tree_any(lambda v: isinstance(v, Tensor), value):
            continue
        depends.add(node)
        # of an unknown value anything may be data, from integers too (an embedding)
        # what was made empty and then filled has a gradient by now, but not from where its size comes
        if not reads_no_data(node) and (not known or carries_gradient(value)):
            flow.add_node(node)
            flow.add_edges_from((n, node) for n in inputs if n in flow)
    return flow


def before(node: fx.Node) -> set[fx.Node]:
    """Everything that ``node`` is computed from, itself included."""
    inputs = reads(node.graph)
    seen, stack = {node}, [node]
    while stack:
        for parent in inputs[stack.pop()]:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return seen


@dataclass(frozen=True)
class Bypass:
    """A differentiable way around a cut: ``join`` also receives ``value``, which the cut depends on."""

    value: fx.Node
    join: fx.Node
    nearest: fx.Node | None
    """The first node behind the cut that does separate, if there is one."""


def find_bypass(flow: nx.DiGraph, cut: fx.Node) -> Bypass | None:
    """Return a way from the input to the output around ``cut``, or None if ``cut`` separates them.

    What lies beside the cut and never feeds it (another tower, a mask) is no bypass.
    """
    import networkx as nx

    found = _way_around(flow, cut)
    if found is None:
        return None
    output = next(n for n in flow if n.op == "output")
    nearest = None
    if cut in flow and nx.has_path(flow, cut, output):
        dominators = nx.immediate_dominators(flow.reverse(copy=False), output)
        step = dominators[cut]
        while step is not None and step.op != "output":
            if "site" in step.meta and _way_around(flow, step) is None:
                nearest = step
                break
            step = dominators[step]
    return Bypass(*found, nearest)


def _way_around(flow: nx.DiGraph, cut: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    import networkx as nx

    if cut not in flow:
        return None
    ahead = nx.ancestors(flow, cut)
    behind = nx.descendants(flow, cut)
    leak = _second_output(flow, cut)
    if leak is not None:
        return cut, leak
    stack: list[tuple[fx.Node, fx.Node]] = [(n, n) for n in reversed([n for n in flow if n in ahead])]
    seen = set(ahead)
    reaches = nx.ancestors(flow, next(n for n in flow if n.op == "output"))
    while stack:
        value, node = stack.pop()
        for user in flow.successors(node):
            if user is cut:
                continue
            if user in behind or user.op == "output":
                if user.op == "output" or user in reaches:
                    return value, user
            elif user not in seen:
                seen.add(user)
                stack.append((value, user))
    return None


def _second_output(flow: nx.DiGraph, cut: fx.Node) -> fx.Node | None:
    """The user of another entry than the first of a tuple at the cut: it is not augmented."""
    value = value_of(cut)
    if isinstance(value, Tensor):
        return None
    user: fx.Node
    for user in flow.successors(cut):
        if user.target is operator.getitem and isinstance(user.args[1], int):
            if value is UNKNOWN or not isinstance(value, (tuple, list)):
                continue  # indexing a tensor of unknown value, as far as anyone can tell
            if user.args[1] not in (0, -len(value)):
                return user
    return None


def parameters_of(
    node: fx.Node, get_module: Callable[[str], torch.nn.Module], get_parameter: Callable[[str], Any]
) -> list[torch.nn.Parameter]:
    """The parameters that one node uses."""
    if node.op == "call_module":
        return list(get_module(str(node.target)).parameters())
    if node.op == "get_attr":
        try:
            return [get_parameter(str(node.target))]
        except AttributeError:  # a buffer, a constant, a module handed to a function
            try:
                return list(get_module(str(node.target)).parameters())
            except AttributeError:
                return []
    return []
