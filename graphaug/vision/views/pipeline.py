"""SimCLR's image augmentation as one module on a batch: independent per sample, on any device.

Every random decision of a sample comes from one row of uniform numbers, and no step branches on data: so the module
compiles with ``fullgraph=True``, and a view can be made again from its row. The operations follow torchvision's
functionals on tensors; the distributions of their parameters follow torchvision's transforms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graphaug.errors import BatchError, InvalidOption
from graphaug.vision.views import fused
from graphaug.vision.views.image_ops import (
    check_images,
    choose,
    colour_jitter,
    gaussian_blur,
    resample,
    resize_matrix,
    rgb_to_gray,
    solarize,
    unit_range,
)
from graphaug.vision.views.one_by_one import views_one_by_one
from graphaug.vision.views.params import ViewParams

PART_BYTES = 2**21
"""How many bytes of float32 images a thread of a CPU takes at once: more leave its cache."""

LARGE = 72
"""From how many pixels a side on a CPU takes views one at a time, each with the operations that were drawn for it."""

CROP_ATTEMPTS = 10
"""torchvision's RandomResizedCrop draws up to ten boxes before it falls back to the central one."""

# The columns of the uniforms: 10 areas, 10 aspect ratios, then one number for each decision.
_NAMED = "top left flip jitter brightness contrast saturation hue order0 order1 order2 order3 gray blur sigma solarize"
_COLUMN = {name: 2 * CROP_ATTEMPTS + i for i, name in enumerate(_NAMED.split())}
UNIFORMS = 2 * CROP_ATTEMPTS + len(_COLUMN)
"""How many uniform numbers in [0, 1) one view takes."""


class SimCLRViews(nn.Module):
    """Random views of a batch of images, each sample with its own draw.

    Resized crop (bilinear, antialiased when it shrinks), flip, colour jitter with a random order per sample,
    grayscale, optional blur and solarize, normalisation. Defaults are SupContrast's for CIFAR. Colour operations that
    need three channels (saturation, hue, grayscale) leave one-channel images alone, as torchvision's do.

    Args:
        size: height and width of the views in pixels.
        n_views: how many views of each image; they are stacked, first views first.
        scale: the crop's share of the image area, (low, high).
        ratio: the crop's aspect ratio width/height, (low, high), log-uniform.
        flip: probability of a horizontal flip.
        jitter: strengths of brightness, contrast, saturation (factor in [1-s, 1+s]) and hue (shift in [-s, s] turns).
        jitter_p: probability of the jitter.
        gray_p: probability of grayscale.
        blur_p: probability of a Gaussian blur, kernel of a tenth of the view, odd, at least 3.
        blur_sigma: the blur's standard deviation in pixels, (low, high).
        solarize_p: probability that values from ``solarize_threshold`` up are inverted.
        solarize_threshold: in units of the image range [0, 1].
        mean: per channel, or one number for all; subtracted at the end, in units of [0, 1].
        std: per channel, or one number for all; divided by at the end.

    Raises:
        InvalidOption: a probability outside [0, 1], an empty range, a strength below 0 or a size below 1.

    Example:
        >>> views = SimCLRViews(32)
        >>> views(torch.zeros(8, 3, 40, 48, dtype=torch.uint8)).shape
        torch.Size([16, 3, 32, 32])

    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int,
        *,
        n_views: int = 2,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
        jitter_p: float = 0.8,
        gray_p: float = 0.2,
        blur_p: float = 0.0,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        solarize_p: float = 0.0,
        solarize_threshold: float = 0.5,
        mean: Sequence[float] | float = 0.0,
        std: Sequence[float] | float = 1.0,
    ) -> None:
        super().__init__()
        probabilities = {"flip": flip, "jitter_p": jitter_p, "gray_p": gray_p, "blur_p": blur_p}
        for name, p in {**probabilities, "solarize_p": solarize_p}.items():
            if not 0 <= p <= 1:
                raise InvalidOption(f"{name} is a probability in [0, 1], not {p!r}.")
        for name, (low, high) in {"scale": scale, "ratio": ratio, "blur_sigma": blur_sigma}.items():
            if not 0 < low <= high:
                raise InvalidOption(
                    f"{name} is a range (low, high) with 0 < low <= high, not {(low, high)!r}."
                )
        if size < 1 or n_views < 1:
            raise InvalidOption(f"size and n_views must be at least 1, not {size!r} and {n_views!r}.")
        if min(jitter) < 0 or jitter[3] > 0.5:
            raise InvalidOption(f"jitter strengths must be at least 0 and hue at most 0.5, not {jitter!r}.")
        self.size, self.n_views = size, n_views
        self.scale, self.ratio = scale, ratio
        self.flip, self.jitter, self.jitter_p, self.gray_p = flip, jitter, jitter_p, gray_p
        self.blur_p, self.blur_sigma = blur_p, blur_sigma
        self.solarize_p, self.solarize_threshold = solarize_p, solarize_threshold
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel(std), persistent=False)
        self.kernel_size = max(3, size // 10 // 2 * 2 + 1)

    def forward(self, images: Tensor, uniforms: Tensor | None = None) -> Tensor:
        """Make the views.

        Args:
            images: ``(B, C, H, W)``, C of 1 or 3, uint8 or floating in [0, 1].
            uniforms: ``(n_views·B, UNIFORMS)`` in [0, 1), at least float32; drawn from torch's default generator where
                left out.

        Returns:
            ``(n_views·B, C, size, size)`` float32, normalised: all first views, then all second views.

        Raises:
            BatchError: the images have another shape or type, or the uniforms too few bits.

        """
        check_images(images)
        if uniforms is None:
            uniforms = torch.rand(self.n_views * images.shape[0], UNIFORMS, device=images.device)
        if uniforms.dtype not in (torch.float32, torch.float64):
            raise BatchError(
                f"uniforms are drawn in float32, not {uniforms.dtype}: its few bits would repeat draws."
            )
        uniforms = uniforms.float()
        return self.apply_params(images, self.params(uniforms, images.shape[2], images.shape[3]))

    def params(self, uniforms: Tensor, height: int, width: int) -> ViewParams:
        """Turn ``(B, UNIFORMS)`` uniform numbers into the parameters of B views of ``height`` × ``width`` images."""
        u = {name: uniforms[:, column] for name, column in _COLUMN.items()}
        box_h, box_w = self._crop_sizes(uniforms, height, width)
        drawn = (box_h > 0).any(1)
        first = (box_h > 0).float().argmax(1, keepdim=True)
        central_h, central_w = self._central_box(height, width)
        h = torch.where(drawn, box_h.gather(1, first)[:, 0], central_h)
        w = torch.where(drawn, box_w.gather(1, first)[:, 0], central_w)
        # Sizes are whole numbers in float32: exact, and free of integer division on the device.
        top = torch.where(drawn, (u["top"] * (height - h + 1)).floor(), (height - central_h) // 2)
        left = torch.where(drawn, (u["left"] * (width - w + 1)).floor(), (width - central_w) // 2)

        jittered = u["jitter"] < self.jitter_p
        factors = [
            torch.where(jittered, max(0.0, 1 - s) + (s + min(1.0, s)) * u[name], 1.0)
            for s, name in zip(self.jitter[:3], ("brightness", "contrast", "saturation"), strict=True)
        ]
        hue = torch.where(jittered, self.jitter[3] * (2 * u["hue"] - 1), 0.0)
        order = torch.stack([u[f"order{i}"] for i in range(4)], dim=1).argsort(1)
        low, high = self.blur_sigma
        sigma = torch.where(u["blur"] < self.blur_p, low + (high - low) * u["sigma"], 0.0)
        return ViewParams(
            top=top.clamp(max=height - h),
            left=left.clamp(max=width - w),
            height=h,
            width=w,
            flip=u["flip"] < self.flip,
            brightness=factors[0],
            contrast=factors[1],
            saturation=factors[2],
            hue=hue,
            order=order,
            gray=u["gray"] < self.gray_p,
            sigma=sigma,
            solarize=u["solarize"] < self.solarize_p,
        )

    def apply_params(self, images: Tensor, params: ViewParams) -> Tensor:
        """Make views of B images with the parameters of n·B views, first views first: ``(n·B, C, size, size)``."""
        if _one_at_a_time(images, self.size):
            numbers = (self.n_views, self.size, self.kernel_size, self.solarize_threshold)
            views: Tensor = views_one_by_one(images, params.columns(), self.mean, self.std, *numbers)
            return views
        if fused.suits(images, self.size):
            done = {"jitter": self.jitter_p > 0, "gray": self.gray_p > 0}
            return self._finish(fused.coloured_crops(images, params, self.size, self.n_views, **done), params)
        images = images.repeat(self.n_views, 1, 1, 1)
        part = self._part(images)
        if part >= images.shape[0]:
            return self._apply_params(images, params)
        parts = zip(images.split(part), params.split(part), strict=True)
        return torch.cat([self._apply_params(*each) for each in parts])

    def _part(self, images: Tensor) -> int:
        """How many images to work on at once: all, but for a CPU without a compiler, whose cache the batch exceeds.

        There a step that touches memory afresh takes several times its own time.
        """
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return images.shape[0]
        pixels = max(images.shape[2] * images.shape[3], self.size**2)
        return max(1, PART_BYTES * torch.get_num_threads() // (4 * images.shape[1] * pixels))

    def _apply_params(self, images: Tensor, params: ViewParams) -> Tensor:
        x = unit_range(images)
        rows = resize_matrix(params.top, params.height, x.shape[2], self.size)
        columns = resize_matrix(params.left, params.width, x.shape[3], self.size)
        columns = torch.where(params.flip[:, None, None], columns.flip(1), columns)
        x = resample(x, rows, columns)
        if self.jitter_p > 0:
            x = colour_jitter(
                x, params.brightness, params.contrast, params.saturation, params.hue, params.order
            )
        if self.gray_p > 0 and x.shape[1] == 3:
            x = choose(params.gray[:, None, None, None], rgb_to_gray(x), x)
        return self._finish(x, params)

    def _finish(self, x: Tensor, params: ViewParams) -> Tensor:
        """Blur, solarize and normalise crops whose colours are done."""
        if self.blur_p > 0:
            x = gaussian_blur(x, params.sigma, self.kernel_size)
        if self.solarize_p > 0:
            x = choose(params.solarize[:, None, None, None], solarize(x, self.solarize_threshold), x)
        return (x - self.mean).div_(self.std)

    def _crop_sizes(self, uniforms: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Ten candidate boxes, height and width of 0 where one does not fit."""
        area = (
            height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * uniforms[:, :CROP_ATTEMPTS])
        )
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = (low + (high - low) * uniforms[:, CROP_ATTEMPTS : 2 * CROP_ATTEMPTS]).exp()
        w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        return torch.where(fits, h, 0.0), torch.where(fits, w, 0.0)

    def _central_box(self, height: int, width: int) -> tuple[int, int]:
        """torchvision's box where no candidate fits: the largest central one with an allowed aspect ratio."""
        if width / height < self.ratio[0]:
            return round(width / self.ratio[0]), width
        if width / height > self.ratio[1]:
            return height, round(height * self.ratio[1])
        return height, width


class EvalView(nn.Module):
    """The whole image resized to ``size`` × ``size`` (antialiased) and normalised: what a probe looks at.

    Takes and returns what ``SimCLRViews`` does, with one view of each image and nothing random.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, size: int, mean: Sequence[float] | float = 0.0, std: Sequence[float] | float = 1.0
    ) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel(std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Resize and normalise ``(B, C, H, W)`` images."""
        check_images(images)
        if _one_at_a_time(images, self.size):
            whole = ViewParams.of_whole_images(images.shape[0], images.shape[2], images.shape[3])
            drawn = whole.columns()
            view: Tensor = views_one_by_one(images, drawn, self.mean, self.std, 1, self.size, 3, 1.0)
            return view
        x = unit_range(images)
        zero = x.new_zeros(1)
        rows = resize_matrix(zero, zero + x.shape[2], x.shape[2], self.size)
        columns = resize_matrix(zero, zero + x.shape[3], x.shape[3], self.size)
        return (resample(x, rows, columns) - self.mean) / self.std


def _one_at_a_time(images: Tensor, size: int) -> bool:
    """Whether views are so large, on a CPU, that a step's own time exceeds that of calling it."""
    return images.device.type == "cpu" and not images.requires_grad and size >= LARGE


def _per_channel(value: Sequence[float] | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32).view(-1, 1, 1)
