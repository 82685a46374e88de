"""One transform's node on what enters it: row by row what the transform gives when it draws the same once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.augment.site import none_augmented
from graphaug.augment.transformed import Transformed
from graphaug.capture.target import Target
from graphaug.errors import VerificationError
from graphaug.proof.on_a_batch.closed_forms import check_rows, value_at
from graphaug.proof.on_a_batch.outputs import distance
from graphaug.proof.on_a_batch.recorded import Recorded, again, record, slices, stop_recording
from graphaug.surgery.module import AugmentedModule


def redraw(
    target: Target,
    augmentation: Transformed,
    aug: AugmentedModule,
    call: Callable[[nn.Module], Any],
    tolerance: float,
) -> Iterator[str]:
    """Run one node alone, and once more row by row with the same random numbers.

    Raises:
        VerificationError: rows, values or gradients are not what the plan says.
    """
    request = next(s.request for s in aug.plan.sites if s.request.target == target)
    value, name = value_at(augmentation, aug, call), augmentation.transform.in_words()
    found: list[Recorded] = []
    record(augmentation, found)
    first, second = value.clone().requires_grad_(), value.clone().requires_grad_()
    try:
        out = augmentation(first)
    finally:
        stop_recording(augmentation)
    expected = again(second, found[0], augmentation)
    rows, place = found[0].rows, augmentation.place
    check_rows(target, request, augmentation, rows)
    worst = distance(expected, out)
    if worst > tolerance:
        raise VerificationError(
            f"'{target}': its rows differ by {worst:.2g} (relative) from those of {name} with the same draws."
        )
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
    mine, theirs = (
        torch.autograd.grad((o * weight).sum() + 0 * i.sum(), i)[0]
        for o, i in ((out, first), (expected, second))
    )
    worst = distance(theirs, mine)
    if worst > tolerance:
        raise VerificationError(
            f"'{target}': the gradient differs by {worst:.2g} (relative) from that of {name} with the same draws."
        )
    if not augmentation.transform.needs.new_tokens:
        _check_others(target, out, value, slices(~rows, value, place), place.dim)
    if request.stop_grad and bool(mine.index_select(place.dim, slices(rows, value, place)).any()):
        raise VerificationError(
            f"'{target}': stop_grad is on, but gradient of augmented rows passes the cut."
        )
    _check_declared(target, augmentation, value)
    if said := none_augmented(augmentation, len(rows)):
        yield f"'{target}': {said}; nothing else of it could be seen"
        return
    count = f"{int(rows.sum())} of {len(rows)}"
    yield f"'{target}': {count} rows augmented, by {name} with the same draws, other rows untouched"
    if request.stop_grad:
        yield f"'{target}': no gradient of augmented rows below the cut"


def _check_others(target: Target, out: Tensor, value: Tensor, index: Tensor, dim: int) -> None:
    if not torch.equal(out.index_select(dim, index), value.index_select(dim, index)):
        raise VerificationError(f"'{target}': rows that are not augmented are changed.")


def _check_declared(target: Target, augmentation: Transformed, value: Tensor) -> None:
    """Of a transform that says that rows do not meet: with the draws as they are, does one depend on the others?"""
    transform = augmentation.transform
    rows = augmentation.place.samples(value)
    if transform.needs.rows_meet or len(rows) < 2:
        return
    draws = transform.draw(rows, augmentation._context(None, len(rows), lambda: rows))
    # other rows, of the same size: those of the batch in another order, and doubled
    others = torch.cat([rows[:1], 2 * rows[1:].flip(0)]).requires_grad_()
    first, second = transform(rows, draws), transform(others, draws)
    name = type(transform).__name__
    if not torch.equal(first[0], second[0]):
        raise VerificationError(
            f"'{target}': a row of {name} depends on other rows, which its `needs` does not say: "
            "Needs(partners=True) or Needs(statistics=True)."
        )
    if second.requires_grad:
        (slope,) = torch.autograd.grad(second[0].sum(), others, allow_unused=True)
        if slope is not None and bool(slope[1:].any()):
            raise VerificationError(
                f"'{target}': the gradient of a row of {name} reaches other rows, which its `needs` does not say: "
                "Needs(partners=True, gradient=True)."
            )
