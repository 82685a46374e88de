"""A kNN probe on held-out images, while training goes on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.images import ImageData, ImageSet
from graphaug.vision.models import features
from graphaug.vision.probes.evaluate import knn_accuracy
from graphaug.vision.views.pipeline import EvalView

LOOKED_AT = 10_000
"""Nearest neighbours while training are searched for among this many images; at the end, among all."""


class Watch:
    """The nearest-neighbour accuracy of a model that is being trained.

    Args:
        model: the whole model, whose features are looked at.
        data: labelled images; the first `LOOKED_AT` of a fixed permutation.
        config: how often.
        path: where the projection head is in the model; features are what enters it.

    """

    def __init__(self, model: nn.Module, data: ImageData, config: PretrainConfig, path: str) -> None:
        self.model, self.config, self.path = model, config, path
        device = next(model.parameters()).device
        self.view = EvalView(config.size or data.view_size, *data.statistics()).to(device)
        self.data = data
        # Images without labels have no neighbours of their class.
        self.every = config.watch_every if len(data.classes) > 1 else 0

    def __call__(self, epoch: int) -> dict[str, float]:
        """``knn``, where it is due after this epoch."""
        due = self.every and (epoch % self.every == 0 or epoch == self.config.epochs)
        return {"knn": self.knn()} if due else {}

    def knn(self) -> float:
        """Accuracy of the nearest-neighbour vote on the features, in eval mode."""
        modes = {module: module.training for module in self.model.modules()}
        try:
            # The test images are read at the end alone where there are others to look at.
            other = self.data.validation or self.data.test
            parts = [_some(part) for part in (self.data.train, other)]
            sets = [t for part in parts for t in (self._features(part.images), part.labels)]
        finally:
            # Frozen statistics stay frozen: train() on the plain model would wake them.
            for module, mode in modes.items():
                module.training = mode
        return knn_accuracy(*sets)

    def _features(self, images: Tensor) -> Tensor:
        return features(self.model, images, self.view, path=self.path)


def _some(part: ImageSet) -> ImageSet:
    if len(part) <= LOOKED_AT:
        return part
    chosen = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))[:LOOKED_AT]
    return ImageSet(part.images[chosen], part.labels[chosen])
