"""Training on labels: cross-entropy of a linear head, with the labels mixed where the rows are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from graphaug.augment.transforms.mix import Mixed, mixed_cross_entropy
from graphaug.surgery.module import AugmentedModule
from graphaug.vision.methods.method import Method, embeddings, full_precision


class Supervised(Method):
    """Cross-entropy on one view of an image, in the views that the contrastive methods see.

    Where a site mixes rows, the loss mixes their labels alike (Verma et al. 2019).

    Args:
        network: not looked at.

    """

    source = "cross-entropy; with mix Verma et al. 2019, arXiv:1806.05236"
    settings = ()
    views = 1
    rows = 1
    labels = True
    deep_views = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()

    @staticmethod
    def head(classifier: nn.Module, classes: int, projection: int, hidden: int | None) -> nn.Module:
        """One layer of the classifier's own kind."""
        if isinstance(classifier, nn.Conv2d):
            return nn.Conv2d(classifier.in_channels, classes, 1)
        assert isinstance(classifier, nn.Linear)
        return nn.Linear(classifier.in_features, classes)

    def forward(self, network: nn.Module, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """``loss`` in nats, and ``accuracy`` on the batch, in [0, 1]; the spread of class scores says nothing."""
        assert labels is not None
        scores = embeddings(network, x)
        drawn = network.drawn if isinstance(network, AugmentedModule) else {}
        mixed = {site: found for site, found in drawn.items() if isinstance(found.draws, Mixed)}
        with full_precision(scores):
            loss = mixed_cross_entropy(scores, labels, mixed) if mixed else F.cross_entropy(scores, labels)
            return {"loss": loss, "accuracy": (scores.detach().argmax(1) == labels).float().mean()}
