"""Trying what no rule proves: one row of the prefix moved, and a split step against the whole one, on the example.

What no example shows is not found so; the plan says "tried, not proved". Draws of other generators and questions about
the number of rows are no matter of a trial: the trace that found an operation without a rule tells of them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from graphaug.capture.inputs.signature import Signature, map_tensors
from graphaug.capture.recording.tables import Tables
from graphaug.capture.state import modes_kept, seed, unchanged, undrawn
from graphaug.proof.equivalence import dense, numbers_in
from graphaug.proof.left import left_in, otherwise_left
from graphaug.sparse.beside import drawn_twice
from graphaug.sparse.one_draw import OneDraw
from graphaug.sparse.run import Split, sparse_forward
from graphaug.torch_private import enter_autocast

OTHER_OUTPUT = "a split step does not give the output of the whole one"
ROWS = 8
"""At most so many rows of the example are computed with."""

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Of the largest entry: kernels for another number of rows round, and on a GPU multiply, in another way."""


def check_split(aug: Any, found: Split, signature: Signature, proved: bool = False) -> str:
    """Look at what of a split model is not proved, on its example; the reason against it, or an empty string.

    Of rows that are proved independent it is asked whether what both parts need can be computed beside them. Of all
    it is, whether a split step gives and leaves what the whole one does: no proof is of what is changed on the way.
    """
    examples = dict(signature.examples)
    args, kwargs = signature.arrange(examples)
    values = signature.bind(tuple(args), kwargs)
    try:
        with modes_kept(aug, aug.original):
            aug.train()
            if found.shared is not None and (against := drawn_twice(aug, found, values, signature.guessed)):
                return against
            if any(p.is_meta for p in aug.parameters()):
                return "" if proved else "the model lies on the meta device, where rows cannot be tried"
            values = map_tensors(functools.partial(_real, aug), values)
            return ("" if proved else tried(aug, found, values)) or acts_otherwise(aug, found, values)
    except Exception as error:
        said = next(iter(str(error).splitlines()), "")
        return f"a trial on the example failed ({type(error).__name__}{said and ': '}{said[:120]})"


def _real(aug: Any, example: Tensor) -> Tensor:
    """An example with numbers: one that was guessed has none."""
    if not example.is_meta:
        return example
    device = next((p.device for p in aug.parameters()), torch.device("cpu"))
    if not example.is_floating_point():
        return torch.ones(example.shape, dtype=example.dtype, device=device)
    made = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    return made.to(device, example.dtype)


def acts_otherwise(aug: Any, plan: Split, values: dict[str, Any]) -> str:
    """What a split step gives or leaves otherwise than the whole one, of a few rows; an empty string if nothing."""
    _, count = plan.counted(values)
    few = 2 * max(plan.least, 1)
    tables = Tables(aug.original)

    def step(forward: Callable[[dict[str, Any]], Any], rows: int) -> tuple[list[Tensor], dict[str, Any]]:
        inputs = map_tensors(lambda t: t[:rows].clone() if t.dim() and len(t) == count else t.clone(), values)
        with unchanged(aug.original), undrawn(), OneDraw(), torch.enable_grad():  # type: ignore[no-untyped-call]
            outputs = [t.detach() for t in numbers_in(forward(inputs))]
            left = left_in(aug.original, inputs)
        tables.restore()
        return outputs, left

    with _imposed(getattr(aug, plan.augmentation), plan.views):
        for rows in dict.fromkeys((min(few, count), count)):
            try:
                whole = step(lambda inputs: aug._forward_training(**inputs), rows)
            except Exception:  # what the forward assumes of a size holds for the example's own
                continue
            try:
                parts = step(lambda inputs: sparse_forward(aug, plan, inputs), rows)
            except Exception as error:
                return f"a split step fails, and the whole one does not ({type(error).__name__})"
            tolerance, share = _tolerance(aug, whole[0])
            if _apart(whole[0], parts[0], tolerance, share * _largest(whole[0])):
                return OTHER_OUTPUT
            if name := otherwise_left(whole[1], parts[1], tolerance):
                return f"a split step does not leave '{name}' as the whole one does"
            break
    return ""


def tried(aug: Any, plan: Split, values: dict[str, Any]) -> str:
    """Look for rows that meet, in values and in gradients.

    Args:
        aug: the rewritten model in training mode, its samples along dimension 0 of the inputs.
        plan: how its graph was split.
        values: the example's inputs by name.

    Returns:
        The reason against splitting, as a clause, or an empty string.
    """
    _, count = plan.counted(values)
    rows = min(max(count, 4), ROWS)
    try:
        return _on(aug, plan, values, count, rows)
    except Exception:
        if rows == count:
            raise
        # what the forward assumes of a size holds for the example's own
        return _on(aug, plan, values, count, count)


def _on(aug: Any, plan: Split, values: dict[str, Any], count: int, rows: int) -> str:
    """Try with so many rows, made of the ``count`` of the example."""
    index = torch.arange(rows) % count

    def inputs(number: int = 0, row: int | None = None) -> dict[str, Any]:
        generator, another = (torch.Generator().manual_seed(n) for n in (number, number + 1000))

        def prepared(t: Tensor) -> Tensor:
            if t.dim() == 0 or t.shape[0] != count:
                return t.clone()
            chosen = t.index_select(0, index.to(t.device))
            made = _unlike(chosen, generator)
            if row is not None:
                made[row] = _unlike(chosen, another, anew=True)[row]
            return made

        found: dict[str, Any] = map_tensors(prepared, values)
        return found

    trained = {n: p for n, p in aug.named_parameters() if p.requires_grad}
    with _moved(list(trained.values())):
        return _reached(aug, plan, inputs, rows) or _compared(aug, plan, inputs, trained)


def _unlike(rows: Tensor, generator: torch.Generator, anew: bool = False) -> Tensor:
    """Rows made different: numbers by noise, masks cut short, tokens where all rows share them, or anew."""
    made = rows.clone()
    if rows.is_floating_point():
        if bool(rows.isfinite().all()) and float(rows.abs().max()) < 0.1 * torch.finfo(rows.dtype).max:
            noise = torch.randn(rows.shape, generator=generator).to(rows)
            # of numbers that are never negative no root or logarithm is taken in vain
            noise = noise.abs() if bool(rows.min() >= 0) else noise
            made += noise * rows.std().nan_to_num(1.0).clamp(min=0.1)
    elif rows.is_complex() or not rows.numel():
        return made
    elif rows.dtype is torch.bool or int(rows.max()) <= 1:
        kept = torch.randint(1, rows.shape[-1] + 1, (len(rows), 1), generator=generator).to(rows.device)
        if rows.dim() == 2:
            shorter = made * (torch.arange(rows.shape[-1], device=rows.device) < kept)
            made = torch.where(shorter.any(1, keepdim=True), shorter, made)
    elif anew or torch.equal(rows, rows[:1].expand_as(rows)):
        drawn = torch.randint(min(int(rows.min()), 1), int(rows.max()) + 1, rows.shape, generator=generator)
        made.copy_(drawn.to(rows))
    return made


def _reached(aug: Any, plan: Split, inputs: Any, rows: int) -> str:
    """Whether a row of the value at the cut changes with another row of the inputs."""

    def run(values: dict[str, Any]) -> Tensor:
        with unchanged(aug.original), undrawn(), torch.no_grad():
            seed(0)
            shared = aug._forward_shared(**values) if plan.shared is not None else ()
            h = aug._forward_prefix(*plan.taken(values), *shared)[0]
        first: Tensor = plan.place.first(h.detach()).nan_to_num().clone()
        return first

    for number, row in ((0, 0), (1, rows - 1)):
        before, after = run(inputs(number)), run(inputs(number, row))
        others = [i for i in range(rows) if i != row]
        a, b = before[others], after[others]
        # another row may move in its last bits only, where a kernel works on blocks of rows
        if not float((a - b).abs().max()) <= 1e-5 * max(float(a.abs().max()), 1e-6):
            return f"a row of the prefix changes when row {row} of the input does"
    return ""


def _compared(aug: Any, plan: Split, inputs: Any, trained: dict[str, Tensor]) -> str:
    """What differs between a whole step and a split one, every second row stopped."""

    def step(forward: Any) -> Any:
        with unchanged(aug.original), undrawn():  # both forms begin with the same state
            return _step(forward, list(trained.values()))

    with _imposed(getattr(aug, plan.augmentation), plan.views):
        whole = step(lambda: aug._forward_training(**inputs()))
        parts = step(lambda: sparse_forward(aug, plan, inputs()))
    if not whole[0]:
        return "a trial finds no tensor in the output to compare"
    tolerance, share = _tolerance(aug, whole[0])
    if _apart(whole[0], parts[0], tolerance, share * _largest(whole[0])):
        return OTHER_OUTPUT
    floor = share * _largest([g for g in whole[1] if g is not None])
    for path, a, b in zip(trained, whole[1], parts[1], strict=True):
        a, b = (torch.zeros_like(trained[path]) if g is None else g for g in (a, b))
        if _apart([a], [b], tolerance, floor):
            return f"the gradient of '{path}' is another one in a split step"
    return ""


def _tolerance(aug: Any, outputs: list[Tensor]) -> tuple[float, float]:
    """Of the largest entry of a tensor, and of all: rounding is relative to what was added up, of large terms too."""
    regions = (n.args for n in aug._parts.training_graph.nodes if n.target is enter_autocast)
    coarse = any(enabled for _, _, enabled, _ in regions)
    coarse = coarse or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    kinds = {t.dtype for t in (*aug.parameters(), *outputs) if t.is_floating_point()}
    tolerance = 0.1 if coarse else max((TOLERANCE.get(kind, 0.1) for kind in kinds), default=0.0)
    return tolerance, 1e-3 if tolerance < 0.1 else 0.1


def _step(forward: Any, trained: list[Tensor]) -> tuple[list[Tensor], tuple[Tensor | None, ...]]:
    """The outputs of a forward, and the gradients of a fixed random projection of them."""
    with OneDraw(), torch.enable_grad():  # type: ignore[no-untyped-call]
        outputs = numbers_in(forward())
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
    loss = sum((t * w).sum() for t, w in zip(outputs, weights, strict=True) if t.requires_grad)
    outputs = [t.detach() for t in outputs]
    if not isinstance(loss, Tensor):
        return outputs, (None,) * len(trained)
    try:
        with OneDraw():  # type: ignore[no-untyped-call]  # what is computed again in the backward draws again
            grads = torch.autograd.grad(loss, trained, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        return outputs, (None,) * len(trained)  # reentrant checkpoints allow no look at gradients
    return outputs, tuple(None if g is None else dense(g) for g in grads)


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
def _imposed(augmentation: Any, views: int) -> Iterator[None]:
    """Draws that do not depend on how a step is run: every second row in all of its views, its values halved."""
    own: dict[str, Any] = augmentation.__dict__
    own["stopped_rows"] = lambda rows: (rows // views + 1) // 2 * views
    own["draw_rows"] = lambda rows, device: torch.arange(rows, device=device) % (rows // views) % 2 == 0
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
