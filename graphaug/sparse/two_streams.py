"""Two streams through BatchNorm: stopped rows without grad and the others with it, under the statistics of all.

The forward is that of the whole batch. What is dropped of the gradient is the part that the other
rows' loss sends to the stopped rows through the batch statistics; docs/sparse-backward.md measures it.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from graphaug.capture.regions import SETS_A_MODE
from graphaug.errors import SparseBackwardError, an
from graphaug.torch_private import set_grad_enabled

BATCH_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""The types whose forward is known to be batch normalisation and nothing else."""


def is_plain_norm(module: nn.Module) -> bool:
    """Whether calling a module is batch normalisation and nothing else."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return type(module) in BATCH_NORMS and not any(hooks) and "forward" not in vars(module)


def pair(prefix: fx.Graph, norms: Collection[str]) -> fx.Graph:
    """Run a prefix graph on two sets of rows at once, which meet in the BatchNorms only.

    Args:
        prefix: the graph of one set of rows.
        norms: the modules in it that are BatchNorms.

    Returns:
        A graph from the inputs of the kept rows, then those of the stopped rows, to the pair of outputs;
        the stopped rows run with gradients switched off.
    """
    both = fx.Graph()
    kept: dict[fx.Node, fx.Node] = {}
    gone: dict[fx.Node, fx.Node] = {}
    inputs = [n for n in prefix.nodes if n.op == "placeholder"]
    for stream, suffix in ((kept, "kept"), (gone, "stopped")):
        for node in inputs:
            stream[node] = both.placeholder(f"{node.target}_{suffix}")
    mode = both.call_function(torch.is_grad_enabled)
    waiting: list[fx.Node] = []

    def run_stopped() -> None:
        if waiting:
            both.call_function(set_grad_enabled, (False,))
            for node in waiting:
                gone[node] = both.node_copy(node, lambda n: gone[n])
            both.call_function(set_grad_enabled, (mode,))
            waiting.clear()

    for node in prefix.nodes:
        if node.op == "call_module" and node.target in norms:
            run_stopped()
            (x,) = node.all_input_nodes
            norm = both.get_attr(str(node.target))
            result = both.call_function(two_stream_batch_norm, (norm, kept[x], gone[x]))
            kept[node] = both.call_function(_first, (result,))
            gone[node] = both.call_function(_second, (result,))
        elif node.op == "get_attr":
            kept[node] = gone[node] = both.node_copy(node)
        elif node.op == "output":
            run_stopped()
            results = node.args[0]
            both.output(tuple(tuple(s[n] for n in results) for s in (kept, gone)))
        elif node.target in SETS_A_MODE:  # for both streams
            run_stopped()
            kept[node] = gone[node] = both.node_copy(node, lambda n: kept[n])
        elif node.op != "placeholder":
            kept[node] = both.node_copy(node, lambda n: kept[n])
            waiting.append(node)
    return both


def _first(values: tuple[Tensor, Tensor]) -> Tensor:
    return values[0]


def _second(values: tuple[Tensor, Tensor]) -> Tensor:
    return values[1]


def two_stream_batch_norm(norm: _BatchNorm, kept: Tensor, stopped: Tensor) -> tuple[Tensor, Tensor]:
    """Batch normalisation of two sets of rows by the statistics of both, updating the running ones once.

    Args:
        norm: a BatchNorm1d, 2d or 3d in training or eval mode.
        kept: rows with gradient, (rows, C, …).
        stopped: rows without, (rows, C, …).

    Returns:
        The two normalised sets, in the dtype of their inputs; no gradient flows into ``stopped``.

    Raises:
        SparseBackwardError: the module was replaced or given hooks since the model was rewritten.
    """
    if not is_plain_norm(norm):
        raise SparseBackwardError(
            f"a BatchNorm of the prefix {'has hooks' if type(norm) in BATCH_NORMS else f'became {an(norm)}'} since the "
            "model was rewritten, "
            "which two streams would pass over: change the model before graphaug.rewrite, or use backward='dense'."
        )
    if not norm.training and norm.running_mean is not None:
        with torch.no_grad():
            frozen = norm(stopped)
        return norm(kept), frozen
    dims = [0, *range(2, kept.dim())]
    wide = torch.promote_types(kept.dtype, torch.float32)
    n, m = kept.numel() // kept.shape[1], stopped.numel() // stopped.shape[1]
    variance, mean = torch.var_mean(kept.to(wide), dims, correction=0)
    with torch.no_grad():
        variance_stopped, mean_stopped = torch.var_mean(stopped.to(wide), dims, correction=0)
    joint = (n * mean + m * mean_stopped) / (n + m)
    spread = (
        n * (variance + (mean - joint).square()) + m * (variance_stopped + (mean_stopped - joint).square())
    ) / (n + m)
    with torch.no_grad():
        _update(norm, joint, spread * ((n + m) / (n + m - 1)))
    scale = torch.rsqrt(spread + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -joint * scale if norm.bias is None else norm.bias - joint * scale
    shape = (1, -1, *[1] * (kept.dim() - 2))
    out = (kept.to(wide) * scale.view(shape) + shift.view(shape)).to(kept.dtype)
    with torch.no_grad():
        out_stopped = (stopped.to(wide) * scale.view(shape) + shift.view(shape)).to(stopped.dtype)
    return out, out_stopped


def _update(norm: _BatchNorm, mean: Tensor, unbiased: Tensor) -> None:
    """What the whole batch would have done to the running statistics."""
    if not norm.track_running_stats:
        return
    counted = norm.num_batches_tracked
    if counted is not None:
        counted.add_(1)
    if norm.running_mean is None or norm.running_var is None:
        return
    if norm.momentum is None:  # a cumulative average; of batches that are not counted torch keeps none
        factor = mean.new_zeros(()) if counted is None else 1.0 / counted.to(mean.dtype)
    else:
        factor = torch.full((), norm.momentum, dtype=mean.dtype, device=mean.device)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), factor.to(norm.running_mean.dtype))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), factor.to(norm.running_var.dtype))
