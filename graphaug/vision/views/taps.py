"""Resizing and blurring one image as sparse products: each row made is a weighted sum of the few rows it sees.

A product with the matrix of a whole axis would be nearly all zeros. Here a row's *taps*, the rows that it is made of
and their weights, are gathered and summed in one pass (``embedding_bag``, which is a sparse times a dense matrix). The
other axis is done on the transposed image, so that what is gathered is always a whole row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMAS = 6.0
"""How many standard deviations of a Gaussian are summed: what lies beyond is below the rounding of float32."""


class Taps(NamedTuple):
    """The T rows that each of n new ones is made of, and their weights, ``(…, n, T)``.

    What leads is the channels of an image, one below the other, or the images of a batch.
    """

    source: Tensor
    weight: Tensor


def tap_count(pixels: float, out_size: int) -> int:
    """Of how many pixels a new one is made at most: two, and more where an axis is shrunk."""
    return math.ceil(2 * max(1.0, pixels / out_size))


def filter_taps(extent: Tensor, out_size: int, flip: Tensor, count: int, unit: float = 1.0) -> Taps:
    """The bilinear, antialiased resize of one axis of each of B crops: the rows of ``image_ops.resize_matrix``.

    Args:
        extent: ``(B,)`` pixels in the crop.
        out_size: pixels of the result along this axis.
        flip: ``(B,)`` whether the result is in reverse order.
        count: of taps; see `tap_count`.
        unit: what the weights of a row sum to.

    Returns:
        ``(B, out_size, count)`` whole numbers in float32, counted from the crop's first pixel; those outside of the
        crop are its nearest, with the weight 0.

    """
    extent, flip = extent[:, None, None].float(), flip[:, None, None]
    scale = extent / out_size
    support = scale.clamp(min=1)
    made = torch.arange(out_size, device=extent.device)[:, None]
    centre = (torch.where(flip, out_size - 1 - made, made) + 0.5) * scale
    # An open interval of 2·support pixels' width around the centre holds as many centres of pixels as are counted.
    pixel = (centre - support + 0.5).floor() + torch.arange(count, device=extent.device)
    weight = (1 - (pixel + 0.5 - centre).abs_() / support).clamp_(min=0)
    weight.masked_fill_((pixel < 0).logical_or_(pixel >= extent), 0)
    weight *= unit / weight.sum(-1, keepdim=True)
    return Taps(torch.minimum(pixel.clamp_(min=0), extent - 1), weight)


def resize_taps(extent: Tensor, out_size: int, flip: Tensor, channels: int, unit: float = 1.0) -> list[Taps]:
    """`filter_taps` for `combine_rows`.

    Args:
        extent, out_size, flip: as there.
        channels: of the images.
        unit: what the weights of a row sum to.

    Returns:
        For each crop the taps of its new rows, as few as it needs.

    """
    counts = [tap_count(pixels, out_size) for pixels in extent.tolist()]
    source, weight = filter_taps(extent, out_size, flip, max(counts), unit)
    index, extent = source.int()[:, None], extent[:, None, None]
    index = index + torch.arange(channels, dtype=torch.int32)[:, None, None] * extent.int()[:, None]
    weight = weight[:, None].expand(index.shape).contiguous()
    if len(set(counts)) == 1:
        return [Taps(*each) for each in zip(index, weight, strict=True)]
    return [Taps(i[..., :n], w[..., :n]) for i, w, n in zip(index, weight, counts, strict=True)]


def blur_taps(sigma: float, kernel_size: int, size: int, channels: int) -> Taps:
    """A Gaussian of ``sigma`` pixels over ``kernel_size`` (odd), reflecting at the edges, on an axis of ``size``."""
    radius = min(kernel_size // 2, math.ceil(SIGMAS * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.int32)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp_()
    kernel /= kernel.sum()
    index = (torch.arange(size, dtype=torch.int32)[:, None] + offsets).abs_()
    index = torch.minimum(index, 2 * (size - 1) - index)
    index = index + torch.arange(0, channels * size, size, dtype=torch.int32)[:, None, None]
    return Taps(index, kernel.expand(index.shape))


def combine_rows(x: Tensor, taps: Taps) -> Tensor:
    """Make n new rows of each channel of ``(C, H, W)``, contiguous: ``(C, n, W)``."""
    index, weight = (each.reshape(-1, each.shape[2]) for each in taps)
    rows = F.embedding_bag(index, x.view(-1, x.shape[2]), mode="sum", per_sample_weights=weight)
    return rows.view(len(x), -1, x.shape[2])
