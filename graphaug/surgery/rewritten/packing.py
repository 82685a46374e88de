"""What of a rewritten model is copied and pickled: its parts, with graphs as plain rows, and what was set on it later.

Rows do without the objects that a node points to.
"""

from __future__ import annotations

import importlib
import operator
import types
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import fx, nn

from graphaug.capture.recording.relied.facts import Relied
from graphaug.capture.recording.relied.reach import any_module, found_again
from graphaug.capture.recording.relied.reached import Reached
from graphaug.surgery.rewritten.children import later
from graphaug.surgery.rewritten.parts import Parts

_KEPT_META = ("site", "augmentation", "frozen")


@dataclass(frozen=True)
class _Ref:
    """Stands for a node, by its position in the graph."""

    index: int


@dataclass(frozen=True)
class _Named:
    """Stands for a function that lies in its module, and not where its qualified name says: ``F.max_pool2d``."""

    module: str
    path: str

    @classmethod
    def packed(cls, target: Any) -> Any:
        """What stands for a node's target, if pickle cannot find it by its name; else the target."""
        if not isinstance(target, types.FunctionType):
            return target
        qualified, plain = (cls(target.__module__, path) for path in (target.__qualname__, target.__name__))
        return plain if qualified.found() is not target and plain.found() is target else target

    def found(self) -> Any:
        """The function, or None."""
        try:
            return operator.attrgetter(self.path)(importlib.import_module(self.module))
        except (AttributeError, ImportError):
            return None


def pack_graph(graph: fx.Graph | None) -> list[tuple[Any, ...]] | None:
    """A graph as one row a node, which copies and pickles."""
    if graph is None:
        return None
    position = {node: i for i, node in enumerate(graph.nodes)}

    def ref(value: Any) -> Any:
        return fx.map_arg(value, lambda node: _Ref(position[node]))  # type: ignore[arg-type, return-value]

    return [
        (
            n.op,
            n.name,
            _Named.packed(n.target),
            ref(n.args),
            ref(n.kwargs),
            {k: n.meta[k] for k in _KEPT_META if k in n.meta},
        )
        for n in graph.nodes
    ]


def unpack_graph(rows: list[tuple[Any, ...]] | None) -> fx.Graph | None:
    """The graph that `pack_graph` made rows of."""
    if rows is None:
        return None
    graph = fx.Graph()
    nodes: list[fx.Node] = []

    def deref(value: Any) -> Any:
        return fx.node.map_aggregate(value, lambda v: nodes[v.index] if isinstance(v, _Ref) else v)

    for op, name, target, args, kwargs, meta in rows:
        target = target.found() if isinstance(target, _Named) else target
        node = graph.create_node(op, target, deref(args), deref(kwargs), name)
        node.meta.update(meta)
        nodes.append(node)
    return graph


def pack_parts(parts: Parts) -> Parts:
    """The parts with packed graphs, as a model that is copied or loaded takes them: it has not warned yet."""
    facts: Any = {
        mode: tuple(f.packed() if isinstance(f, Reached) else f for f in facts)
        for mode, facts in parts.facts.items()
    }
    return replace(_with_graphs(parts, pack_graph), facts=facts)


def unpack_parts(packed: Parts) -> Parts:
    """The parts that `pack_parts` packed."""
    facts: dict[bool, tuple[Relied, ...]] = {}
    for mode, kept in packed.facts.items():  # a packed Reached is a tuple
        reached: list[Any] = [f for f in kept if isinstance(f, tuple)]
        found = found_again(reached, packed.model, packed.plan.opened, any_module)
        facts[mode] = (*(f for f in kept if not isinstance(f, tuple)), *found)
    return replace(_with_graphs(packed, unpack_graph), facts=facts)


def _with_graphs(parts: Parts, change: Any) -> Parts:
    return replace(
        parts,
        training_graph=change(parts.training_graph),
        eval_graph=change(parts.eval_graph),
        split=None if parts.split is None else parts.split.with_graphs(change),
        warned=set(),
    )


def packed(aug: Any) -> dict[str, Any]:
    """A rewritten model as what can be copied and pickled."""
    return {"parts": pack_parts(aug._parts), "training": aug.training, **_set_later(aug)}


def blank(cls: Any) -> Any:
    """A rewritten model of class ``cls`` that `fill` has yet to fill: what it holds may refer to it."""
    aug = cls.__new__(cls)
    nn.Module.__init__(aug)  # whoever comes by it sees an empty module
    return aug


def fill(aug: Any, packed: dict[str, Any]) -> None:
    """Make a blank rewritten model the one that `packed` packed."""
    _make(aug, unpack_parts(packed["parts"]), packed, packed["training"])


def shared(cls: Any, aug: Any) -> Any:
    """Another rewritten model of class ``cls`` with the same model and augmentations, as a shallow copy is one."""
    parts = _with_graphs(aug._parts, lambda graph: unpack_graph(pack_graph(graph)))
    kept = parts.kept
    if kept is not None:  # it notes for one plan what has changed; what it compares with is the same
        own = object.__new__(type(kept))
        own.__dict__.update(kept.__dict__)
        changed: Any = replace(cast(Any, parts.split), kept=own)
        parts.split = changed
    twin = blank(cls)
    _make(twin, parts, _set_later(aug), aug.training)
    return twin


def _set_later(aug: Any) -> dict[str, Any]:
    left_out = {*aug._own, "_compiled_call_impl"}  # which is compiled anew
    extra = {k: v for k, v in aug.__dict__.items() if k not in left_out}
    return {"extra": extra, "later": later(aug)}


def _make(aug: Any, parts: Parts, later: dict[str, Any], training: bool) -> None:
    """A rewritten model of parts and what was set later; no module's mode is changed by that."""
    modes = {m: m.training for m in [*parts.model.modules(), *parts.added.values()]}
    aug.__init__(parts)
    aug.__dict__.update(later["extra"])
    aug._modules.update(later["later"])
    for module, mode in modes.items():
        module.training = mode
    aug.__dict__["training"] = training
