"""Deep views: the prefix runs once, at the cut every row becomes several, and the suffix runs on all of them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from graphaug.augment.rows import Rows
from graphaug.capture.dataflow import memory, writes
from graphaug.capture.values import UNKNOWN, describe, value_of
from graphaug.errors import InvalidOption, SparseBackwardError
from graphaug.proof.independence.samples import proofs_of
from graphaug.sparse.batch import Batch
from graphaug.sparse.choose import Choice, Surgery, flop_share, two_sizes
from graphaug.sparse.prefix import prefix_modules
from graphaug.sparse.split import together
from graphaug.surgery.views import multiplied, repeated


def with_views(surgery: Surgery, times: int) -> fx.Graph:
    """A training graph whose suffix runs on ``times`` as many rows: ``[h; …; h]`` enters the augmentation.

    What the suffix takes from elsewhere (masks, sizes, inputs) is repeated with its rows; what holds nothing of any
    row (parameters, position tables) stays as it is.

    Args:
        surgery: the rewrite, of one site; its graph is left as it is.
        times: how many views.

    Raises:
        InvalidOption: there are several sites, or a value passes around the cut of which it cannot be told how it is
            repeated.
    """
    site = surgery.requests[0].target
    try:
        if len(surgery.requests) > 1:
            raise SparseBackwardError(
                f"there are {len(surgery.requests)} sites, and rows become views at one"
            )
        if not isinstance(value_of(surgery.cuts[0]), Tensor):
            raise SparseBackwardError("the value at the cut is no single tensor")
        return _viewed(surgery, times, two_sizes(surgery))
    except SparseBackwardError as error:
        raise InvalidOption(
            f"views={times} is not possible at '{site}': {error}. Choose another site."
        ) from error


def view_choice(backward: str, surgery: Surgery, times: int) -> Choice:
    """The backward of deep views, whole, and how short a step may get.

    Raises:
        SparseBackwardError: a sparse one was asked for.
    """
    if backward in ("sparse", "proved"):
        raise SparseBackwardError(
            f"backward='{backward}' is not possible with views={times}: a row is stopped in one view and not in "
            "another. Use backward='auto'."
        )
    share = flop_share(surgery.graph, surgery.cuts[0])
    least = share / times + 1 - share
    return Choice("dense", f"the prefix runs once for {times} views; floor of the step {least:.2f}")


def view_notes(surgery: Surgery, times: int) -> list[str]:
    """What views share that copies of the input would not."""
    notes = []
    proof = surgery.samples.proofs[0] if surgery.samples.proofs else None
    if proof is not None and proof.statistics:
        notes.append(
            f"views: batch statistics before the cut are those of the rows that come in, not of {times} times as many"
        )
    drops = [
        path
        for path, module in prefix_modules(surgery.graph, surgery.cuts[0], surgery.structure.model)
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    ]
    if drops:
        notes.append(
            f"views: the {times} views of a row share the dropout before the cut, as of '{drops[0]}'"
        )
    return notes


def _viewed(surgery: Surgery, times: int, batch: Batch) -> fx.Graph:
    """The graph of `with_views`, of its values at two batch sizes."""
    place, samples = surgery.samples.places[0], surgery.samples
    model, examples = surgery.structure.model, surgery.structure.signature.examples
    graph, cut, merges = _copied(surgery.graph, surgery.cuts[0], batch)
    constants, dim = surgery.captured.constants, min(samples.dims.values(), default=0)
    behind = _behind(cut)
    _check_writes(graph, behind)
    _take_apart(graph, behind)
    edges = {(p, n): None for n in graph.nodes if n in behind and n is not cut for p in n.all_input_nodes}
    crossing = list(dict.fromkeys(p for p, _ in edges if p not in behind and p.target is not together))
    tuples = [n for n in graph.nodes if n.target is together]
    crossing += [p for t in tuples for p in t.all_input_nodes if p not in crossing]
    tensors = [p for p in crossing if isinstance(value_of(p), Tensor) and p.op != "get_attr"]
    proofs = proofs_of(model, graph, tensors, examples, constants, dim) if tensors else {}
    if len(proofs) != len(tensors):
        raise SparseBackwardError("the rows of what passes around the cut cannot be followed")
    writers = {memory(graph)[n] for n in graph.nodes if writes(n)}
    owner = memory(graph)
    users = behind - {cut} | set(tuples)
    for node in crossing:
        value = value_of(node)
        if isinstance(value, Tensor) and node.op != "get_attr":
            proof = proofs[node]
            if proof.place is None and not proof.nothing:
                raise SparseBackwardError(f"{describe(node)} passes around the cut, and {proof.meeting}")
            if proof.place is not None:
                _repeat(graph, node, proof.place, times, users, shared=owner[node] not in writers)
        elif node.op != "get_attr" and not isinstance(value, Tensor):
            _repeat_plain(graph, node, merges[node], times, users)
    with graph.inserting_before(cut):
        entering = graph.call_function(repeated, (cut.args[0], place.dim, place.outer, times))
    cut.replace_input_with(cut.args[0], entering)  # type: ignore[arg-type]
    entering.meta["value"] = value_of(cut)
    graph.lint()
    return graph


def _copied(graph: fx.Graph, cut: fx.Node, batch: Batch) -> tuple[fx.Graph, fx.Node, dict[fx.Node, Any]]:
    """A copy of the graph, its cut, and how plain values grow with the rows, computed where it is asked for."""
    copy = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        mapping[node] = copy.node_copy(node, lambda n: mapping[n])
    back = {new: old for old, new in mapping.items()}
    return copy, mapping[cut], _Merges(batch, back)


class _Merges(dict[fx.Node, Any]):
    """`Batch.merge_of` of the nodes of a copy."""

    def __init__(self, batch: Batch, back: Mapping[fx.Node, fx.Node]) -> None:
        super().__init__()
        self.batch, self.back = batch, back

    def __missing__(self, node: fx.Node) -> Any:
        return self.batch.merge_of(self.back[node])


def _behind(cut: fx.Node) -> set[fx.Node]:
    """The cut, all that is computed from it, and what the model returns."""
    found, stack = {cut}, [cut]
    while stack:
        for user in stack.pop().users:
            if user not in found:
                found.add(user)
                stack.append(user)
    return found | {n for n in cut.graph.nodes if n.op == "output"}


def _check_writes(graph: fx.Graph, behind: set[fx.Node]) -> None:
    owner = memory(graph)
    for node in graph.nodes:
        if node in behind and writes(node) and owner[node] not in behind:
            raise SparseBackwardError(f"opened code behind the cut changes {describe(owner[node])} in place")


def _take_apart(graph: fx.Graph, behind: set[fx.Node]) -> None:
    """Tuples of tensors that pass around the cut (rotary embeddings), entry by entry."""
    for node in list(graph.nodes):
        value = value_of(node)
        users = [u for u in node.users if u in behind and u.target is not operator.getitem]
        if node in behind or not users or not isinstance(value, (tuple, list)):
            continue
        if not any(isinstance(v, Tensor) for v in value):
            continue
        if (
            not isinstance(value, tuple)
            or hasattr(value, "_fields")
            or not all(isinstance(v, Tensor) for v in value)
        ):
            raise SparseBackwardError(f"{describe(node)} passes around the cut in a structure")
        with graph.inserting_after(node):
            entries: list[fx.Node] = []
            for i, entry in reversed(list(enumerate(value))):
                entries.insert(0, graph.call_function(operator.getitem, (node, i)))
                entries[0].meta["value"] = entry
        with graph.inserting_after(entries[-1]):
            whole = graph.call_function(together, tuple(entries))
        whole.meta["value"] = value
        for user in users:
            user.replace_input_with(node, whole)


def _repeat(
    graph: fx.Graph, node: fx.Node, place: Rows, times: int, users: set[fx.Node], *, shared: bool
) -> None:
    """Let the suffix use a value with its rows repeated; made once for all, unless it changes in place between."""
    made: fx.Node | None = None
    order = {n: i for i, n in enumerate(graph.nodes)}
    for user in sorted((u for u in node.users if u in users), key=order.__getitem__):
        if made is None or not shared:
            with graph.inserting_before(user):
                made = graph.call_function(repeated, (node, place.dim, place.outer, times))
            made.meta["value"] = value_of(node)
        user.replace_input_with(node, made)


def _repeat_plain(graph: fx.Graph, node: fx.Node, kinds: Any, times: int, users: set[fx.Node]) -> None:
    """Let the suffix use a size of all views."""
    if value_of(node) is UNKNOWN:
        raise SparseBackwardError(f"{describe(node)} passes around the cut, and its value is not known")
    if not _counts(kinds):
        return
    for user in [u for u in node.users if u in users]:
        with graph.inserting_before(user):
            made = graph.call_function(multiplied, (node, kinds, times))
        user.replace_input_with(node, made)


def _counts(kinds: Any) -> bool:
    return any(map(_counts, kinds)) if isinstance(kinds, (tuple, list)) else kinds == "sum"
