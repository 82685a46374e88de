"""The modules of a prefix, and those among them that meet their rows by design."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from graphaug.capture.dataflow import before


def prefix_modules(graph: fx.Graph, cut: fx.Node, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that runs up to the cut with its path, those inside closed modules included."""
    ahead = before(cut)
    for node in graph.nodes:
        if node in ahead and node.op == "call_module" and not node.meta.get("augmentation"):
            root = str(node.target)
            for name, module in model.get_submodule(root).named_modules():
                yield (f"{root}.{name}" if name else root), module


def statistics_modules(graph: fx.Graph, cut: fx.Node, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The norms up to the cut that use or keep statistics of the batch, with their paths."""
    for path, module in prefix_modules(graph, cut, model):
        tracked = isinstance(module, _InstanceNorm) and module.track_running_stats
        if tracked or (isinstance(module, _BatchNorm) and not isinstance(module, _InstanceNorm)):
            yield path, module
