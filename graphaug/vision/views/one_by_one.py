"""Views made one at a time, as one operation that a compiler calls without looking into it.

A CPU makes a large view fastest by itself: all its steps find it in the cache, and only what was drawn for it is done.
A compiler that fuses the steps of a whole batch can do neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from graphaug.vision.views import memory, single_image
from graphaug.vision.views.params import ViewParams
from graphaug.vision.views.taps import resize_taps

TOGETHER = 16
"""For how many views at most the crops are worked out together."""

THREADS = 4
"""How many threads work at most: the steps are short, and between two of them one thread at a time runs Python."""


class Part(NamedTuple):
    """Some images, what was drawn for their views, and where these belong."""

    images: Sequence[Tensor]
    params: ViewParams
    views: Tensor


@torch.library.custom_op("graphaug::views_one_by_one", mutates_args=(), device_types="cpu")
def views_one_by_one(
    images: Tensor,
    params: list[Tensor],
    mean: Tensor,
    std: Tensor,
    n_views: int,
    size: int,
    kernel_size: int,
    threshold: float,
) -> Tensor:
    """Make the views of a batch one at a time, without gradient.

    Args:
        images: ``(B, C, H, W)``, uint8 or floating in [0, 1].
        params: the fields of `ViewParams`, each of ``n_views·B`` rows.
        mean, std: per channel, or one for all, ``(C or 1, 1, 1)``.
        n_views: how many views of each image.
        size: height and width of the views.
        kernel_size: of the blur in pixels, odd.
        threshold: values from it up are inverted by solarize.

    Returns:
        ``(n_views·B, C, size, size)`` float32: all first views, then all second views.

    """
    drawn, channels, count = ViewParams(*params), images.shape[1], n_views * images.shape[0]
    views = memory.empty(count, channels, size, size)
    # x / std - mean / std in one pass: a sum of a number and a multiple of the channel
    scales = std.reciprocal().expand(channels, 1, 1).flatten().tolist()
    offsets = (-mean / std).expand(channels, 1, 1).flatten().unbind()
    normal = list(zip(offsets, scales, strict=True))

    def make(part: Part) -> None:
        with torch.inference_mode(inference):  # which each thread has for itself
            _make(part, normal, kernel_size, threshold)

    inference, all_threads = torch.is_inference_mode_enabled(), torch.get_num_threads()
    threads = min(all_threads, THREADS, count)
    share = min(TOGETHER, math.ceil(count / max(1, threads)))
    parts = _parts(images.unbind() * n_views, drawn, views, max(1, share))
    if threads <= 1:
        for part in parts:
            make(part)
        return views
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(make, parts):
                pass
    finally:
        torch.set_num_threads(
            all_threads
        )  # a thread's own number is also that of the threads started after it
    return views


@views_one_by_one.register_fake
def _(
    images: Tensor,
    params: list[Tensor],
    mean: Tensor,
    std: Tensor,
    n_views: int,
    size: int,
    kernel_size: int,
    threshold: float,
) -> Tensor:
    return images.new_empty((n_views * images.shape[0], images.shape[1], size, size), dtype=torch.float32)


def _parts(images: Sequence[Tensor], params: ViewParams, views: Tensor, size: int) -> list[Part]:
    starts = range(0, len(images), size)
    columns = zip(starts, params.split(size), views.split(size), strict=False)  # of nothing there is one part
    return [Part(images[start : start + size], *rest) for start, *rest in columns]


def _make(part: Part, normal: list[tuple[Tensor, float]], kernel_size: int, threshold: float) -> None:
    """Write the views of a part where they belong; ``normal``: for each channel what is added, and the factor."""
    channels, size = part.views.shape[1:3]
    params = part.params
    unit = 1 / 255 if part.images[0].dtype == torch.uint8 else 1.0
    rows = resize_taps(params.height, size, torch.zeros_like(params.flip), channels, unit)
    columns = resize_taps(params.width, size, params.flip, channels)
    each = zip(part.images, rows, columns, params.rows(), part.views, strict=True)
    for image, vertical, horizontal, drawn, out in each:
        view = single_image.view(image, vertical, horizontal, drawn, kernel_size, threshold)
        for channel, (offset, scale) in enumerate(normal):
            torch.add(offset, view[channel], alpha=scale, out=out[channel])
