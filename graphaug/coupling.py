"""The proof behind sparse backward: no row of the prefix sees another.

Four questions, cheapest first: does a module of the prefix keep batch statistics; does the cut
separate; do the rows of everything that enters and leaves keep their places at two batch sizes; and,
on a small real batch, does any row's value or gradient depend on another row, on its own place or on
the number of rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode

from graphaug.separation import before

PROBE_ROWS = 4


def statistics_modules(graph: fx.Graph, cut: fx.Node, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules up to the cut that keep or use statistics of the batch, with their paths."""
    for path, module in prefix_modules(graph, cut, model):
        if isinstance(module, _InstanceNorm):
            if module.track_running_stats:
                yield path, module
        elif isinstance(module, _BatchNorm) or _keeps_statistics(module):
            yield path, module


def prefix_modules(graph: fx.Graph, cut: fx.Node, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that runs up to the cut, those inside closed modules included."""
    ahead = before(cut)
    for node in graph.nodes:
        if node in ahead and node.op == "call_module" and not node.meta.get("augmentation"):
            root = str(node.target)
            for name, module in model.get_submodule(root).named_modules():
                yield (f"{root}.{name}" if name else root), module


def _keeps_statistics(module: nn.Module) -> bool:
    return any(name.startswith("running_") for name, _ in module.named_buffers(recurse=False))


def probe(run: Any, inputs: list[Any], rows: list[int | None], model: nn.Module) -> str:
    """Run the prefix on a few real rows, and look for a row that another one depends on.

    Args:
        run: the prefix, from a list of inputs to the value at the cut; its modules in training mode.
        inputs: real inputs of the prefix; two rows or more.
        rows: the dimension of rows of each, or None.
        model: owner of the prefix's modules, for their state.

    Returns:
        The reason why the prefix is not row-wise, or an empty string.
    """
    count = next(v.shape[d] for v, d in zip(inputs, rows, strict=True) if d is not None)
    whole = _resized(inputs, rows, max(count, PROBE_ROWS), count)
    inputs = _resized(inputs, rows, PROBE_ROWS, count)
    with _restored(model) as changed, torch.random.fork_rng(devices=[]):
        for j in range(PROBE_ROWS):  # each with draws of its own: a shuffle may leave a row in place once
            found = _moves(run, inputs, rows, j, seed=j)
            if found is not None:
                return f"row {found} of the prefix changes when row {j} of the input does"
        i = _leaks(run, inputs, rows)
        if i is not None:
            return f"the gradient of row {i} of the prefix reaches another row of the input"
        if _is_placed(run, whole, rows):
            return "a row of the prefix depends on its place in the batch, or on the number of rows"
        state = changed()
    if state:
        return f"{state} keeps state of the batch"
    return ""


def _resized(inputs: list[Any], rows: list[int | None], wanted: int, count: int) -> list[Any]:
    """The example with exactly ``wanted`` rows, repeated where it has fewer."""
    return _chosen(inputs, rows, torch.arange(wanted) % count)


def _chosen(inputs: list[Any], rows: list[int | None], index: Tensor) -> list[Any]:
    return [
        v if d is None or not isinstance(v, Tensor) else v.index_select(d, index.to(v.device))
        for v, d in zip(inputs, rows, strict=True)
    ]


def _moves(run: Any, inputs: list[Any], rows: list[int | None], j: int, seed: int) -> int | None:
    """The first row other than ``j`` whose value changes with row ``j`` of the input."""
    generator = torch.Generator().manual_seed(seed)
    base = [_distinct(v, d, generator) for v, d in zip(inputs, rows, strict=True)]
    moved = [_other_row(v, d, j, generator) for v, d in zip(base, rows, strict=True)]
    with torch.no_grad():
        torch.manual_seed(seed)
        before_move = run(base)
        torch.manual_seed(seed)
        after_move = run(moved)
    for i in range(PROBE_ROWS):
        if i != j and not torch.equal(before_move[i].nan_to_num(), after_move[i].nan_to_num()):
            # another row may move in its last bits only, where a kernel works on blocks of rows
            gap = (before_move[i] - after_move[i]).abs().max()
            if gap > 1e-5 * before_move[i].abs().max().clamp(min=1e-6):
                return i
    return None


def _distinct(value: Any, dimension: int | None, generator: torch.Generator) -> Any:
    """Floating-point rows made different from each other; tokens and masks stay what they are."""
    if not isinstance(value, Tensor) or dimension is None or not value.is_floating_point():
        return value
    return value + torch.randn(value.shape, generator=generator).to(value) * value.std().nan_to_num(
        1.0
    ).clamp(min=0.1)


def _other_row(value: Any, dimension: int | None, j: int, generator: torch.Generator) -> Any:
    """The same batch with row ``j`` replaced: noise, or tokens in another order."""
    if not isinstance(value, Tensor) or dimension is None:
        return value
    changed = value.clone()
    row = changed.select(dimension, j)
    if value.is_floating_point():
        row.copy_(torch.randn(row.shape, generator=generator).to(value) * 3)
    elif value.dtype is torch.bool or int(value.min()) == int(value.max()) or int(value.max()) <= 1:
        return value  # a mask: moving it may make a row empty
    else:
        flat = row.reshape(-1)
        low, high = int(value.min()), int(value.max())
        drawn = torch.randint(low, high + 1, flat.shape, generator=generator).to(value)
        row.copy_(drawn.reshape(row.shape))
    return changed


def _leaks(run: Any, inputs: list[Any], rows: list[int | None]) -> int | None:
    """The first row whose gradient reaches another row of a floating-point input."""
    leaves: dict[int, tuple[Tensor, int]] = {}
    for position, (value, dimension) in enumerate(zip(inputs, rows, strict=True)):
        if isinstance(value, Tensor) and dimension is not None and value.is_floating_point():
            leaves[position] = value.detach().clone().requires_grad_(True), dimension
    if not leaves:
        return None  # tokens: the first test is the whole test
    with torch.enable_grad():
        # clones, since a forward may change its input in place
        h = run([leaves[i][0].clone() if i in leaves else v for i, v in enumerate(inputs)])
        weights = torch.randn(h.shape, generator=torch.Generator().manual_seed(0)).to(h)
        for i in range(PROBE_ROWS):
            grads = torch.autograd.grad(
                (h[i] * weights[i]).sum(),
                [v for v, _ in leaves.values()],
                retain_graph=True,
                allow_unused=True,
            )
            for grad, (_, dimension) in zip(grads, leaves.values(), strict=True):
                others = torch.tensor([r for r in range(PROBE_ROWS) if r != i], device=h.device)
                if grad is not None and bool(grad.index_select(dimension, others).any()):
                    return i
    return None


def _is_placed(run: Any, inputs: list[Any], rows: list[int | None]) -> bool:
    """Whether a part of the rows, in another order, becomes something else than among all rows."""
    generator = torch.Generator().manual_seed(0)
    inputs = [_distinct(v, d, generator) for v, d in zip(inputs, rows, strict=True)]
    count = next(v.shape[d] for v, d in zip(inputs, rows, strict=True) if d is not None)
    with torch.no_grad(), _OneDraw():  # type: ignore[no-untyped-call]
        wanted = run(_chosen(inputs, rows, torch.arange(count))).nan_to_num()
        # kernels differ from size to size, in the last bits
        bound = torch.finfo(wanted.dtype).eps ** 0.5 * wanted.abs().max().clamp(min=1e-6)
        for part in (torch.arange(count - 1, -1, -2), torch.tensor([count - 1, 0])):
            found = run(_chosen(inputs, rows, part)).nan_to_num()
            gap = (wanted.index_select(0, part.to(wanted.device)) - found).abs().max()
            if not bool(gap <= bound):
                return True
    return False


class _OneDraw(TorchDispatchMode):
    """Every random number is the same one, so that a row draws the same wherever it stands."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload) or torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").removesuffix("_").removesuffix("_like")
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        position = [a.name for a in func._schema.arguments].index("dropout_p") if _drops(func) else None
        if position is not None and position < len(args):  # a fused attention
            args = (*args[:position], 0.0, *args[position + 1 :])
        elif position is not None:
            kwargs = {**kwargs, "dropout_p": 0.0}
        drawn = func(*args, **kwargs)
        if name == "randperm":
            return drawn.copy_(torch.arange(len(drawn)))
        if name in ("bernoulli", "uniform", "normal", "rand", "randn", "exponential"):
            return drawn.fill_(1 if name == "bernoulli" else 0.5)
        return drawn


def _drops(func: OpOverload) -> bool:
    return any(a.name == "dropout_p" for a in func._schema.arguments)


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[Any]:
    """Put buffers and tensor attributes back; the value tells which module changed any of its own."""
    saved = [
        (path, m, dict(vars(m)), {k: (v, None if v is None else v.clone()) for k, v in m._buffers.items()})
        for path, m in model.named_modules()
    ]

    def changed() -> str:
        for path, m, attributes, buffers in saved:
            for name, (tensor, copy) in buffers.items():
                now = m._buffers.get(name)
                if now is not tensor or (copy is not None and not torch.equal(now, copy)):
                    return f"{type(m).__name__} '{path}' ({name})"
            for name, value in vars(m).items():
                if isinstance(value, Tensor) and attributes.get(name) is not value:
                    return f"{type(m).__name__} '{path}' ({name})"
        return ""

    try:
        yield changed
    finally:
        for _, m, attributes, buffers in saved:
            for name, (tensor, copy) in buffers.items():
                m._buffers[name] = tensor
                if tensor is not None and copy is not None:
                    tensor.copy_(copy)
            registries = {r: vars(m)[r] for r in ("_parameters", "_buffers", "_modules")}
            vars(m).clear()
            vars(m).update(attributes)
            vars(m).update(registries)
