"""The steps of a batch of views as a compiler for a GPU does them in a few passes over memory.

There a pass over the batch costs what it reads and writes, and reckoning costs nothing. So nothing is made on the way
that has to be written: a pixel of a crop is looked up where it comes from, and of colour jitter only contrast, whose
gray value is a mean over the image, ends a pass. The results are those of `image_ops` to rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from graphaug.vision.views.image_ops import HUE, LUMA, turned
from graphaug.vision.views.params import ViewParams

MOST_TAPS = 6
"""Up to how many pixels of an axis make one of a crop here; with more, the product with a matrix is the faster."""

BRIGHTNESS, CONTRAST, SATURATION = range(3)

Planes = tuple[Tensor, ...]
"""The channels of a batch, each ``(B, h, w)`` in [0, 1]."""


class Taps(NamedTuple):
    """``(B, n, T)``: the T pixels of an axis that each of n new ones is made of, and their weights."""

    source: Tensor
    weight: Tensor


def tap_count(in_size: int, out_size: int) -> int:
    """How many pixels of an axis make a new one at most: two, and more where an image is shrunk."""
    return math.ceil(2 * max(1.0, in_size / out_size))


def resize_taps(start: Tensor, extent: Tensor, flip: Tensor, in_size: int, out_size: int) -> Taps:
    """The rows of ``image_ops.resize_matrix`` without their zeros; where ``flip``, ``(B,)``, in reverse order."""
    start, extent, flip = start[:, None, None].float(), extent[:, None, None].float(), flip[:, None, None]
    scale = extent / out_size
    support = scale.clamp(min=1)
    made = torch.arange(out_size, device=start.device)[:, None]
    centre = (torch.where(flip, out_size - 1 - made, made) + 0.5) * scale
    # An open interval of 2·support pixels' width around the centre holds as many centres of pixels as are counted.
    pixel = (centre - support + 0.5).floor() + torch.arange(tap_count(in_size, out_size), device=start.device)
    weight = (1 - (pixel + 0.5 - centre).abs() / support).clamp(min=0)
    weight = weight * ((pixel >= 0) & (pixel < extent))
    source = torch.minimum(pixel.clamp(min=0), extent - 1) + start
    return Taps(source.long(), weight / weight.sum(-1, keepdim=True))


def crop(images: Tensor, rows: Taps, columns: Taps, n_views: int) -> Planes:
    """Resample ``n_views`` crops of each of ``(B, C, H, W)`` images, uint8 or floating, by the taps of both axes."""
    count, channels, height, width = images.shape
    image = torch.arange(n_views * count, device=images.device)[:, None, None] % count
    # The bounds are known to hold; saying them spares the check of every look-up.
    down = rows.source.clamp(0, height - 1)[:, :, None]
    across = columns.source.clamp(0, width - 1)[:, None]

    def plane(channel: int) -> Tensor:
        total = None
        for i in range(rows.source.shape[2]):
            line = None
            for j in range(columns.source.shape[2]):
                pixel = images[image, channel, down[..., i], across[..., j]].float()
                term = pixel * columns.weight[:, None, :, j]
                line = term if line is None else line + term
            assert line is not None
            line = line * rows.weight[:, :, None, i]
            total = line if total is None else total + line
        assert total is not None
        return total / 255 if images.dtype == torch.uint8 else total

    return tuple(plane(channel) for channel in range(channels))


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
    mean = gray(x).mean((1, 2), keepdim=True)
    x = _mix(x, mean, params.contrast)
    for slot in (1, 2):
        x = _blend(x, params, slot, (slot > contrast) & (slot < hue))
    x = _shift_hue(x, params, hue > contrast)
    for slot in (2, 3):
        x = _blend(x, params, slot, (slot > contrast) & (slot > hue))
    return x


def gray(x: Planes) -> Tensor:
    """Luma, ``(B, h, w)``; a single channel is its own."""
    return x[0] if len(x) == 1 else LUMA[0] * x[0] + LUMA[1] * x[1] + LUMA[2] * x[2]


def _blend(x: Planes, params: ViewParams, slot: int, turn: Tensor) -> Planes:
    """Brightness or saturation, where one of them stands at this place of a sample's order and it is its turn."""
    op = torch.where(turn, params.order[:, slot], CONTRAST)
    x = _mix(x, 0.0, torch.where(op == BRIGHTNESS, params.brightness, 1.0))
    return x if len(x) == 1 else _mix(x, gray(x), torch.where(op == SATURATION, params.saturation, 1.0))


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
