"""What enters a part of a graph from elsewhere: values with rows, sizes that count them, and what holds neither."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.augment.rows import Rows
from graphaug.capture.dataflow import before, memory, writes, written, written_memory
from graphaug.capture.values import UNKNOWN, describe, value_of
from graphaug.errors import SparseBackwardError
from graphaug.proof.independence.places import Meeting
from graphaug.proof.independence.samples import proofs_of
from graphaug.sparse.batch import Batch
from graphaug.sparse.tuples import together


@dataclass(frozen=True)
class Entering:
    """A value that enters.

    Attributes:
        node: which.
        users: the nodes of the part that use it, in the graph's order.
        place: where the rows lie in it; None of a size.
        kinds: of a size, which of its numbers count the rows, as `Batch.merge_of` tells.
        shared: whether nothing writes into its memory, so that one copy is enough for all users.
        draws: what was drawn for the values that enter, as far as it can be told.
    """

    node: fx.Node
    users: tuple[fx.Node, ...]
    place: Rows | None
    kinds: Any
    shared: bool
    draws: tuple[Meeting, ...] = ()


@dataclass(frozen=True)
class Known:
    """What is known of a graph: its values at two batch sizes, and what its rows can be followed with.

    Attributes:
        batch: the values of the graph that was copied.
        back: node of the copy -> node of the original.
        model: owner of the modules.
        examples: the inputs by name.
        constants: what opened code refers to and no module owns, by name.
        dim: the dimension of samples of the inputs.
    """

    batch: Batch
    back: Mapping[fx.Node, fx.Node]
    model: nn.Module
    examples: Mapping[str, Any]
    constants: Mapping[str, Any]
    dim: int


def entering(
    graph: fx.Graph, inside: set[fx.Node], known: Known, where: str, own: Collection[fx.Node] = ()
) -> list[Entering]:
    """Everything with rows, and every size that counts them, that enters a part of a graph.

    Tuples of tensors that enter are taken apart in the graph. What holds nothing of any row is left out.

    Args:
        graph: a copy, which may be changed.
        inside: the nodes of the part.
        known: what is known of it.
        where: what the values do, for messages ("passes around the cut").
        own: nodes outside whose values are as the part wants them.

    Raises:
        SparseBackwardError: it cannot be told what a value holds, or the part writes into one.
    """
    owner = memory(graph)
    for changed_one in (owner[n] for node in graph.nodes if node in inside for n in written(node)):
        if changed_one not in inside and changed_one not in own:
            raise SparseBackwardError(f"opened code changes {describe(changed_one)} in place, which {where}")
    users = inside | taken_apart(graph, inside, where)
    found = {
        p: None
        for n in graph.nodes
        if n in users
        for p in n.all_input_nodes
        if p not in users and p not in own
    }
    tensors = [n for n in found if isinstance(value_of(n), Tensor) and n.op != "get_attr"]
    proofs = {}
    if tensors:
        proofs = proofs_of(known.model, graph, tensors, known.examples, known.constants, known.dim)
    if len(proofs) != len(tensors):
        raise SparseBackwardError(f"the rows of what {where} cannot be followed")
    owner, in_place = memory(graph), written_memory(graph)
    order = {n: i for i, n in enumerate(graph.nodes)}
    made = []
    for node in found:
        takers = tuple(sorted((u for u in node.users if u in users), key=order.__getitem__))
        shared = owner[node] not in in_place
        if node in proofs:
            place, proof = proofs[node].place, proofs[node]
            if place is None and not proof.nothing:
                raise SparseBackwardError(f"{describe(node)} {where}, and {proof.meeting}")
            if place is not None:
                made.append(Entering(node, takers, place, None, shared, proof.draws))
        elif node.op != "get_attr":
            kinds = _kinds(node, known, where)
            if _counts(kinds):
                made.append(Entering(node, takers, None, kinds, shared))
    return made


def made_of_sizes(graph: fx.Graph, cut: fx.Node, inside: set[fx.Node]) -> set[fx.Node]:
    """The tensors that only a part behind a cut uses, made of sizes and of what the model owns: noise, targets, tables.

    For other sizes they are others, so that whoever changes how many rows there are has them made for these.
    """
    ahead = before(cut)
    alone: set[fx.Node] = set()
    for node in graph.nodes:
        makes = node.op in ("call_function", "call_method") and set(node.all_input_nodes) <= alone
        if node.op == "get_attr" or makes or _is_plain(node):
            alone.add(node)
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        read = [n for n in node.all_input_nodes if not _is_plain(n)]
        made = node.op != "get_attr" and node in alone and set(read) <= alone
        of_sizes = any(n.op != "get_attr" for n in (read if _is_plain(node) else node.all_input_nodes))
        asks = _is_plain(node) and not writes(node)  # of what it is made of, as a check does
        used_there = all(u in inside or u in found for u in node.users) and (asks or bool(node.users))
        if made and of_sizes and node not in ahead and used_there:
            found.add(node)
    return found


def _is_plain(node: fx.Node) -> bool:
    """Whether a value is known, and holds no tensor."""
    value = value_of(node)
    return value is not UNKNOWN and not any(
        isinstance(leaf, Tensor) for leaf in torch.utils._pytree.tree_leaves(value)
    )


def _kinds(node: fx.Node, known: Known, where: str) -> Any:
    value = value_of(node)
    if value is UNKNOWN:
        raise SparseBackwardError(f"{describe(node)} {where}, and its value is not known")
    if any(isinstance(leaf, Tensor) for leaf in torch.utils._pytree.tree_leaves(value)):
        raise SparseBackwardError(f"{describe(node)} {where} in a structure")
    return known.batch.merge_of(known.back[node])


def _counts(kinds: Any) -> bool:
    return any(map(_counts, kinds)) if isinstance(kinds, (tuple, list)) else kinds == "sum"


def copied(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of a graph, and the map from old nodes to new ones."""
    copy = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        mapping[node] = copy.node_copy(node, lambda n: mapping[n])
    return copy, mapping


def taken_apart(graph: fx.Graph, inside: set[fx.Node], where: str) -> set[fx.Node]:
    """Take tuples of tensors that enter (rotary embeddings) apart, entry by entry; the nodes that join them again."""
    joined = set()
    for node in list(graph.nodes):
        value = value_of(node)
        users = [u for u in node.users if u in inside and u.target is not operator.getitem]
        if node in inside or not users or not isinstance(value, (tuple, list)):
            continue
        if not any(isinstance(v, Tensor) for v in value):
            continue
        plain = isinstance(value, tuple) and not hasattr(value, "_fields")
        if not plain or not all(isinstance(v, Tensor) for v in value):
            raise SparseBackwardError(f"{describe(node)} {where} in a structure")
        with graph.inserting_after(node):
            entries: list[fx.Node] = []
            for i, entry in reversed(list(enumerate(value))):
                entries.insert(0, graph.call_function(operator.getitem, (node, i)))
                entries[0].meta["value"] = entry
        with graph.inserting_after(entries[-1]):
            whole = graph.call_function(together, tuple(entries))
        whole.meta["value"] = value
        joined.add(whole)
        for user in users:
            user.replace_input_with(node, whole)
    return joined
