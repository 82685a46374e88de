"""Image operations with parameters per sample; each equals torchvision's functional on float tensors.

Images are ``(B, C, H, W)`` floating in [0, 1]; parameters have B rows. Nothing here is random or branches on data.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graphaug.errors import BatchError

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The operations of colour jitter by their numbers in an order; the first three are the blends of ``tone``."""

BLOCK = 32
"""How many pixels of a row a blur makes at once."""

LUMA = (0.2989, 0.587, 0.114)
"""torchvision's weights of red, green and blue in a gray value."""


def check_images(images: Tensor) -> None:
    """Raise ``BatchError`` unless these are ``(B, 1 or 3, H, W)`` uint8 or floating images."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise BatchError(f"images of shape (B, 1 or 3, H, W) are needed, not {tuple(images.shape)}.")
    if images.dtype != torch.uint8 and not images.dtype.is_floating_point:
        raise BatchError(f"images are uint8, or floating in [0, 1]; not {images.dtype}.")


def unit_range(images: Tensor) -> Tensor:
    """``(B, C, H, W)`` uint8 or floating images as float32 in [0, 1]; raises ``BatchError`` on anything else."""
    check_images(images)
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


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


def resample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resample ``(B, C, H, W)`` by a matrix for each axis, ``(B, h, H)`` and ``(B, w, W)``: ``(B, C, h, w)``."""
    across = x.flatten(1, 2) @ columns.mT  # one product an image: its channels share the matrix
    return rows[:, None] @ across.view(*x.shape[:3], -1)


def rgb_to_gray(x: Tensor) -> Tensor:
    """Luma of ``(B, 3, H, W)`` as ``(B, 1, H, W)``; a one-channel image is its own."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.chunk(3, dim=1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


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
    level = gray.mean((1, 2, 3), keepdim=True) * (op == 1)
    reference = torch.addcmul(level, gray, (op == 2).to(x.dtype))
    return torch.lerp(reference, x, factor).clamp_(0, 1)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of ``(B, 3, H, W)`` by ``shift`` turns, ``(B,)``; a shift of 0 is exactly the identity."""
    shift = shift[:, None, None, None]
    return choose(shift != 0, rotate_hue(x, shift), x)


def rotate_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of ``(B, 3, H, W)`` by ``shift`` turns, ``(B, 1, 1, 1)`` in [-0.5, 0.5].

    With value ``v``, chroma ``c`` and hue ``h`` in sixths of a turn, a channel is ``v - c·clamp(2 - d, 0, 1)``, where
    ``d`` is the distance on the circle from ``h`` to the hue opposite of that channel, cyan (3), magenta (-1) or yellow
    (1): the usual six cases of HSV in one line. All is reckoned in units of the chroma, so that nothing is divided, and
    no step selects: on a CPU a selection costs as much as five sums.

    From red by green to cyan first green rises, then red falls, then blue rises: ``c·h`` is the sum of the three, and
    by blue it is the same with the other sign. A distance on the circle is an absolute value folded at half a turn.
    """
    red, green, blue = x.chunk(3, dim=1)
    return torch.cat(turned(red, green, blue, shift), dim=1)


def turned(red: Tensor, green: Tensor, blue: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
    """The three channels with the hue rotated by ``shift`` turns, which is broadcast to them."""
    value = torch.maximum(red, torch.maximum(green, blue))
    least = torch.minimum(red, torch.minimum(green, blue))
    chroma = value - least
    away = (green + blue).sub_(red).add_(value).sub_(least, alpha=2)
    hue = torch.addcmul(torch.copysign(away, green - blue), chroma, 6 * shift)
    low, high = least - chroma, value + chroma
    # for magenta and yellow, 3 less the distance; what lies beyond a fold that is not made is clamped alike
    magenta = (hue + chroma).abs_().sub_(chroma, alpha=3).abs_()
    yellow = (hue - chroma).abs_().sub_(chroma, alpha=3).abs_()
    cyan = hue.abs_().sub_(chroma, alpha=3).abs_()
    made = (cyan.add_(low), high - magenta, high - yellow)
    return tuple(torch.minimum(torch.maximum(channel, least), value) for channel in made)


def choose(rows: Tensor, then: Tensor, otherwise: Tensor) -> Tensor:
    """``torch.where`` for finite numbers and a mask of whole rows, as exact and on a CPU a few times as fast."""
    return torch.lerp(otherwise, then, rows.to(then.dtype))


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

    A sigma of 0 is the identity. The kernel differs from sample to sample: both axes are matrix products.
    """
    radius = kernel_size // 2
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernel = (-0.5 * (offsets / torch.where(sigma > 0, sigma, 1.0)[:, None]) ** 2).exp()
    kernel = kernel / kernel.sum(1, keepdim=True)
    blurred = _correlate_rows(_correlate_rows(x, kernel).mT, kernel).mT
    return choose(sigma[:, None, None, None] > 0, blurred, x)


def _correlate_rows(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlate the last axis of ``(B, C, H, W)`` with a kernel for each sample, ``(B, K)``, reflecting at the edges.

    Blocks of an axis overlap by the kernel, and are multiplied with one small band matrix: the product with the
    matrix of the whole axis would be nearly all zeros.
    """
    width, size = x.shape[-1], kernel.shape[1]
    block = min(BLOCK, width)
    span = block + size - 1
    # a row of the band is the one above, shifted by one: what a period of one number more than the row gives
    period = F.pad(kernel, (0, span + 1 - size))
    band = period.repeat(1, block)[:, : block * span].view(-1, block, span)
    padded = F.pad(x, (size // 2, size // 2, 0, 0), mode="reflect")
    padded = F.pad(padded, (0, -width % block))
    blocks = padded.unfold(-1, span, block).flatten(1, 3) @ band.mT
    return blocks.view(*x.shape[:3], -1)[..., :width]


def solarize(x: Tensor, threshold: float) -> Tensor:
    """Invert the values from ``threshold`` up."""
    return torch.where(x >= threshold, 1 - x, x)
