"""Marks of the inputs and outputs of opened modules that are sites, as nodes that surgery replaces."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

from torch import Tensor, fx

from graphaug.capture.names import mark
from graphaug.capture.recording.recorder import Recorder
from graphaug.capture.recording.values.structures import DEPTH, entries, is_container, rebuilt
from graphaug.capture.recording.values.used import ends
from graphaug.capture.target import Target


class Marks:
    """Marks values while they are recorded.

    Args:
        recorder: what records.
        targets: the sites that are asked for.

    Attributes:
        edges: the node that each site is, once `settle` was called.
    """

    def __init__(self, recorder: Recorder, targets: AbstractSet[Target]) -> None:
        self._recorder, self._targets = recorder, targets
        self.edges: dict[Target, fx.Node] = {}
        self._marked: dict[Target, list[fx.Node]] = {}

    def __contains__(self, target: Target) -> bool:
        return target in self._targets

    def mark(self, target: Target, value: Any, entry: tuple[Any, ...] = ()) -> Any:
        """Mark a value as a site, of a structure each tensor; which of them the site is, its users tell in the end."""
        if isinstance(value, Tensor):
            nodes, ledger = self._recorder.nodes, self._recorder.ledger
            held = ledger.evaluable(value)
            node = nodes.create("call_function", mark, (ledger.node_of(value),), {})
            node.meta.update(site=target, entry=entry, in_structure=bool(entry))
            nodes.note_value(node, held)
            self._marked.setdefault(target, []).append(node)
            return self._recorder.session.call_unrecorded(ledger.adopt, held, node)
        if len(entry) == DEPTH or not is_container(value):
            return value
        found = entries(value)
        new = [
            self.mark(target, inner, (*entry, key)) if isinstance(key, (str, int)) else inner
            for (_, key), inner in found
        ]
        return rebuilt(value, [reached for reached, _ in found], new)

    def settle(self) -> None:
        """Leave one mark for each site: of the one entry that is used, else of the first."""
        for target, marks in self._marked.items():
            used = [node for node in marks if not all(map(ends, node.users))]
            self.edges[target] = used[0] if len(used) == 1 else marks[0]
            if len(used) != 1:
                marks[0].meta["entry"] = ()
            for node in marks:
                if node is not self.edges[target]:
                    node.replace_all_uses_with(node.all_input_nodes[0])
                    node.graph.erase_node(node)
