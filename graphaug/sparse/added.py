"""Whether what a branch returns is added to what passes beside it, so that zeros in its place leave that as it is."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.capture.dataflow import carries_gradient, reads_metadata
from graphaug.capture.state import unchanged, undrawn
from graphaug.capture.values import assume, describe, value_of
from graphaug.errors import SparseBackwardError

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_SUBTRACTS = (operator.sub, operator.isub, torch.sub, "sub", "sub_")


def check_added(result: fx.Node, model: nn.Module) -> None:
    """Follow a result to where it is added.

    On the way only what makes zeros of zeros is let pass, as a dropout, a scale or a view: each is tried, with random
    numbers for whatever else it takes and holds.

    Args:
        result: what a branch returns.
        model: owner of the modules.

    Raises:
        SparseBackwardError: it goes elsewhere; a clause that says where.
    """
    todo, seen = [result], {result}
    while todo:
        node = todo.pop()
        for user in node.users:
            if user in seen or not takes_the_value(user, node) or _adds(user, node):
                continue
            if not _keeps_zeros(user, node, model):
                raise SparseBackwardError(
                    f"it is no residual branch: what it returns goes to {_named(user)}, and is not added to anything "
                    "before. Name the module whose output is added"
                )
            seen.add(user)
            todo.append(user)


def takes_the_value(user: fx.Node, node: fx.Node) -> bool:
    """Whether it is the tensor that a node hands on, and not its size, its dtype, or a mask that is made of them."""
    if user.op == "output":
        return True
    if user.target is assume or reads_metadata(user):
        return False
    value = value_of(user)
    tensors = [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]
    if carries_gradient(value_of(node)):
        return carries_gradient(value)
    return any(t.is_floating_point() for t in tensors)


def _adds(user: fx.Node, node: fx.Node) -> bool:
    if user.target in _ADDS:
        return user.args.count(node) + [*user.kwargs.values()].count(node) == 1
    return user.target in _SUBTRACTS and user.args[0] is not node


def _named(user: fx.Node) -> str:
    return "the output" if user.op == "output" else f"'{describe(user, 1)}'"


def _keeps_zeros(user: fx.Node, node: fx.Node, model: nn.Module) -> bool:
    """Whether an operation returns zeros where a tensor holds them, whatever else it is given."""
    if user.op == "output":
        return False
    generator = torch.Generator().manual_seed(0)

    def given(other: fx.Node) -> Any:
        value = value_of(other)
        tensors = torch.utils._pytree.tree_map_only(Tensor, lambda t: _drawn(t, generator), value)
        return torch.zeros_like(tensors) if other is node else tensors

    try:
        with unchanged(model), undrawn(), torch.no_grad():
            args, kwargs = fx.map_arg(user.args, given), fx.map_arg(user.kwargs, given)
            if user.op == "call_module":
                module = model.get_submodule(str(user.target))
                owned = {**dict(module.named_parameters()), **dict(module.named_buffers())}
                drawn = {name: _drawn(t, generator) for name, t in owned.items()}
                made = torch.func.functional_call(module, drawn, args, kwargs)
            elif user.op == "call_method":
                made = getattr(args[0], str(user.target))(*args[1:], **kwargs)
            else:
                made = user.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # it asks for more than numbers of this size
        return False
    return isinstance(made, Tensor) and not made.any()


def _drawn(t: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers in [1, 2) in the place of a tensor's, or ones: a norm's bias and a mean are no zeros."""
    device = torch.device("cpu") if t.is_meta else t.device
    drawn = torch.rand(t.shape, generator=generator) + 1
    return drawn.to(device, t.dtype)
