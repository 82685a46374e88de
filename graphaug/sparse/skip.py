"""Skipped rows: a residual branch runs on the kept rows of a batch only, forward and backward."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from graphaug.augment.rows import Rows
from graphaug.capture.dataflow import memory, written
from graphaug.capture.values import assume, describe, value_of
from graphaug.errors import SparseBackwardError
from graphaug.proof.independence.places import Proof
from graphaug.proof.prefix import held_by, statistics_modules
from graphaug.sparse.added import check_added, takes_the_value
from graphaug.sparse.crossing import Entering, Known, entering
from graphaug.sparse.entries import looked_up, tensors_by_keys
from graphaug.surgery.called.kept_rows import counted, put_back, taken


@dataclass(frozen=True)
class Branch:
    """A residual branch, as it is before anything is changed.

    Attributes:
        result: the node whose value is the branch's.
        region: all that only that value is computed from.
        values: what enters it.
        place: where the rows lie in the result.
    """

    result: fx.Node
    region: frozenset[fx.Node]
    values: tuple[Entering, ...]
    place: Rows


def added_by(graph: fx.Graph, end: fx.Node) -> fx.Node:
    """The tensor that a module returns, or of a tuple the first entry, if nothing else of it is used.

    Attention returns its weights beside its output, which nobody reads: such entries are taken out of the graph.

    Raises:
        SparseBackwardError: more of it is used, or it is another structure.
    """
    if isinstance(value_of(end), Tensor):
        return end
    for user in list(end.users):
        if user.target is operator.getitem and not user.users:
            graph.erase_node(user)
    checks = _checks(graph)
    used = [user for user in end.users if user not in checks]
    if len(used) == 1 and used[0].target is operator.getitem and isinstance(value_of(used[0]), Tensor):
        return used[0]
    raise SparseBackwardError(
        f"{describe(end)} returns no single tensor, and not one entry of it alone is used: name the operation whose "
        "result is added"
    )


def find_branch(graph: fx.Graph, result: fx.Node, proof: Proof, known: Known) -> Branch:
    """The branch of a residual block that ends in a node.

    Args:
        graph: the training graph, a copy.
        result: the node whose value is the branch's.
        proof: of the rows in that value.
        known: what is known of the graph.

    Raises:
        SparseBackwardError: it is no residual branch, or its rows are not proved independent; the reason, as a clause.
    """
    region = _region(result)
    norm = next((p for p, _ in statistics_modules(graph, result, known.model) if _called(region, p)), None)
    if norm is not None:
        raise SparseBackwardError(f"'{norm}' couples the rows of the branch by its batch statistics")
    if proof.place is None or proof.verdict not in ("proved", "statistics"):
        raise SparseBackwardError(f"its rows are not proved independent: {proof.meeting}")
    check_added(result, known.model)
    values = entering(graph, region, known, "enters the branch")
    for value in values:
        if value.place is not None and _passes_beside(value.node, region):
            return Branch(result, frozenset(region), tuple(values), proof.place)
    raise SparseBackwardError("it is no residual branch: nothing that enters it also passes beside it")


def _passes_beside(node: fx.Node, region: set[fx.Node]) -> bool:
    """Whether a value also goes on without the branch: what is made of its size or its dtype, as a mask, is not it."""
    if not value_of(node).is_floating_point():
        return False
    return any(takes_the_value(user, node) for user in node.users if user not in region)


def modules_of(branch: Branch, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that a branch calls with its path, those inside closed modules included."""
    for node in branch.region:
        if node.op == "call_module":
            yield from held_by(str(node.target), model)


def counting_input(
    graph: fx.Graph, dims: Mapping[int, int], examples: Mapping[str, Any]
) -> tuple[fx.Node, Rows]:
    """An input that tells how many rows there are, or what lies in one, and where they lie in it.

    Raises:
        SparseBackwardError: there is none.
    """
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    for node in inputs:
        for keys, example in tensors_by_keys(examples.get(str(node.target))):
            if id(example) in dims:
                with graph.inserting_before(inputs[-1].next):
                    return looked_up(graph, node, keys), Rows(dims[id(example)])
    raise SparseBackwardError("no tensor of the inputs has a dimension that counts the rows")


def skip(
    graph: fx.Graph, branch: Branch, name: str, replaced: dict[fx.Node, fx.Node], whole: fx.Node, place: Rows
) -> None:
    """Let a branch run on the kept rows, in place.

    Args:
        graph: which it is of.
        branch: what `find_branch` found.
        name: of the module `KeptRows` that draws the rows.
        replaced: results of branches that are changed already -> what is used instead; this one's is added.
        whole: an input of all rows; drawn is at the beginning, before anything of the branch.
        place: where the rows lie in it.
    """
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    with graph.inserting_after(inputs[-1] if whole in inputs else whole):
        kept = graph.call_module(name, (whole,))
    for value in branch.values:
        _take(graph, value, replaced.get(value.node, value.node), kept, whole, place)
    outside, to = list(branch.result.users), branch.place
    with graph.inserting_after(branch.result):
        ends = ((place.dim, place.outer, place.inner), (to.dim, to.outer, to.inner))
        back = graph.call_function(put_back, (branch.result, kept, whole, *ends))
    for user in outside:
        user.replace_input_with(branch.result, back)
    replaced[branch.result] = back


def _checks(graph: fx.Graph) -> set[fx.Node]:
    """What ends in checks of assumptions only."""
    checks = set[fx.Node]()
    for node in reversed(graph.nodes):
        reads = node.op in ("call_function", "call_method")  # a module is called for what it does, too
        ends = reads and node.users and all(user in checks for user in node.users)
        if node.target is assume or ends:
            checks.add(node)
    return checks


def _region(branch: fx.Node) -> set[fx.Node]:
    """All that only the branch's result is computed from."""
    nodes, checks = list(branch.graph.nodes), _checks(branch.graph)
    region = {branch}
    for node in reversed(nodes):
        users = [user for user in node.users if user not in checks]
        if node.op.startswith("call_") and users and all(user in region for user in users):
            region.add(node)
    for node in nodes:
        if node in checks and any(parent in region for parent in node.all_input_nodes):
            region.add(node)
    owner = memory(branch.graph)
    for node in branch.graph.nodes:
        # what is written into the result itself is written into all rows, put back in memory of their own
        for held in (owner[n] for n in written(node) if node not in region):
            if held in region and held is not branch:
                raise SparseBackwardError(f"{describe(held)} of the branch is changed in place behind it")
    return region


def _called(region: set[fx.Node], path: str) -> bool:
    """Whether a module is called in the region, by itself or inside of another one."""
    paths = [str(n.target) for n in region if n.op == "call_module"]
    return any(path == p or path.startswith(f"{p}.") for p in paths)


def _take(
    graph: fx.Graph, value: Entering, node: fx.Node, kept: fx.Node, whole: fx.Node, place: Rows
) -> None:
    """Let the branch use the kept rows of a value, or a size that counts them."""
    made: fx.Node | None = None
    for user in value.users:
        if made is None or not value.shared:
            with graph.inserting_before(user):
                if value.place is None:
                    args: Any = (node, value.kinds, kept, whole, place.dim, place.slices)
                    made = graph.call_function(counted, args)
                else:
                    p = value.place
                    made = graph.call_function(taken, (node, kept, p.dim, p.outer, p.inner, whole, place.dim))
        user.replace_input_with(node, made)
