"""Losses of the dimensions of embeddings instead of negatives: Barlow Twins and VICReg."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from graphaug.contrastive.gather import all_rows
from graphaug.contrastive.geometry import embedding_spread
from graphaug.vision.methods.heads import lightly, lightly_head
from graphaug.vision.methods.method import Method, embeddings, full_precision


class _Decorrelating(Method):
    """A loss of two batches whose rows meet in statistics; with ``gather``, those of all processes together."""

    lightly = True
    defaults: ClassVar = {"projection": 8192, "hidden": 8192}

    def __init__(self, loss: nn.Module, gather: bool) -> None:
        super().__init__()
        self.loss, self.gather = loss, gather

    def forward(self, network: nn.Module, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """See `Method.forward`."""
        z = embeddings(network, x)
        with full_precision(z):
            z1, z2 = z.chunk(2)
            if self.gather:  # every process has the loss of the whole batch then
                z1, z2 = all_rows(z1), all_rows(z2)
            return {"loss": self.loss(z1, z2), "spread": embedding_spread(z.detach())}


class BarlowTwins(_Decorrelating):
    """Zbontar et al. 2021: the correlation between the views' dimensions is to be the identity.

    Args:
        network: not looked at.
        redundancy: λ, the weight of what lies off the diagonal.
        gather: correlate over all processes.
        projection, hidden: of the head.

    """

    source = "Zbontar et al. 2021, arXiv:2103.03230"
    settings = ("redundancy", "gather", "projection", "hidden")
    defaults: ClassVar = {**_Decorrelating.defaults, "redundancy": 5e-3}

    def __init__(
        self, network: nn.Module, *, redundancy: float, gather: bool, projection: int, hidden: int | None
    ) -> None:
        losses = lightly("lightly.loss.barlow_twins_loss", "method='barlow'")
        super().__init__(losses.BarlowTwinsLoss(redundancy), gather)

    @staticmethod
    def head(classifier: nn.Module, classes: int, projection: int, hidden: int | None) -> nn.Module:
        """Three layers, the hidden ones with BatchNorm."""
        return lightly_head("BarlowTwinsProjectionHead", classifier, hidden, projection)


class VICReg(_Decorrelating):
    """Bardes et al. 2022: invariance, a variance of at least 1 in every dimension, and no covariance.

    As in the authors' code, the invariance is the mean over the dimensions too, and the variance term over both views.

    Args:
        network: not looked at.
        vicreg_weights: of the three terms, in this order.
        gather: variance and covariance over all processes.
        projection, hidden: of the head.

    """

    source = "Bardes et al. 2022, arXiv:2105.04906"
    settings = ("vicreg_weights", "gather", "projection", "hidden")
    defaults: ClassVar = {**_Decorrelating.defaults, "vicreg_weights": (25.0, 25.0, 1.0)}

    def __init__(
        self,
        network: nn.Module,
        *,
        vicreg_weights: tuple[float, ...],
        gather: bool,
        projection: int,
        hidden: int | None,
    ) -> None:
        losses = lightly("lightly.loss.vicreg_loss", "method='vicreg'")
        super().__init__(losses.VICRegLoss(*vicreg_weights), gather)

    @staticmethod
    def head(classifier: nn.Module, classes: int, projection: int, hidden: int | None) -> nn.Module:
        """Three layers, the hidden ones with BatchNorm."""
        return lightly_head("VICRegProjectionHead", classifier, hidden, projection)
