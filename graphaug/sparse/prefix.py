"""What a prefix has to be: one tensor at its cut; its modules, and those among them that meet their rows by design."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from graphaug.capture.dataflow import before, data_dependent
from graphaug.capture.values import UNKNOWN, describe, value_of
from graphaug.errors import SparseBackwardError


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


def check_single(value: fx.Node) -> None:
    """Refuse a value at the cut that is not one tensor, or of which that is not known.

    Raises:
        SparseBackwardError: with the reason, as a clause.
    """
    found = value_of(value)
    if found is UNKNOWN:
        source, of = data_dependent(value), ""
        if source is not None:
            of = f": it depends on the data in '{describe(source)}' ({source.meta['unknown_because']})"
        raise SparseBackwardError(f"the size of the value at the cut is not known{of}")
    if not isinstance(found, Tensor):
        raise SparseBackwardError("the value at the cut is no single tensor")
