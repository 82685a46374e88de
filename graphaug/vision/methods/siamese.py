"""SimSiam: a predictor and a stopped gradient in the place of negatives."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from graphaug.contrastive.geometry import embedding_spread
from graphaug.vision.methods.heads import lightly, lightly_head
from graphaug.vision.methods.method import Method, embeddings, full_precision


class SimSiam(Method):
    """Chen and He 2021: each view predicts the other's embedding, through which no gradient goes.

    Both sides are the one network, so that Deep Augmentation acts on predictions and targets alike. The predictor's
    hidden layer is a quarter as wide as its output, the paper's bottleneck. Its learning rate is that of the network,
    the paper's baseline; in the authors' code it is constant.

    Args:
        network: not looked at.
        projection: width of the embeddings.
        hidden: of the projection head's layers.

    """

    source = "Chen and He 2021, arXiv:2011.10566"
    settings = ("projection", "hidden")
    defaults: ClassVar = {"projection": 2048, "hidden": 2048}
    lightly = True

    def __init__(self, network: nn.Module, *, projection: int, hidden: int | None) -> None:
        super().__init__()
        heads = lightly("lightly.models.modules.heads", "method='simsiam'")
        self.predictor = heads.SimSiamPredictionHead(projection, max(1, projection // 4), projection)
        losses = lightly("lightly.loss.negative_cosine_similarity", "method='simsiam'")
        self.distance = losses.NegativeCosineSimilarity()

    @staticmethod
    def head(classifier: nn.Module, classes: int, projection: int, hidden: int | None) -> nn.Module:
        """Three layers, each with BatchNorm."""
        return lightly_head("SimSiamProjectionHead", classifier, hidden, projection)

    def forward(self, network: nn.Module, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """See `Method.forward`; the loss lies in [-1, 1]."""
        z = embeddings(network, x)
        p = self.predictor(z).float()
        with full_precision(z):
            (z1, z2), (p1, p2) = z.detach().chunk(2), p.chunk(2)
            loss = (self.distance(p1, z2) + self.distance(p2, z1)) / 2
            return {"loss": loss, "spread": embedding_spread(z.detach())}
