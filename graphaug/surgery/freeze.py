"""The freeze pass: which parameters lie before the cut and which behind it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import fx, nn

from graphaug.capture.dataflow import before, parameters_of
from graphaug.errors import SharedAcrossCut


@dataclass(frozen=True)
class Frozen:
    """What a freeze acts on.

    Attributes:
        side: "before" or "after" the cut.
        parameters: names of the frozen parameters that were trainable.
        modules: paths of the modules that keep batch statistics and lie in the frozen region.
    """

    side: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]


def freeze(graph: fx.Graph, cuts: Collection[fx.Node], model: nn.Module, side: str) -> Frozen:
    """Annotate the frozen region of a graph (``node.meta["frozen"]``) and name what is in it.

    ``"before"``: all that any cut is computed from. ``"after"``: everything else.

    Raises:
        SharedAcrossCut: a parameter to be frozen is used on the other side as well.
    """
    ahead = set().union(*(before(cut) for cut in cuts))
    inside = ahead if side == "before" else {n for n in graph.nodes if n not in ahead}
    outside = [n for n in graph.nodes if n not in inside]
    for node in inside:
        node.meta["frozen"] = True

    used_outside = {id(p) for p in _parameters(outside, model)}
    ids = {id(p) for p in _parameters(inside, model)}
    names = [(name, p) for name, p in model.named_parameters() if id(p) in ids]
    shared = [name for name, p in names if id(p) in used_outside]
    if shared:
        raise SharedAcrossCut(
            f"freeze={side!r}: {', '.join(shared[:5])}{' …' if len(shared) > 5 else ''} "
            f"{'is' if len(shared) == 1 else 'are'} used on both sides of the cut. "
            "Untie them first, choose another site, or freeze by hand."
        )
    return Frozen(
        side, tuple(name for name, p in names if p.requires_grad), tuple(_statistics(inside, model))
    )


def _parameters(nodes: Collection[fx.Node], model: nn.Module) -> list[nn.Parameter]:
    found = []
    for node in nodes:
        if not node.meta.get("augmentation"):
            found.extend(parameters_of(node, model.get_submodule, model.get_parameter))
    return found


def _statistics(nodes: Collection[fx.Node], model: nn.Module) -> Sequence[str]:
    """Modules with running statistics (BatchNorm and its kin) that the nodes call."""
    paths: dict[str, None] = {}
    for node in nodes:
        if node.op == "call_module" and not node.meta.get("augmentation"):
            root = str(node.target)
            for name, module in model.get_submodule(root).named_modules():
                if keeps_statistics(module):
                    paths[f"{root}.{name}" if name else root] = None
    return list(paths)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm or of its kin, which keep statistics of the batches."""
    return hasattr(module, "running_mean") and hasattr(module, "track_running_stats")
