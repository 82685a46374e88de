"""Whether memory is written in place across a cut: what the augmentation returns lies in memory of its own."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from graphaug.capture.capture import Captured
from graphaug.capture.dataflow import OF_GRADIENTS, is_of_conversion, memory, reads_metadata, written
from graphaug.capture.recording.values.layouts import TELL
from graphaug.capture.recording.values.structures import memories_of
from graphaug.capture.target import Target
from graphaug.capture.values import UNKNOWN, assume, value_of
from graphaug.errors import BypassedSite
from graphaug.select.nodes import node_name


def check_in_place(captured: Captured, graph: fx.Graph, cuts: Iterable[tuple[Target, fx.Node]]) -> None:
    """Refuse writes into the memory of what is augmented that only one of the two then sees.

    A site may be a view of another tensor, or that tensor itself. In the model whatever is written into one of them is
    read in the other; of the augmented copy that is no longer so, in no row.

    Raises:
        BypassedSite: there is such a write; ``allow_bypass`` does not help.
    """
    targets = {cut: target for target, cut in cuts}
    owner, last = memory(graph), dict[fx.Node, fx.Node]()
    order = {node: number for number, node in enumerate(graph.nodes)}
    one: dict[fx.Node, fx.Node] = {}  # memories that are one in the model -> the first of them
    for node in graph.nodes:
        if node in targets:
            source = node.args[0]
            one[node] = one.setdefault(owner[source], owner[source])
        if reads_metadata(node) or node.target in (assume, *TELL):
            continue
        for read in node.all_input_nodes:
            for held, write in last.items():
                apart = held is not owner[read] and one.get(held, held) is one.get(owner[read], owner[read])
                if not apart or order[write] <= order[owner[read]]:
                    continue
                cut = next(c for c in targets if c in (held, owner[read]))
                if is_of_conversion(cut.all_input_nodes[0]) or _meet(write, read):
                    raise BypassedSite(_said(captured, targets[cut], cut, write, read))
        if node.target not in OF_GRADIENTS:
            last.update((owner[n], node) for n in written(node))


def _meet(write: fx.Node, read: fx.Node) -> bool:
    """Whether what is written is what is read, as far as the example tells: a reshape by its name may be a copy."""
    values = [value_of(n) for n in (*written(write), read)]
    if any(value is UNKNOWN for value in values):
        return True
    *targets, reader = map(memories_of, values)
    return any(not reader.isdisjoint(target) for target in targets)


def _said(captured: Captured, target: Target, cut: fx.Node, write: fx.Node, read: fx.Node) -> str:
    source = cut.args[0]
    assert isinstance(source, fx.Node)
    whole = node_name(memory(source.graph)[source], captured)
    writer, reader = node_name(write, captured), node_name(read, captured)
    return (
        f"'{target}' lies in the memory of '{whole}', and behind it '{writer}' writes into that memory in place, which "
        f"'{reader}' is read from: what is augmented there is a copy, which has no part in that. Choose '{whole}' or a "
        "site behind the writing, or write out of place (h = h * 2 for h.mul_(2))."
    )
