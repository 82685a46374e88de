"""Fewer tokens: what a suffix takes from elsewhere (masks, positions, lengths) keeps the tokens that the site keeps."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from graphaug.augment.rows import Rows
from graphaug.augment.transform import Transform
from graphaug.capture.dataflow import behind, memory, written
from graphaug.capture.values import UNKNOWN, describe, value_of
from graphaug.errors import InvalidOption, SparseBackwardError
from graphaug.proof.independence.samples import proofs_of
from graphaug.sparse.choose import Surgery
from graphaug.sparse.crossing import copied, taken_apart
from graphaug.sparse.tokens.lengths import WHERE, along, counts, may_follow, two_lengths
from graphaug.surgery.called.tokens import followed, shortened


@dataclass(frozen=True)
class Follower:
    """A value from elsewhere that has an entry for each token, or counts them.

    Attributes:
        node: which.
        users: the nodes behind the site that use it.
        at: where its rows lie, ``(dim, outer, inner)``; None: it is one for all rows, or a plain value.
        dims: where its tokens lie; of a plain value none.
        kinds: of a plain value, which of its numbers count tokens.
    """

    node: fx.Node
    users: tuple[fx.Node, ...]
    at: tuple[int, int, int] | None
    dims: tuple[int, ...]
    kinds: Any = None


def with_tokens(surgery: Surgery) -> tuple[fx.Graph | None, list[str]]:
    """A training graph behind whose site everything that belongs to the tokens keeps those that the site keeps.

    What follows the tokens is told by sizes: the model is captured once more with another number of them, and what
    changes alike, follows. Masks follow along every such dimension, additive and boolean ones alike.

    Args:
        surgery: the rewrite, with a site that drops tokens; its graph is left as it is.

    Returns:
        The graph, or None where nothing follows, and what a user should know.

    Raises:
        InvalidOption: it cannot be told what follows, or something does in a way that is not known.
    """
    sites = [i for i, request in enumerate(surgery.requests) if request.resizes]
    number = sites[0]
    request, cut = surgery.requests[number], surgery.cuts[number]
    place, name = surgery.samples.places[number], type(request.transform).__name__
    try:
        tokens = token_dim(cut, place)
        if tokens is None:
            return None, []  # the transform itself says at its first batch what it takes
        graph, mapping = copied(surgery.graph)
        new = mapping[cut]
        values = list(_followers(surgery, graph, new, {n: o for o, n in mapping.items()}, tokens))
        if not values:
            return None, [
                f"'{request.target}': what is behind it gets fewer tokens, and takes none from elsewhere"
            ]
        if len(sites) > 1:
            raise SparseBackwardError(
                f"there are {len(sites)} sites that drop tokens, and {describe(values[0].node)} would follow both"
            )
        _check_kept(request.transform, values)
        _let_follow(graph, new, values)
    except SparseBackwardError as error:
        raise InvalidOption(
            f"{name} is not possible at '{request.target}': {error}. Choose another site."
        ) from error
    graph.lint()
    said = ", ".join(dict.fromkeys(describe(value.node) for value in values))
    return graph, [
        f"'{request.target}': what is behind it gets fewer tokens; followed by (told by sizes): {said}"
    ]


def token_dim(cut: fx.Node, place: Rows) -> int | None:
    """The dimension of the tokens in the value at a site: neither the rows' nor the channels', the last one."""
    value = value_of(cut)
    if not isinstance(value, Tensor) or value.dim() != 3 or not place.is_plain or place.dim > 1:
        return None
    return 1 - place.dim


def _check_kept(transform: Any, values: list[Follower]) -> None:
    if type(transform).kept is Transform.kept:
        raise SparseBackwardError(
            f"{describe(values[0].node)} has to follow, and {type(transform).__name__}.kept does not say which tokens "
            "are kept"
        )


# --- what follows --------------------------------------------------------------------------------


def _followers(
    surgery: Surgery, graph: fx.Graph, cut: fx.Node, back: Mapping[fx.Node, fx.Node], tokens: int
) -> Iterator[Follower]:
    """Everything that enters behind the cut from elsewhere and has an entry for each token."""
    after = behind(cut) - {cut}
    owner = memory(graph)
    for node in graph.nodes:
        for held in (owner[n] for n in written(node) if node in after):
            if held not in after:
                raise SparseBackwardError(f"opened code changes {describe(held)} in place, which {WHERE}")
    users = after | taken_apart(graph, after, WHERE)
    found = {p: None for n in graph.nodes if n in users for p in n.all_input_nodes if p not in users}
    entering = [n for n in found if n is not cut and n.op != "get_attr"]
    if not any(map(_has_numbers, entering)):
        return
    count = value_of(cut).shape[tokens]
    lengths = two_lengths(surgery, tokens)
    if lengths is None:
        for node in entering:
            if may_follow(value_of(node), count, surgery.samples.count):
                raise SparseBackwardError(
                    f"{describe(node)} {WHERE}, may have an entry for each token, and the forward takes no other "
                    "number of tokens, by which it could be told"
                )
        return
    dims = {n: along(n, back, lengths) for n in entering}
    tensors = [n for n in entering if isinstance(value_of(n), Tensor) and dims[n]]
    proofs = _proofs(surgery, graph, tensors)
    order = {n: i for i, n in enumerate(graph.nodes)}
    for node in entering:
        takers = tuple(sorted((u for u in node.users if u in users), key=order.__getitem__))
        if node in proofs:
            yield Follower(node, takers, _rows_of(node, proofs[node], dims[node]), dims[node])
        elif not isinstance(value_of(node), Tensor) and counts(dims[node]):
            yield Follower(node, takers, None, (), dims[node])


def _has_numbers(node: fx.Node) -> bool:
    value = value_of(node)
    leaves = torch.utils._pytree.tree_leaves(value)
    return value is UNKNOWN or any(
        isinstance(v, Tensor) or (isinstance(v, int) and not isinstance(v, bool)) for v in leaves
    )


def _proofs(surgery: Surgery, graph: fx.Graph, tensors: list[fx.Node]) -> dict[fx.Node, Any]:
    if not tensors:
        return {}
    structure, dims = surgery.structure, surgery.samples.dims
    examples, constants = structure.signature.examples, surgery.captured.constants
    proofs = proofs_of(structure.model, graph, tensors, examples, constants, min(dims.values(), default=0))
    if len(proofs) != len(tensors):
        raise SparseBackwardError(f"the rows of what {WHERE} cannot be followed")
    return proofs


def _rows_of(node: fx.Node, proof: Any, dims: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Where the rows of a value lie; None if it is one for all of them, and has a dimension for them."""
    shape = "×".join(map(str, value_of(node).shape))
    if proof.place is not None:
        if proof.place.dim in dims:
            raise SparseBackwardError(f"rows and tokens of {describe(node)} ({shape}) lie in one dimension")
        return (proof.place.dim, proof.place.outer, proof.place.inner)
    if not proof.nothing:
        raise SparseBackwardError(f"{describe(node)} {WHERE}, and {proof.meeting}")
    if value_of(node).shape[0] != 1:
        raise SparseBackwardError(
            f"{describe(node)} ({shape}) {WHERE}, is one for all rows, and has no dimension to become one for each"
        )
    return None


# --- the graph -----------------------------------------------------------------------------------


def _let_follow(graph: fx.Graph, cut: fx.Node, values: list[Follower]) -> None:
    """Let the site tell which tokens it keeps, and everything that follows keep them."""
    users = list(cut.users)
    with graph.inserting_after(cut):
        out = graph.call_function(operator.getitem, (cut, 0))
        out.meta["value"] = value_of(cut)
    with graph.inserting_after(out):
        kept = graph.call_function(operator.getitem, (cut, 1))
    for user in users:
        user.replace_input_with(cut, out)
    cut.args = (*cut.args, True)
    after = behind(cut) - {cut}
    for value in values:
        for user in value.users:  # one for each, as one of them may write into it
            if user not in after:  # it joins the entries of a tuple, each of which follows by itself
                kept.append(user)
                after.add(user)
            with graph.inserting_before(user):
                if value.dims:
                    made = graph.call_function(followed, (value.node, kept, value.at, value.dims))
                else:
                    made = graph.call_function(shortened, (value.node, value.kinds, kept))
            made.meta["value"] = value_of(value.node)
            user.replace_input_with(value.node, made)
