"""One augmentation fed with ones: every entry and every gradient tells what was done to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.augment.deep_augment import DeepAugment, noise_shape
from graphaug.augment.site import Augmentation, none_augmented
from graphaug.capture.target import Target
from graphaug.errors import VerificationError
from graphaug.proof.on_a_batch.outputs import first_tensor
from graphaug.proof.on_a_batch.recorded import slices
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.plan import Request

_SCALE_TOLERANCE = 1e-2  # of the mean factor: float16 and bfloat16 round 1/(1-rate)


def probe(
    target: Target, augmentation: DeepAugment, aug: AugmentedModule, call: Callable[[nn.Module], Any]
) -> Iterator[str]:
    """Run one node alone on ones, and check it against its closed form.

    Raises:
        VerificationError: rows, factors, rate or gradients are not what the plan says.
    """
    value = value_at(augmentation, aug, call)
    request = next(s.request for s in aug.plan.sites if s.request.target == target)
    ones = torch.ones_like(value, dtype=torch.float64 if value.device.type == "cpu" else value.dtype)
    ones.requires_grad_(True)
    out = augmentation(ones)
    (gradient,) = torch.autograd.grad(out.sum() + 0 * ones.sum(), ones)
    place = augmentation.place
    rows = place.count(ones.shape)
    own = [slices(torch.arange(rows) == row, ones, place) for row in range(rows)]
    flat, slope = ([t.index_select(place.dim, i).flatten() for i in own] for t in (out.detach(), gradient))
    found = [not bool((a == 1).all() and (b == 1).all()) for a, b in zip(flat, slope, strict=True)]
    changed = torch.tensor(found)
    flat, slope = ([t for t, c in zip(ts, found, strict=True) if c] for ts in (flat, slope))

    visible = _scale(augmentation) != 1 or request.stop_grad
    # whatever a row keeps is scaled, so that one that keeps all of it shows as well, unless the factor is 1
    check_rows(target, request, augmentation, changed, visible)
    entries = torch.cat([ones.new_zeros(0), *flat])
    of_changed = sum(len(i) for i, c in zip(own, found, strict=True) if c)
    _check_factors(target, augmentation, entries, _decisions(augmentation, value, of_changed))
    _check_gradient(target, request, slope, flat)
    subset = augmentation._subset
    if said := none_augmented(augmentation, rows):
        yield f"'{target}': {said}; nothing else of it could be seen"
        return
    count = f"{augmentation._exactly(rows)} of {rows}"
    if request.sampling != "exact":
        count = f"each of {rows} with probability {subset:g}"
    rate = augmentation._rate
    yield f"'{target}': {count} rows augmented, dropout at rate {rate:g} with its scale, other rows untouched"
    if request.stop_grad:
        yield f"'{target}': no gradient of augmented rows below the cut"


def check_rows(
    target: Target, request: Request, augmentation: Augmentation, changed: Tensor, visible: bool = True
) -> None:
    """Check how many rows were augmented, and in which half.

    Args:
        target: the site.
        request: its options.
        augmentation: its node.
        changed: which rows were augmented, or are seen to be.
        visible: whether every augmented row is seen.

    Raises:
        VerificationError: others than planned.
    """
    subset, rows = augmentation._subset, len(changed)
    planned, found = augmentation._exactly(rows), int(changed.sum())
    if request.sampling == "exact" and visible and found != planned:
        raise VerificationError(
            f"'{target}': {found} of {rows} rows are augmented, planned were {planned} (subset {subset:g})."
        )
    if request.pairing == "one-sided" and bool(changed[rows // 2 :].any()):
        raise VerificationError(
            f"'{target}': rows of the second view are augmented despite pairing='one-sided'."
        )
    together = request.pairing == "together" and visible and rows > 1
    if together and bool(changed.view(augmentation.copies, -1).diff(dim=0).any()):
        raise VerificationError(
            f"'{target}': a row is augmented in one view and not in another despite pairing='together'."
        )


def _scale(augmentation: DeepAugment) -> float:
    """What a kept unit is multiplied with; 1 also at rates so small that they vanish beside 1."""
    rate = augmentation._rate
    return 0.0 if rate == 1 else 1 / (1 - rate)


def _check_factors(target: Target, augmentation: DeepAugment, entries: Tensor, decisions: int) -> None:
    rate = augmentation._rate
    scale = _scale(augmentation)
    legal = (entries == 0) | ((entries - scale).abs() <= _SCALE_TOLERANCE * max(scale, 1))
    if not bool(legal.all()):
        wrong = float(entries[~legal][0])
        raise VerificationError(
            f"'{target}': an augmented unit of value 1 became {wrong:.4g}; dropout at rate {rate:g} gives 0 or "
            f"{scale:.4g} (inverted scaling)."
        )
    if entries.numel():
        kept = (entries != 0).double().mean().item()
        spread = 6 * max((rate * (1 - rate) / decisions) ** 0.5, 1e-12)
        if abs(kept - (1 - rate)) > spread:
            raise VerificationError(
                f"'{target}': {1 - kept:.1%} of the units are dropped, the rate is {rate:.1%}."
            )


def _check_gradient(target: Target, request: Request, slope: list[Tensor], entries: list[Tensor]) -> None:
    """``slope`` and ``entries``: gradient and value of every augmented row, flat."""
    if request.stop_grad:
        passing = sum(bool((s != 0).any()) for s in slope)
        if passing:
            raise VerificationError(
                f"'{target}': stop_grad is on, but gradient of augmented rows passes the cut "
                f"({passing} of {len(slope)} rows)."
            )
    elif not all(map(torch.equal, slope, entries)):
        raise VerificationError(
            f"'{target}': the gradient of the augmented rows is not that of their dropout."
        )


def _decisions(augmentation: DeepAugment, value: Tensor, slices_of_rows: int) -> int:
    place = augmentation.place
    shape = noise_shape(tuple(value.shape), augmentation.granularity, place.dim)
    return max(slices_of_rows * int(torch.Size(shape).numel()) // max(shape[place.dim], 1), 1)


def value_at(augmentation: Augmentation, aug: AugmentedModule, call: Callable[[nn.Module], Any]) -> Tensor:
    """The value that enters an augmentation on this batch."""
    seen: list[Tensor] = []
    handle = augmentation.register_forward_pre_hook(lambda _, args: seen.append(first_tensor(args[0])))
    try:
        try:
            with torch.no_grad():
                call(aug)
        except Exception:  # the graph may be one of a model with gradients, as where it hooks them
            seen.clear()
            with torch.enable_grad():
                call(aug)
    finally:
        handle.remove()
    if not seen:
        raise VerificationError("an augmentation of the plan is never called: the graph was edited.")
    return seen[0].detach()
