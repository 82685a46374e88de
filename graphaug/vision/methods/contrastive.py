"""Positives against negatives of the same batch: SimCLR and SupCon."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from graphaug.contrastive.geometry import embedding_spread
from graphaug.contrastive.losses import LOSSES, supcon
from graphaug.vision.methods.method import Method, embeddings, full_precision
from graphaug.vision.models import projection_head


class SimCLR(Method):
    """Chen et al. 2020: the other view against all other rows.

    Args:
        network: not looked at.
        loss: one of `LOSSES`.
        temperature, gather, loss_scale: as for the loss.
        projection, hidden: of the head.

    """

    source = "Chen et al. 2020, arXiv:2002.05709"
    settings = ("loss", "loss_scale", "temperature", "gather", "projection", "hidden")
    defaults: ClassVar = {"projection": 128}

    def __init__(
        self,
        network: nn.Module,
        *,
        loss: str,
        loss_scale: str,
        temperature: float,
        gather: bool,
        projection: int,
        hidden: int | None,
    ) -> None:
        super().__init__()
        self.loss, self.temperature, self.gather, self.scale = LOSSES[loss], temperature, gather, loss_scale

    @staticmethod
    def head(classifier: nn.Module, classes: int, projection: int, hidden: int | None) -> nn.Module:
        """SimCLR's two layers; by default the hidden one is as wide as the features."""
        return projection_head(classifier, projection, hidden)

    def forward(self, network: nn.Module, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """See `Method.forward`; the loss in nats."""
        z = embeddings(network, x)
        with full_precision(z):
            z1, z2 = z.chunk(2)
            loss = self.loss(z1, z2, self.temperature, gather=self.gather, scale=self.scale)
            return {"loss": loss, "spread": embedding_spread(z.detach())}


class SupCon(Method):
    """Khosla et al. 2020: all rows of the own class, in both views, against all other rows.

    Args:
        network: not looked at.
        temperature, gather, loss_scale: as for `supcon`.
        projection, hidden: of the head.

    """

    source = "Khosla et al. 2020, arXiv:2004.11362"
    settings = ("loss_scale", "temperature", "gather", "projection", "hidden")
    defaults: ClassVar = {"projection": 128}
    labels = True
    head = SimCLR.head

    def __init__(
        self,
        network: nn.Module,
        *,
        loss_scale: str,
        temperature: float,
        gather: bool,
        projection: int,
        hidden: int | None,
    ) -> None:
        super().__init__()
        self.temperature, self.gather, self.scale = temperature, gather, loss_scale

    def forward(self, network: nn.Module, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """See `Method.forward`; the loss in nats."""
        assert labels is not None
        z = embeddings(network, x)
        with full_precision(z):
            z1, z2 = z.chunk(2)
            loss = supcon(z1, z2, labels, self.temperature, gather=self.gather, scale=self.scale)
            return {"loss": loss, "spread": embedding_spread(z.detach())}
