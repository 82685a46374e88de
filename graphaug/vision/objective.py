"""Training on images as the engine sees it: a module that makes a loss of a batch, and the feed of batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.contrastive.gather import process_count, process_rank
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.images import ImageData
from graphaug.vision.data.rows import image_rows
from graphaug.vision.methods.table import METHODS
from graphaug.vision.models import to_rgb
from graphaug.vision.views.pipeline import UNIFORMS, SimCLRViews


class ImageObjective(nn.Module):
    """Views, network and loss in one forward, so that one graph holds the whole step.

    Args:
        network: rows of images → embeddings, with or without Deep Augmentation.
        views: makes the two views of a batch; with deep views one, of which the network makes two.
        config: the method with its settings, memory format.

    """

    def __init__(self, network: nn.Module, views: SimCLRViews, config: PretrainConfig) -> None:
        super().__init__()
        self.network, self.views = network, views
        method = METHODS[config.method]
        self.method = method(network, **{name: getattr(config, name) for name in method.settings})
        self.format = torch.channels_last if config.channels_last else torch.contiguous_format

    def forward(self, images: Tensor, uniforms: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The measures of a batch.

        Args:
            images: ``(B, C, H, W)`` uint8.
            uniforms: ``(2·B, UNIFORMS)``, the draws of the views; with deep views ``(B, UNIFORMS)``.
            labels: ``(B,)``, where the method needs them.

        Returns:
            ``loss``, and what else the method measures: see `graphaug.vision.methods.method.Method.forward`.

        """
        # Autocast is for the network: eight bits of mantissa are too few for a crop or a sum of exponentials.
        with torch.autocast(images.device.type, enabled=False):
            x = to_rgb(self.views(images, uniforms)).contiguous(memory_format=self.format)
        measures: dict[str, Tensor] = self.method(self.network, x, labels)
        return measures


class ImageFeed:
    """Batches of a data set on the device, with the draws of their views.

    Generators are its own: order and views do not depend on what the model draws, nor on how many processes there are,
    so that runs with and without Deep Augmentation see the same. Each process takes its share of every batch.

    Args:
        data: its training images are used.
        config: batch size, parts of a batch, seed, and whether the images are kept on the device.
        device: where batches and draws lie.

    """

    def __init__(self, data: ImageData, config: PretrainConfig, device: torch.device) -> None:
        self.images = image_rows(data.train.images, device, config.resident)
        self.count, self.device = len(data.train), device
        self.batch_size, self.parts = config.batch_size, config.accumulate
        self.steps = self.count // self.batch_size
        self.views = image_views_a_row(config)
        self.labels = data.train.labels if METHODS[config.method].labels else None
        self.order = torch.Generator().manual_seed(config.seed)
        self.view_numbers = torch.Generator(device).manual_seed(config.seed)
        self.shuffled = torch.empty(0, dtype=torch.int64)
        self._before_epoch = self.order.get_state()

    def start_epoch(self) -> None:
        """Draw the order of an epoch."""
        self._before_epoch = self.order.get_state()
        self.shuffled = torch.randperm(self.count, generator=self.order).to(self.images.index_device)

    def batches(self, step: int) -> Iterator[tuple[Tensor, ...]]:
        """This process's share of each part of a batch: images, the uniform numbers of their views, labels if used."""
        shape = (self.views, self.batch_size, UNIFORMS)
        uniforms = torch.rand(shape, generator=self.view_numbers, device=self.device)
        for part in range(self.parts):
            following = (step, part + 1) if part + 1 < self.parts else (step + 1, 0)
            ahead = self._rows(*following) if following[0] < self.steps else None
            rows = self._rows(step, part)
            batch = self.images(rows, ahead), uniforms[:, self._share(part)].flatten(0, 1)
            if self.labels is None:
                yield batch
            else:
                yield *batch, self.labels[rows.to(self.labels.device)].to(self.device)

    def _rows(self, step: int, part: int) -> Tensor:
        return self.shuffled[step * self.batch_size : (step + 1) * self.batch_size][self._share(part)]

    def _share(self, part: int) -> slice:
        """Where this process's images are in a batch."""
        share = self.batch_size // (self.parts * process_count())
        start = (part * process_count() + process_rank()) * share
        return slice(start, start + share)

    def state_dict(self, new_epoch: bool) -> dict[str, Any]:
        """Both generators; the one of the order as it was before this epoch, or with ``new_epoch`` as it is."""
        return {
            "order": self.order.get_state() if new_epoch else self._before_epoch,
            "views": self.view_numbers.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.order.set_state(state["order"])
        self.view_numbers.set_state(state["views"])


def image_views_a_row(config: PretrainConfig) -> int:
    """How many views are made of an image: with deep views one, which becomes two at the site."""
    return 1 if config.deep_views else METHODS[config.method].views


def image_views(data: ImageData, config: PretrainConfig) -> SimCLRViews:
    """The views that a configuration asks for, normalised with the data's statistics."""
    mean, std = data.statistics()
    brightness, contrast, saturation, hue = config.jitter
    return SimCLRViews(
        config.size or data.view_size,
        n_views=image_views_a_row(config),
        scale=(config.crop, 1.0),
        flip=0.5 if data.mirror else 0.0,
        jitter=(brightness, contrast, saturation, hue),
        jitter_p=config.jitter_p,
        gray_p=config.gray_p,
        blur_p=config.blur_p,
        solarize_p=config.solarize_p,
        mean=mean,
        std=std,
    )
