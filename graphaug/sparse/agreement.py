"""The last test of a split graph: one step of it, values and gradients, against the same step unsplit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from graphaug.capture.signature import map_tensors
from graphaug.capture.state import unchanged, undrawn
from graphaug.proof.coupling import OneDraw
from graphaug.proof.other_rows import distinct
from graphaug.sparse.run import Split, sparse_forward

ROWS = 8
"""At most so many rows of the example are computed with."""

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Of the largest entry: kernels for another number of rows round, and on a GPU multiply, in another way."""


def disagreement(aug: Any, plan: Split, values: dict[str, Any]) -> str:
    """Run one training step on the example in both forms, every second row stopped.

    It finds what no look at the prefix's values can: rows that meet in gradients only, coupling behind a gate that is
    still zero (the trained parameters are moved a little for that, and put back), writes in place that one of the parts
    lost, and stopped rows that still pass a gradient.

    Args:
        aug: the rewritten model, in the modes that the step is to be compared in.
        plan: how its graph was split.
        values: the example's inputs by name.

    Returns:
        What differs, as a clause, or an empty string.
    """
    name, dimension = plan.batch
    count = values[name].shape[dimension]
    rows = min(max(count, 4), ROWS)
    try:
        return _compared(aug, plan, values, count, rows)
    except Exception:
        if rows == count:
            raise
        # what the forward assumes of a size holds for the example's own
        return _compared(aug, plan, values, count, count)


def _compared(aug: Any, plan: Split, values: dict[str, Any], count: int, rows: int) -> str:
    """What differs between the two forms of a step on so many rows, made of the ``count`` of the example."""
    index = torch.arange(rows) % count

    def inputs() -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)

        def prepared(t: Tensor) -> Tensor:
            if t.dim() == 0 or t.shape[0] != count:
                return t.clone()
            chosen = t.index_select(0, index.to(t.device))
            made: Tensor = distinct(chosen, 0, generator)
            return made.clone()  # a forward may write into what it is given

        found: dict[str, Any] = map_tensors(prepared, values)
        return found

    trained = {n: p for n, p in aug.named_parameters() if p.requires_grad}
    first, second = inputs(), inputs()

    def step(forward: Any) -> Any:
        with unchanged(aug.original), undrawn():  # both forms begin with the same state
            return _step(forward, list(trained.values()))

    with _imposed(getattr(aug, plan.augmentation)), _moved(list(trained.values())):
        whole = step(lambda: aug._forward_training(**first))
        parts = step(lambda: sparse_forward(aug, plan, second))
    coarse = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    floating = [*aug.parameters(), *whole[0]]
    tolerance = 0.1 if coarse else max(TOLERANCE.get(t.dtype, 0.1) for t in floating if t.is_floating_point())
    # rounding is relative to what was added up, and a number may be what is left of large terms
    share = 1e-3 if tolerance < 0.1 else 0.1
    if _apart(whole[0], parts[0], tolerance, share * _largest(whole[0])):
        return "a split step does not give the output of the whole one"
    floor = share * _largest([g for g in whole[1] if g is not None])
    for path, a, b in zip(trained, whole[1], parts[1], strict=True):
        a, b = (torch.zeros_like(trained[path]) if g is None else g for g in (a, b))
        if _apart([a], [b], tolerance, floor):
            return f"the gradient of '{path}' is another one in a split step"
    return ""


def _step(forward: Any, trained: list[Tensor]) -> tuple[list[Tensor], tuple[Tensor | None, ...]]:
    """The outputs of a forward, and the gradients of a fixed random projection of them."""
    with OneDraw(), torch.enable_grad():  # type: ignore[no-untyped-call]
        leaves = torch.utils._pytree.tree_leaves(_plain(forward()))
    outputs = [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
    loss = sum((t * w).sum() for t, w in zip(outputs, weights, strict=True) if t.requires_grad)
    if not isinstance(loss, Tensor):
        return outputs, (None,) * len(trained)
    outputs = [t.detach() for t in outputs]
    try:
        with OneDraw():  # type: ignore[no-untyped-call]  # what is computed again in the backward draws again
            grads = torch.autograd.grad(loss, trained, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        return outputs, (None,) * len(trained)  # reentrant checkpoints allow no look at gradients
    return outputs, tuple(g.to_dense() if g is not None and g.is_sparse else g for g in grads)


def _largest(tensors: list[Tensor]) -> float:
    return max((float(t.nan_to_num().abs().max()) for t in tensors if t.numel()), default=0.0)


def _apart(first: list[Tensor], second: list[Tensor], tolerance: float, floor: float) -> bool:
    """Whether tensors differ by more than rounding."""
    if [t.shape for t in first] != [t.shape for t in second]:
        return True
    for a, b in zip(first, second, strict=True):
        if a.numel():
            a, b = a.nan_to_num(), b.nan_to_num()
            gap, size = float((a - b).abs().max()), max(float(a.abs().max()), floor, 1e-6)
            if not gap <= tolerance * size:
                return True
    return False


@contextlib.contextmanager
def _imposed(augmentation: Any) -> Iterator[None]:
    """Draws that do not depend on how a step is run: every second row, its values halved."""
    own: dict[str, Any] = augmentation.__dict__
    own["stopped_rows"] = lambda rows: (rows + 1) // 2
    own["draw_rows"] = lambda rows, device: torch.arange(rows, device=device) % 2 == 0
    own["check_batch"] = lambda h: None
    halving = augmentation.halving()
    own.update(halving)
    try:
        yield
    finally:
        for name in ("stopped_rows", "draw_rows", "check_batch", *halving):
            del own[name]


@contextlib.contextmanager
def _moved(trained: list[Tensor]) -> Iterator[None]:
    """Parameters a little away from where they are: at zero a gate hides what is behind it."""
    generator = torch.Generator().manual_seed(0)
    held = [p.detach().clone() for p in trained]
    try:
        for p in trained:
            noise = torch.randn(p.shape, generator=generator).to(p)
            spread = p.detach().abs().mean().nan_to_num(1.0).clamp(min=0.02)
            p.data.add_(0.1 * spread * noise)  # of .data: nobody's version counter moves
        torch.clear_autocast_cache()  # nor does autocast notice
        yield
    finally:
        for p, saved in zip(trained, held, strict=True):
            p.data.copy_(saved)
        torch.clear_autocast_cache()


def _plain(value: Any) -> Any:
    """Outputs as plain containers, attributes of other objects included."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "items"):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if hasattr(value, "__dict__"):
        return {k: v for k, v in vars(value).items() if isinstance(v, Tensor)}
    return value
