"""The steps of a batch of views as a compiler for a GPU does them in a few passes over memory.

There a pass over the batch costs what it reads and writes, and reckoning costs nothing. So nothing is made on the way
that has to be written: a pixel of a crop is looked up where it comes from, and of colour jitter only contrast, whose
gray value is a mean over the image, ends a pass. The results are those of `image_ops` to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphaug.vision.views.image_ops import BRIGHTNESS, CONTRAST, HUE, LUMA, SATURATION, turned
from graphaug.vision.views.params import ViewParams
from graphaug.vision.views.taps import Taps, filter_taps, tap_count

MOST_TAPS = 6
"""Up to how many pixels of an axis make one of a crop here; with more, the product with a matrix is the faster."""

Planes = tuple[Tensor, ...]
"""The channels of a batch, each ``(B, h, w)`` in [0, 1]."""


def suits(images: Tensor, size: int) -> bool:
    """Whether a compiler for a GPU is at work, and crops to ``size`` have few enough taps to be looked up."""
    if not torch.compiler.is_compiling() or images.device.type == "cpu" or images.requires_grad:
        return False
    return max(tap_count(side, size) for side in images.shape[2:]) <= MOST_TAPS


def coloured_crops(
    images: Tensor, params: ViewParams, size: int, n_views: int, *, jitter: bool, gray: bool
) -> Tensor:
    """``n_views`` crops of each of ``(B, C, H, W)`` images, their colours done: ``(n_views·B, C, size, size)``."""
    x = crop(images, params, size, n_views)
    x = colour_jitter(x, params) if jitter else x
    x = grayscale(x, params) if gray else x
    return torch.stack(x, dim=1)


def crop(images: Tensor, params: ViewParams, size: int, n_views: int) -> Planes:
    """Resample crops of ``(B, C, H, W)`` images, uint8 or floating, and flip them where that was drawn."""
    count, channels, height, width = images.shape
    image = torch.arange(n_views * count, device=images.device)[:, None, None] % count
    unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
    rows = _taps(params.top, params.height, torch.zeros_like(params.flip), height, size, unit)
    columns = _taps(params.left, params.width, params.flip, width, size)
    down, across = rows.source[:, :, None], columns.source[:, None]

    def plane(channel: int) -> Tensor:
        total = torch.zeros((), device=images.device)
        for i in range(rows.source.shape[2]):
            line = torch.zeros((), device=images.device)
            for j in range(columns.source.shape[2]):
                pixel = images[image, channel, down[..., i], across[..., j]].float()
                line = line + pixel * columns.weight[:, None, :, j]
            total = total + line * rows.weight[:, :, None, i]
        return total

    return tuple(plane(channel) for channel in range(channels))


def _taps(start: Tensor, extent: Tensor, flip: Tensor, in_size: int, size: int, unit: float = 1.0) -> Taps:
    """The pixels of an axis of the images that each of a view's is made of, ``(B, size, T)``."""
    source, weight = filter_taps(extent, size, flip, tap_count(in_size, size), unit)
    # The bounds are known to hold; saying them spares the check of every look-up.
    return Taps((source + start[:, None, None]).long().clamp(0, in_size - 1), weight)


def colour_jitter(x: Planes, params: ViewParams) -> Planes:
    """Colour jitter, every sample in its own order: what comes before contrast, contrast, and what comes after it.

    On either side of contrast stand at most two blends before hue, and two after it.
    """
    contrast, hue = ((params.order == op).float().argmax(1) for op in (CONTRAST, HUE))
    for slot in (0, 1):
        x = _blend(x, params, slot, (slot < contrast) & (slot < hue))
    x = _shift_hue(x, params, hue < contrast)
    for slot in (1, 2):
        x = _blend(x, params, slot, (slot < contrast) & (slot > hue))
    mean = luma(x).mean((1, 2), keepdim=True)
    x = _mix(x, mean, params.contrast)
    for slot in (1, 2):
        x = _blend(x, params, slot, (slot > contrast) & (slot < hue))
    x = _shift_hue(x, params, hue > contrast)
    for slot in (2, 3):
        x = _blend(x, params, slot, (slot > contrast) & (slot > hue))
    return x


def luma(x: Planes) -> Tensor:
    """Luma, ``(B, h, w)``; a single channel is its own."""
    return x[0] if len(x) == 1 else LUMA[0] * x[0] + LUMA[1] * x[1] + LUMA[2] * x[2]


def grayscale(x: Planes, params: ViewParams) -> Planes:
    """Every channel the luma, where that was drawn; a single channel is left alone."""
    value, drawn = luma(x), params.gray[:, None, None]
    return tuple(torch.where(drawn, value, plane) for plane in x)


def _blend(x: Planes, params: ViewParams, slot: int, turn: Tensor) -> Planes:
    """Brightness or saturation, where one of them stands at this place of a sample's order and it is its turn."""
    op = torch.where(turn, params.order[:, slot], CONTRAST)
    x = _mix(x, 0.0, torch.where(op == BRIGHTNESS, params.brightness, 1.0))
    return x if len(x) == 1 else _mix(x, luma(x), torch.where(op == SATURATION, params.saturation, 1.0))


def _mix(x: Planes, reference: Tensor | float, factor: Tensor) -> Planes:
    """``factor·x + (1-factor)·reference`` in [0, 1]; a factor of 1 changes nothing."""
    factor = factor[:, None, None]
    rest = (1 - factor) * reference
    return tuple((factor * plane + rest).clamp(0, 1) for plane in x)


def _shift_hue(x: Planes, params: ViewParams, turn: Tensor) -> Planes:
    if len(x) == 1:
        return x
    shift = torch.where(turn, params.hue, 0.0)[:, None, None]
    made = turned(x[0], x[1], x[2], shift)
    return tuple(torch.where(shift != 0, m, plane) for m, plane in zip(made, x, strict=True))
