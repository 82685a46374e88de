"""Image operations with parameters per sample; each equals torchvision's functional on float tensors.

Images are ``(B, C, H, W)`` floating in [0, 1]; parameters have B rows. Nothing here is random or branches on data.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graphaug.errors import BatchError

HUE = 3
"""The number of the hue shift among the operations of colour jitter; 0 to 2 are the blends of ``tone``."""

LUMA = (0.2989, 0.587, 0.114)
"""torchvision's weights of red, green and blue in a gray value."""


def unit_range(images: Tensor) -> Tensor:
    """``(B, C, H, W)`` uint8 or floating images as float32 in [0, 1]; raises ``BatchError`` on anything else."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise BatchError(f"images of shape (B, 1 or 3, H, W) are needed, not {tuple(images.shape)}.")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.dtype.is_floating_point:
        raise BatchError(f"images are uint8, or floating in [0, 1]; not {images.dtype}.")
    return images.float()


def resize_matrix(start: Tensor, extent: Tensor, in_size: int, out_size: int) -> Tensor:
    """The crop and bilinear, antialiased resize of one axis as a matrix.

    The triangle filter widens with the scale when it shrinks, and its weights are cut at the crop's edges and
    normalised, which is what torch's ``interpolate(..., antialias=True, align_corners=False)`` does on the crop.

    Args:
        start: ``(B,)`` first pixel of the crop.
        extent: ``(B,)`` pixels in the crop.
        in_size: pixels of the image along this axis.
        out_size: pixels of the result along this axis.

    Returns:
        ``(B, out_size, in_size)``; each row sums to 1.

    """
    start, extent = start[:, None, None].float(), extent[:, None, None].float()
    scale = extent / out_size
    centre = (torch.arange(out_size, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(in_size, device=start.device) + 0.5 - start
    weight = (1 - (pixel - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weight = weight * ((pixel > 0) & (pixel < extent))
    return weight / weight.sum(-1, keepdim=True)


def rgb_to_gray(x: Tensor) -> Tensor:
    """Luma of ``(B, 3, H, W)`` as ``(B, 1, H, W)``; a one-channel image is its own."""
    if x.shape[1] == 1:
        return x
    return (LUMA[0] * x[:, 0] + LUMA[1] * x[:, 1] + LUMA[2] * x[:, 2]).unsqueeze(1)


def tone(x: Tensor, op: Tensor, factor: Tensor) -> Tensor:
    """Apply to each sample one of the three blends of colour jitter.

    Brightness (``op`` 0), contrast (1) and saturation (2) are one formula, ``factor·x + (1-factor)·reference`` clamped
    to [0, 1], with black, the mean gray value or the gray image as reference. A factor of 1 changes nothing.

    Args:
        x: ``(B, C, H, W)``.
        op: ``(B,)`` which blend.
        factor: ``(B,)`` at least 0.

    """
    op, factor = op[:, None, None, None], factor[:, None, None, None]
    gray = rgb_to_gray(x)
    reference = torch.where(op == 1, gray.mean((1, 2, 3), keepdim=True), gray) * (op > 0)
    return (factor * x + (1 - factor) * reference).clamp(0, 1)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of ``(B, 3, H, W)`` by ``shift`` turns, ``(B,)``; a shift of 0 is exactly the identity.

    With value ``v``, chroma ``c`` and hue ``h`` in sixths of a turn, a channel is ``v - c·clamp(min(k, 4-k), 0, 1)``
    with ``k = (n + h) mod 6`` and n = 5, 3, 1 for red, green, blue: the usual six cases of HSV in one line.
    """
    shift = shift[:, None, None]
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = hue + 6 * shift
    channels = []
    for n in (5, 3, 1):
        k = torch.remainder(hue + n, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.where(shift[:, None] == 0, x, torch.stack(channels, 1))


def colour_jitter(
    x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, order: Tensor
) -> Tensor:
    """Colour jitter, every sample in its own order.

    Only hue is expensive, so it runs once: the blends that come before it in a sample's order run before it, the
    others after it, and a blend whose turn it is not has the factor 1.

    Args:
        x: ``(B, C, H, W)``; of one-channel images saturation and hue are left alone.
        brightness, contrast, saturation: ``(B,)`` factors, 1 for none.
        hue: ``(B,)`` shifts in turns, 0 for none.
        order: ``(B, 4)`` permutations of 0 to 3: brightness, contrast, saturation, hue.

    """
    colour = x.shape[1] == 3
    saturation = saturation if colour else torch.ones_like(saturation)
    factors = torch.stack([brightness, contrast, saturation, torch.ones_like(saturation)], dim=1)
    hue_slot = (order == HUE).float().argmax(1)

    def blend(x: Tensor, slot: int, turn: Tensor) -> Tensor:
        op = order[:, slot]
        factor = torch.where(turn, factors.gather(1, op[:, None])[:, 0], 1.0)
        return tone(x, op, factor)

    if not colour:
        for slot in range(4):
            x = blend(x, slot, hue_slot != slot)
        return x
    for slot in range(3):
        x = blend(x, slot, slot < hue_slot)
    x = shift_hue(x, hue)
    for slot in range(1, 4):
        x = blend(x, slot, slot > hue_slot)
    return x


def gaussian_blur(x: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur with a Gaussian of ``sigma`` pixels, ``(B,)``, over ``kernel_size`` (odd) pixels, reflecting at the edges.

    A sigma of 0 is the identity. Both axes are matrix products, as the kernel differs from sample to sample.
    """
    radius = kernel_size // 2
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    safe = torch.where(sigma > 0, sigma, 1.0)
    kernel = (-0.5 * (offsets / safe[:, None]) ** 2).exp()
    kernel = kernel / kernel.sum(1, keepdim=True)

    def matrix(size: int) -> Tensor:
        source = torch.arange(size, device=x.device)[:, None] + offsets
        source = (size - 1) - (source.abs() - (size - 1)).abs()  # reflection without repeating the edge
        hits = F.one_hot(source, size).to(kernel.dtype)
        return torch.einsum("bk,okp->bop", kernel, hits)

    blurred = matrix(x.shape[2])[:, None] @ x @ matrix(x.shape[3]).mT[:, None]
    return torch.where(sigma[:, None, None, None] > 0, blurred, x)


def solarize(x: Tensor, threshold: float) -> Tensor:
    """Invert the values from ``threshold`` up."""
    return torch.where(x >= threshold, 1 - x, x)
