"""A view of one image whose parameters are plain numbers: what a CPU does fastest with large images.

The operations on batches in `image_ops` give every sample every operation, as no step may branch on data there. Here
each image takes only what was drawn for it: its crop is a slice, and an operation that would change nothing is left
out. The results are the same to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graphaug.vision.views import image_ops
from graphaug.vision.views.image_ops import gaussian_blur, rgb_to_gray, rotate_hue, unit_range

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The operations of colour jitter by their numbers in an order."""


def view(
    image: Tensor,
    size: int,
    kernel_size: int,
    threshold: float,
    *,
    top: float,
    left: float,
    height: float,
    width: float,
    flip: bool,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    order: list[int],
    gray: bool,
    sigma: float,
    solarize: bool,
) -> Tensor:
    """One view of a ``(C, H, W)`` image, not yet normalised: ``(1, C, size, size)`` in [0, 1].

    Args:
        image: uint8, or floating in [0, 1].
        size: height and width of the view.
        kernel_size: of the blur in pixels, odd.
        threshold: values from it up are inverted by solarize.
        top, left, height, width, flip, brightness, contrast, saturation, hue, order, gray, sigma, solarize: what was
            drawn for it, as `ViewParams` has it for a batch.

    """
    x = crop(image, int(top), int(left), int(height), int(width), size)
    x = x.flip(3) if flip else x
    x = colour_jitter(x, (brightness, contrast, saturation), hue, order)
    if gray and x.shape[1] == 3:
        x = rgb_to_gray(x).expand_as(x)
    if sigma:
        x = gaussian_blur(x, x.new_tensor([sigma]), kernel_size)
    return image_ops.solarize(x, threshold) if solarize else x


def crop(image: Tensor, top: int, left: int, height: int, width: int, size: int) -> Tensor:
    """A crop of a ``(C, H, W)`` image, resized (bilinear, antialiased): ``(1, C, size, size)`` in [0, 1]."""
    cut = unit_range(image[None, :, top : top + height, left : left + width])
    return F.interpolate(cut, (size, size), mode="bilinear", align_corners=False, antialias=True)


def colour_jitter(x: Tensor, factors: tuple[float, float, float], hue: float, order: list[int]) -> Tensor:
    """Brightness, contrast, saturation (factors, 1 for none) and hue (turns, 0 for none) in an order.

    Args:
        x: ``(1, C, H, W)``; of one-channel images saturation and hue are left alone.
        factors: of brightness, contrast and saturation.
        hue: the shift in turns.
        order: a permutation of 0 to 3.

    """
    for op in order:
        if op == HUE:
            x = rotate_hue(x, hue) if hue and x.shape[1] == 3 else x
        elif factors[op] != 1 and (x.shape[1] == 3 or op != SATURATION):
            x = _blend(x, op, factors[op])
    return x


def _blend(x: Tensor, op: int, factor: float) -> Tensor:
    if op == BRIGHTNESS:
        return (x * factor).clamp_(0, 1)
    gray = rgb_to_gray(x)
    reference = gray.mean() if op == CONTRAST else gray
    return torch.lerp(reference.expand_as(x), x, factor).clamp_(0, 1)
