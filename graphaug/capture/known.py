"""What is known of an example's integers: lengths and indices, and what opened code makes of them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graphaug.capture.dataflow import memory, written_memory
from graphaug.capture.held import tensors_of
from graphaug.capture.interpreter import filled
from graphaug.capture.values import UNKNOWN, value_of


def integers(node: fx.Node, keys: Sequence[tuple[str, Any]], given: Mapping[fx.Node, Any]) -> Tensor | None:
    """The integers that a node has on the example, computed from its inputs; None where they are not known.

    Args:
        node: of a graph in the making.
        keys: how they are reached in its value, ("item", 0) or ("attribute", "lengths").
        given: the example's value of every placeholder.
    """
    owner = memory(node.graph)
    written = written_memory(node.graph)
    env: dict[fx.Node, Any] = {}

    def known(n: fx.Node) -> bool:
        """Whether a node's value is known; it is in ``env`` then."""
        value = value_of(n)
        if n in env:
            return env[n] is not UNKNOWN
        env[n] = UNKNOWN
        if owner[n] in written:
            return False
        if n.op == "placeholder":
            env[n] = given.get(n, UNKNOWN)
        elif value is not UNKNOWN and next(tensors_of(value), None) is None:  # a size, a dtype
            env[n] = value
        elif _is_call(n) and not _floats(value) and all(map(known, n.all_input_nodes)):
            found = _computed(n, env)  # also where its shape depends on them, as that of repeat_interleave
            env[n] = UNKNOWN if any(map(_floats, tensors_of(found))) else found
        return env[n] is not UNKNOWN

    if not known(node):
        return None
    found = _at(env[node], keys)
    return found if isinstance(found, Tensor) and not _floats(found) and not found.is_meta else None


def given_at(node: fx.Node, keys: Sequence[tuple[str, Any]], given: Mapping[fx.Node, Any]) -> Tensor | None:
    """The tensor of the example that is reached in a placeholder, if it is one with data; else None."""
    if node not in given:
        return None
    found = _at(given[node], keys)
    return found if isinstance(found, Tensor) and not found.is_meta else None


def _at(value: Any, keys: Sequence[tuple[str, Any]]) -> Any:
    for kind, key in keys:
        value = value[key] if kind == "item" else getattr(value, key)
    return value


def _is_call(n: fx.Node) -> bool:
    return n.op in ("call_function", "call_method")


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _computed(n: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = filled(n, env)
    states = torch.get_rng_state()
    try:
        if n.op == "call_method":
            found = getattr(args[0], str(n.target))(*args[1:], **kwargs)
        else:
            found = n.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # of what another device holds, or no data at all
        return UNKNOWN
    if torch.equal(torch.get_rng_state(), states):
        return found
    torch.set_rng_state(states)  # what is drawn is another in each call
    return UNKNOWN
