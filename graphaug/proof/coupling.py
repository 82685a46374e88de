"""The proof behind sparse backward: no row of the prefix sees another.

Four questions, cheapest first: does a module of the prefix keep batch statistics; does the cut
separate; do the rows of everything that enters and leaves keep their places at two batch sizes; and,
on a small real batch, does any row's value or gradient depend on another row, on its own place or on
the number of rows. A fifth, whether a split step is the whole one, is agreement.py's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode

from graphaug.capture.dataflow import before
from graphaug.capture.state import SMALL, ModelState, python_draws, unchanged, undrawn
from graphaug.capture.state import seed as draw_from
from graphaug.capture.values import describe
from graphaug.proof.independence.outside import counts, stated
from graphaug.proof.other_rows import distinct, is_mask, is_movable, other_row, short
from graphaug.torch_private import OpOverload

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
    # torchvision's and detectron2's: constants by another name
    if type(module).__name__ == "FrozenBatchNorm2d":
        return False
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
    count = next((v.shape[d] for v, d in zip(inputs, rows, strict=True) if d is not None), None)
    if count is None:
        return "no input of the prefix counts its rows"
    whole = _resized(inputs, rows, max(count, PROBE_ROWS), count)
    inputs = _resized(inputs, rows, PROBE_ROWS, count)
    if not any(d is not None and is_movable(v) for v, d in zip(inputs, rows, strict=True)):
        return "no row of the example can be told from another: give it real tokens, not zeros and ones"
    with restored(model, lambda: _first_run(run, inputs)) as changed, undrawn():
        drawn = python_draws()
        _first_run(run, inputs)
        if python_draws() != drawn:  # neither seeded by torch nor drawn alike for the two parts
            return "the prefix draws from Python's or numpy's generator, once for each part of the rows"
        if not _stays_finite(run, inputs, rows):
            return (
                "values near the example's are not finite in the prefix, so that its rows cannot be compared"
            )
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
    base = [distinct(v, d, generator) for v, d in zip(inputs, rows, strict=True)]
    if j % 2:  # among rows that are all short, one that is not: a longest row shows there only
        base = [short(v) if d is not None and is_mask(v) else v for v, d in zip(base, rows, strict=True)]
    moved = [other_row(v, d, j, generator) for v, d in zip(base, rows, strict=True)]
    with torch.no_grad():
        draw_from(seed)
        before_move = run(base)
        draw_from(seed)
        after_move = run(moved)
    before_move, after_move = before_move.nan_to_num(), after_move.nan_to_num()
    for i in range(PROBE_ROWS):
        if i != j and not torch.equal(before_move[i], after_move[i]):
            # another row may move in its last bits only, where a kernel works on blocks of rows
            gap = (before_move[i] - after_move[i]).abs().max()
            if not gap <= 1e-5 * before_move[i].abs().max().clamp(min=1e-6):
                return i
    return None


def first_coupled(owner: nn.Module, prefix: fx.Graph, inputs: list[Any], rows: list[int | None]) -> str:
    """Where rows first meet, for a message: the first value of the prefix in which another row moves.

    Args:
        owner: whose modules the graph calls.
        prefix: the graph from the inputs to the value at the cut.
        inputs, rows: as for `probe`.
    """
    count = next(v.shape[d] for v, d in zip(inputs, rows, strict=True) if d is not None)
    inputs = _resized(inputs, rows, PROBE_ROWS, count)
    generator = torch.Generator().manual_seed(0)
    base = [distinct(v, d, generator) for v, d in zip(inputs, rows, strict=True)]
    moved = [other_row(v, d, 0, generator) for v, d in zip(base, rows, strict=True)]
    values: list[dict[fx.Node, Any]] = []
    for taken in (base, moved):
        interpreter = fx.Interpreter(owner, garbage_collect_values=False, graph=prefix)
        with torch.no_grad():
            draw_from(0)
            interpreter.run(*taken)
        values.append(interpreter.env)
    for node in prefix.nodes:
        if node.op == "placeholder" or not _differ(*(v.get(node) for v in values)):
            continue
        where = describe(node)
        if node.op == "call_module":
            calls = [fx.node.map_arg((node.args, node.kwargs), v.__getitem__) for v in values]
            where = _first_inside(owner.get_submodule(str(node.target)), str(node.target), calls)
        return f" (first in {where})"
    return ""


def _first_inside(module: nn.Module, path: str, calls: list[Any]) -> str:
    """The innermost module of a closed one that makes rows meet: they come to it apart, and leave it together."""
    seen: list[list[tuple[str, Any, Any]]] = []
    for args, kwargs in calls:
        record: list[tuple[str, Any, Any]] = []
        seen.append(record)
        handles = [
            child.register_forward_hook(
                lambda _, given, out, name=name, record=record: record.append((name, given, out))
            )
            for name, child in module.named_modules()
            if name
        ]
        try:
            with torch.no_grad():
                draw_from(0)
                module(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
    for (name, given, out), (other, given_too, out_too) in zip(*seen, strict=False):
        if name == other and _differ(out, out_too) and not _differ(given, given_too):
            return f"{path}.{name}"
    return path


def _differ(a: Any, b: Any) -> bool:
    """Whether any row but the first differs, in any tensor with rows."""
    leaves = (torch.utils._pytree.tree_leaves(v) for v in (a, b))
    return any(
        isinstance(s, Tensor) and s.dim() > 0 and len(s) == PROBE_ROWS
        and not torch.equal(s[1:].nan_to_num(), t[1:].nan_to_num())
        for s, t in zip(*leaves, strict=False)
    )  # fmt: skip


def _first_run(run: Any, inputs: list[Any]) -> None:
    """Let modules make what they make once and keep: a table of positions is no state of a batch."""
    with torch.no_grad():
        run(inputs)


def _stays_finite(run: Any, inputs: list[Any], rows: list[int | None]) -> bool:
    """Whether noise does not take a prefix out of its domain: where nothing is a number, nothing differs."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        near = run([distinct(v, d, generator) for v, d in zip(inputs, rows, strict=True)])
        return bool(near.isfinite().all()) or not bool(run(inputs).isfinite().all())


def _leaks(run: Any, inputs: list[Any], rows: list[int | None]) -> int | None:
    """The first row whose gradient reaches another row of a floating-point input."""
    leaves: dict[int, tuple[Tensor, int]] = {}
    for position, (value, dimension) in enumerate(zip(inputs, rows, strict=True)):
        if isinstance(value, Tensor) and dimension is not None and value.is_floating_point():
            leaves[position] = value.detach().clone().requires_grad_(True), dimension
    if not leaves:
        return None  # tokens have no gradient; what their embeddings pass on, agreement.py compares
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
    inputs = [distinct(v, d, generator) for v, d in zip(inputs, rows, strict=True)]
    count = next(v.shape[d] for v, d in zip(inputs, rows, strict=True) if d is not None)
    with torch.no_grad(), OneDraw():  # type: ignore[no-untyped-call]
        wanted = run(_chosen(inputs, rows, torch.arange(count))).nan_to_num()
        # kernels differ from size to size, in the last bits
        bound = torch.finfo(wanted.dtype).eps ** 0.5 * wanted.abs().max().clamp(min=1e-6)
        for part in (torch.arange(count - 1, -1, -2), torch.tensor([count - 1, 0])):
            found = run(_chosen(inputs, rows, part)).nan_to_num()
            gap = (wanted.index_select(0, part.to(wanted.device)) - found).abs().max()
            if not bool(gap <= bound):
                return True
    return False


class OneDraw(TorchDispatchMode):
    """Every random number is the same one, so that a row draws the same wherever it stands."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):
            return func(*args, **kwargs)
        position = [a.name for a in func._schema.arguments].index("dropout_p") if _drops(func) else None
        if position is not None and position < len(args):  # a fused attention, or its backward
            args = (*args[:position], 0.0, *args[position + 1 :])
        elif position is not None:
            kwargs = {**kwargs, "dropout_p": 0.0}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").removesuffix("_").removesuffix("_like")
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        draw_from(0)
        drawn = func(*args, **kwargs)
        if name == "randperm":
            return drawn.copy_(torch.arange(len(drawn)))
        if name in ("bernoulli", "uniform", "normal", "rand", "randn", "exponential"):
            return drawn.fill_(1 if name == "bernoulli" else 0.5)
        return drawn


def _drops(func: OpOverload) -> bool:
    return any(a.name == "dropout_p" for a in func._schema.arguments)


@contextlib.contextmanager
def restored(model: nn.Module, first: Callable[[], None] = lambda: None) -> Iterator[Callable[[], str]]:
    """Put back what is run here changes of a model's state.

    Args:
        model: whose modules are looked at.
        first: runs before changes count.

    Yields:
        A function that tells which module changed state with tensors or numbers in it, or gives an empty string.
    """
    named = [*model.named_buffers(), *model.named_parameters()]
    tensors = [(name, t, t.detach().clone() if t.numel() <= SMALL else t) for name, t in named]
    with unchanged(model):
        first()
        state = ModelState(model)
        since = [
            (name, t, t._version, saved if _equal(t, saved) else t.detach().clone())
            for name, t, saved in tensors
        ]

        def changed() -> str:
            for name in state.changes():
                path, _, attribute = name.rpartition(".")
                if counts(getattr(model.get_submodule(path), attribute, None)):
                    return stated(model, name)
            for name, t, version, held in since:
                if t._version != version or not _equal(t, held):
                    return stated(model, name)
            return ""

        try:
            yield changed
        finally:
            for _, t, saved in tensors:
                if not _equal(t, saved):
                    t.data.copy_(saved)


def _equal(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    a, b = a.detach(), b.detach()
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is what it was
