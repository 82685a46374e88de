"""What a method is: the head, the loss of a batch, what stands beside the network, and the settings it has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Method(nn.Module):
    """A way to train a network on views of images.

    It owns what is trained or kept beside the network: a predictor, a teacher, a queue. These are its parameters and
    buffers, and are therefore in every checkpoint. It is built of the network, and of its ``settings`` by keyword.

    Attributes:
        source: the publication.
        settings: the settings of a run that this method has and not every method; all others are refused.
        defaults: what None means for them.
        views: how many views are made of an image.
        rows: how many of these enter the trained network, in one batch, one after another.
        labels: whether the labels are needed.
        deep_views: whether the views may be made at the site instead.
        teacher: whether a network follows the trained one.
        lightly: whether heads or losses are lightly's.
    """

    source: ClassVar[str]
    settings: ClassVar[tuple[str, ...]]
    defaults: ClassVar[Mapping[str, Any]] = {}
    views: ClassVar[int] = 2
    rows: ClassVar[int] = 2
    labels: ClassVar[bool] = False
    deep_views: ClassVar[bool] = True
    teacher: ClassVar[bool] = False
    lightly: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def head(classifier: nn.Module, classes: int, projection: int, hidden: int | None) -> nn.Module:
        """What stands in the classifier's place while the network is trained, a part of it.

        Args:
            classifier: whose input it takes.
            classes: how many there are in the data.
            projection: dimension of what comes out.
            hidden: width of the hidden layers.

        Raises:
            ConfigError: a classifier that this method has no head for.

        """

    @abstractmethod
    def forward(self, network: nn.Module, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The measures of a batch.

        Args:
            network: with its head; gives embeddings ``(rows, D)``, with or without Deep Augmentation.
            x: ``(views·B, 3, H, W)``, all first views, then all second ones; with deep views ``(B, 3, H, W)``.
            labels: ``(B,)`` int64, where the method needs them.

        Returns:
            ``loss``, and ``spread`` where the embeddings can collapse, see `embedding_spread`.

        """

    def after_step(self, network: nn.Module, progress: float) -> None:
        """Follow the network behind an optimizer step.

        Args:
            network: with its new weights.
            progress: steps made before this one, as a share of all.

        """

    def augmented(self) -> tuple[nn.Module, ...]:
        """Networks beside the trained one that have its Deep Augmentation, and follow its schedules."""
        return ()


def embeddings(network: nn.Module, x: Tensor) -> Tensor:
    """``(rows, D)`` in float32."""
    z: Tensor = network(x).flatten(1)
    return z.float()


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Without autocast, which is for networks: its mantissa of eight bits is too short for a sum of exponentials."""
    with torch.autocast(x.device.type, enabled=False):
        yield
