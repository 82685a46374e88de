"""What the nodes of a graph read, write and share memory with."""

from __future__ import annotations

import builtins
import inspect
import operator
import types
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, fx

from graphaug.capture.held import tensors_of
from graphaug.capture.regions import around, ends_of
from graphaug.capture.values import describe, value_of

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
    return any(tensor.requires_grad for tensor in tensors_of(value))


_VIEWS = {
    "view", "view_as", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "narrow", "select",
    "chunk", "split", "unbind", "flatten", "unflatten", "t", "movedim", "diagonal", "unfold", "detach", "swapaxes",
    "swapdims", "moveaxis", "ravel", "expand_as", "as_strided", "tensor_split", "hsplit", "vsplit", "dsplit",
    "split_with_sizes", "view_as_real", "view_as_complex", "adjoint",
}  # fmt: skip
_CONVERSIONS = {
    *("contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "int", "long", "short"),
    *("char", "byte", "bool", "cpu", "cuda", "real", "resolve_conj", "resolve_neg"),
}
"""Copies of a tensor of one dtype or layout; of another the tensor itself."""

_WRITES = {operator.setitem, setattr} | {
    getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
}


WRITTEN, SHARES = "written", "shares"
"""Notes in ``meta``: what a node wrote into on the example, and what its value shares memory with.

Each is told by (index or keyword of the argument, which of the nodes in it).
"""
BESIDE = "beside"
"""A note in ``meta``: the names of nodes that a closed module's result stands on and that are not in its arguments."""
HOLDS = "holds"
"""A note in ``meta``: the names of nodes for tensors that a closed module holds, and so reads."""
OF_GRADIENTS = {"register_hook", "register_post_accumulate_grad_hook", "retain_grad"}
"""Methods that change what is done with a tensor's gradient, and not its memory."""


def writes(node: fx.Node) -> bool:
    """True for what changes an argument in place, its gradient or ``grad`` included, or ``out``."""
    return bool(node.meta.get(WRITTEN)) or _writes_by_name(node)


def written(node: fx.Node) -> list[fx.Node]:
    """What a node changes in place: as its name tells, and as its run on the example showed."""
    by_name = nodes_in(_out(node) or _first(node)) if _writes_by_name(node) else []  # of _foreach_mul_ a list
    return [*by_name, *_noted(node, WRITTEN)]


def nodes_in(argument: Any) -> list[fx.Node]:
    """The nodes in an argument of a node, each as often as it is there."""
    found: list[fx.Node] = []
    fx.map_arg(argument, found.append)
    return found


def _noted(node: fx.Node, what: str) -> list[fx.Node]:
    arguments: dict[Any, Any] = dict(enumerate(node.args))
    arguments.update(node.kwargs)
    return [nodes_in(arguments[key])[place] for key, place in node.meta.get(what, ())]


def _writes_by_name(node: fx.Node) -> bool:
    if _out(node) is not None:
        return True
    if node.op == "call_method":
        name = str(node.target)
        return name in OF_GRADIENTS or (name.endswith("_") and not name.startswith("_"))
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    return node.target in _WRITES or (name.endswith("_") and not name.endswith("__")) or _is_inplace(node)


def _out(node: fx.Node) -> fx.Node | None:
    """What a function is told to write its result into; of several the first."""
    out = node.kwargs.get("out")
    first = out[0] if isinstance(out, (tuple, list)) and out else out
    return first if isinstance(first, fx.Node) else None


def _first(node: fx.Node) -> Any:
    """The first argument, also where all are given by name: what changes a tensor in place has it first."""
    return next(iter((*node.args, *node.kwargs.values())), None)


def _is_inplace(node: fx.Node) -> bool:
    """Whether a function is called with ``inplace=True``, as a keyword or by its place."""
    if "inplace" in node.kwargs or not isinstance(node.target, types.FunctionType):
        return bool(node.kwargs.get("inplace"))
    try:
        names = list(inspect.signature(node.target).parameters)
    except ValueError:  # a wrapper of a builtin, such as Tensor.__pow__
        return False
    place = names.index("inplace") if "inplace" in names else len(node.args)
    return place < len(node.args) and bool(node.args[place])


def _called(node: fx.Node) -> str:
    """The name of the function or method that a node calls; empty for what is no call of one."""
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def _is_view(node: fx.Node) -> bool:
    """Whether a node's value lies, or may lie, in the memory of its first argument, as far as its name tells."""
    name = _called(node)
    if name in _CONVERSIONS:
        values = (v for v in map(value_of, (_first(node), node)) if isinstance(v, Tensor))
        # floats of integers are a copy in every call, as an input of the other kind is refused
        return len({v.is_floating_point() for v in values}) < 2
    return name in _VIEWS or node.target in (operator.getitem, getattr)


def is_of_conversion(node: fx.Node) -> bool:
    """Whether a node's value is a conversion of another one, or a view of such: a copy on the example, or no copy."""
    first = _first(node)
    if not isinstance(first, fx.Node) or not _is_view(node):
        return False
    return _called(node) in _CONVERSIONS or is_of_conversion(first)


def memory(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Whose memory every node's value lies in: its own, or that of what it is a view of or writes into."""
    owner: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        first = _out(node) or _first(node)
        if isinstance(first, fx.Node) and (_writes_by_name(node) or _is_view(node)):
            lies_in = [first]
        else:
            lies_in = _noted(node, SHARES)
        owner[node] = owner[lies_in[0]] if lies_in else node
    return owner


def written_memory(graph: fx.Graph) -> set[fx.Node]:
    """Whose memory is written in place after it was made."""
    owner = memory(graph)
    return {owner[n] for node in graph.nodes for n in written(node)}


def reads(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """What every node reads: its arguments, what was last written into them or a view of them, what is kept for it.

    A closed module reads its parameters and buffers, too, and so what was last written into those. What runs in an
    autocast region reads what began it.
    """
    owner = memory(graph)
    last: dict[fx.Node, fx.Node] = {}
    found: dict[fx.Node, list[fx.Node]] = {}
    names = {node.name: node for node in graph.nodes}
    regions = around(graph)
    for node in graph.nodes:
        inputs = node.all_input_nodes
        # a part of a graph may be without them
        beside, held = ([names[n] for n in node.meta.get(what, ()) if n in names] for what in (BESIDE, HOLDS))
        since = [last[owner[n]] for n in (*inputs, *held) if owner[n] in last]
        begun = regions[node] if node.op.startswith("call_") and not reads_metadata(node) else []
        found[node] = list(dict.fromkeys([*inputs, *since, *beside, *begun]))
        last.update((owner[n], node) for n in written(node))
    return found


def before(node: fx.Node) -> set[fx.Node]:
    """Everything that ``node`` is computed from, itself included."""
    return needed([node])


def needed(nodes: Iterable[fx.Node], stop: AbstractSet[fx.Node] = frozenset()) -> set[fx.Node]:
    """Everything that some nodes are computed from, these included, down to the nodes in ``stop``, these included.

    Where that begins an autocast region, so is what ends it, though it comes later.
    """
    found: set[fx.Node] = set()
    stack = list(nodes)
    inputs = reads(stack[0].graph) if stack else {}
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            if node not in stop:
                stack.extend(inputs[node])
    return found.union(ends_of(found))


def behind(node: fx.Node) -> set[fx.Node]:
    """Everything that is computed from ``node``, itself included, and what the graph returns."""
    seen, stack = {node}, [node]
    while stack:
        for user in stack.pop().users:
            if user not in seen:
                seen.add(user)
                stack.append(user)
    return seen | {n for n in node.graph.nodes if n.op == "output"}


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


def writes_into_inputs(graph: fx.Graph) -> bool:
    """Whether a graph changes its inputs or its model in place: run in part, it cannot be run again."""
    owner = memory(graph)
    return any(owner[n].op in ("placeholder", "get_attr") for node in graph.nodes for n in written(node))


def upstream(node: fx.Node) -> Iterator[fx.Node]:
    """A node and everything that it is computed from, nearest first."""
    seen, stack = set(), [node]
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            yield current
            stack.extend(current.all_input_nodes)


def why_unknown(node: fx.Node) -> str:
    """The first reason upstream why a node's value could not be computed."""
    n = data_dependent(node)
    return "" if n is None else f" Its value depends on data: {describe(n)} ({n.meta['unknown_because']})."


def data_dependent(node: fx.Node) -> fx.Node | None:
    """The nearest node upstream whose sizes depend on data; ``meta["unknown_because"]`` says why."""
    return next((n for n in upstream(node) if "unknown_because" in n.meta), None)
