"""A view of one image whose parameters are plain numbers: what a CPU does fastest with large images.

The operations on batches in `image_ops` give every sample every operation, as no step may branch on data there. Here
each image takes only what was drawn for it, in place and in the cache: its crop is a slice, and an operation that would
change nothing is left out. The results are the same to rounding.

An image is worked on lying on its side, ``(C, W, H)``, between its crop, which leaves it so, and the blur or the end,
which turns it back: colours do not mind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphaug.vision.views import image_ops
from graphaug.vision.views.image_ops import BRIGHTNESS, CONTRAST, HUE, SATURATION, rgb_to_gray
from graphaug.vision.views.taps import Taps, blur_taps, combine_rows


def view(
    image: Tensor, rows: Taps, columns: Taps, drawn: dict[str, Any], kernel_size: int, threshold: float
) -> Tensor:
    """One view of a ``(C, H, W)`` image, not yet normalised: ``(C, size, size)`` in [0, 1], of any strides.

    Args:
        image: uint8, or floating in [0, 1].
        rows, columns: the crop's taps of both axes, the flip among them.
        drawn: what was drawn for it, as `ViewParams.rows` has it.
        kernel_size: of the blur in pixels, odd.
        threshold: values from it up are inverted by solarize.

    """
    top, left, height, width = (int(drawn[name]) for name in ("top", "left", "height", "width"))
    x = crop(image[:, top : top + height, left : left + width], rows, columns)
    factors = (drawn["brightness"], drawn["contrast"], drawn["saturation"])
    colour_jitter(x, factors, drawn["hue"], drawn["order"])
    if drawn["gray"] and len(x) == 3:
        x = rgb_to_gray(x[None])[0]  # one channel, and shown as three below
    x = blur(x, drawn["sigma"], kernel_size) if drawn["sigma"] else x.mT.contiguous()
    x = image_ops.solarize(x, threshold) if drawn["solarize"] else x
    return x.expand(len(image), -1, -1)


def crop(cut: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """What was cut out, ``(C, H, W)``, resized to ``(h, w)`` pixels by its taps and turned: ``(C, w, h)``."""
    return combine_rows(combine_rows(cut.float().contiguous(), rows).mT.contiguous(), columns)


def blur(x: Tensor, sigma: float, kernel_size: int) -> Tensor:
    """Blur a square ``(C, W, H)`` with a Gaussian of ``sigma`` pixels and turn it: ``(C, H, W)``."""
    taps = blur_taps(sigma, kernel_size, x.shape[1], len(x))
    return combine_rows(combine_rows(x, taps).mT.contiguous(), taps)


def colour_jitter(x: Tensor, factors: tuple[float, float, float], hue: float, order: list[int]) -> None:
    """Brightness, contrast, saturation (factors, 1 for none) and hue (turns, 0 for none) in an order, in place.

    Args:
        x: ``(C, W, H)``; of one-channel images saturation and hue are left alone.
        factors: of brightness, contrast and saturation.
        hue: the shift in turns.
        order: a permutation of 0 to 3.

    """
    for op in order:
        if op == HUE:
            if hue and len(x) == 3:
                rotate_hue(x, hue)
        elif factors[op] != 1 and (len(x) == 3 or op != SATURATION):
            blend(x, op, factors[op])


def blend(x: Tensor, op: int, factor: float) -> None:
    """Brightness, contrast or saturation of ``(C, W, H)`` in place."""
    if op == BRIGHTNESS:
        x.mul_(factor)
    elif op == CONTRAST:  # the mean gray value is the gray value of the means
        mean = x.mean((1, 2))
        gray = rgb_to_gray(mean.view(1, -1, 1, 1)).view(())
        torch.lerp(gray, x, factor, out=x)
    else:
        torch.lerp(rgb_to_gray(x[None])[0], x, factor, out=x)
    if factor > 1:  # else it is between two values in [0, 1]
        x.clamp_(0, 1)


def rotate_hue(x: Tensor, shift: float) -> None:
    """What `image_ops.rotate_hue` explains, of ``(3, W, H)`` in place: in half of its time, as its memory is warm."""
    red, green, blue = x.unbind()
    value, least = torch.maximum(green, blue), torch.minimum(green, blue)
    torch.maximum(red, value, out=value)
    torch.minimum(red, least, out=least)
    chroma = value - least
    away = (green + blue).sub_(red).add_(value).sub_(least, alpha=2)
    hue = away.copysign_(torch.sub(green, blue, out=red)).add_(chroma, alpha=6 * shift)
    torch.add(hue, chroma, out=green).abs_().sub_(chroma, alpha=3).abs_()
    torch.sub(hue, chroma, out=blue).abs_().sub_(chroma, alpha=3).abs_()
    torch.sub(hue.abs_().sub_(chroma, alpha=3).abs_(), chroma, out=red).add_(least)
    high = chroma.add_(value)
    torch.sub(high, green, out=green)
    torch.sub(high, blue, out=blue)
    for channel in (red, green, blue):
        torch.clamp(channel, least, value, out=channel)
