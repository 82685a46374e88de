"""The modules of a prefix, and those among them that meet their rows by design."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from graphaug.capture.dataflow import before
from graphaug.capture.state import unchanged


def prefix_modules(graph: fx.Graph, cut: fx.Node, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that runs up to the cut with its path, those inside closed modules included."""
    ahead = before(cut)
    for node in graph.nodes:
        if node in ahead and node.op == "call_module" and not node.meta.get("augmentation"):
            yield from held_by(str(node.target), model)


def held_by(path: str, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The module at a path and every one inside of it, with their paths."""
    for name, module in model.get_submodule(path).named_modules():
        yield (f"{path}.{name}" if name else path), module


def statistics_modules(graph: fx.Graph, cut: fx.Node, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The norms up to the cut that use or keep statistics of the batch in training, with their paths.

    One that its model keeps in eval mode (a ``train`` of its own) uses what it has kept, if it has kept any.
    """
    norms = [n for n in prefix_modules(graph, cut, model) if isinstance(n[1], _NormBase)]
    if not norms:
        return
    with unchanged(model, tensors=False):
        model.train()
        coupling = [_couples(module) for _, module in norms]
    yield from itertools.compress(norms, coupling)


def _couples(norm: nn.Module) -> bool:
    if isinstance(norm, _InstanceNorm):
        return norm.track_running_stats and norm.training
    kept = norm.running_mean is not None and norm.running_var is not None
    return norm.training or not kept
