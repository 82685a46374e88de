"""Methods whose targets come of a moving average of the network: BYOL and MoCo."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphaug.contrastive.gather import all_rows
from graphaug.contrastive.geometry import embedding_spread
from graphaug.contrastive.losses import unit_rows
from graphaug.vision.methods.heads import lightly, lightly_head
from graphaug.vision.methods.method import Method, embeddings, full_precision
from graphaug.vision.methods.teacher import Teacher, momentum_at

OF_TEACHERS = ("teacher_momentum", "teacher_schedule", "augment_teacher")
"""The settings that a teacher has."""


class _WithTeacher(Method):
    """A method with a teacher, which moves behind every optimizer step."""

    teacher = True
    lightly = True
    # A teacher without Deep Augmentation makes one view of a row, and not two.
    deep_views = False

    def __init__(self, network: nn.Module, momentum: float, schedule: str, augment: bool) -> None:
        super().__init__()
        self.follower = Teacher(network, augment)
        self.momentum, self.schedule, self.augment = momentum, schedule, augment

    def after_step(self, network: nn.Module, progress: float) -> None:
        """Move the teacher."""
        self.follower.follow(network, momentum_at(progress, self.momentum, self.schedule))

    def augmented(self) -> tuple[nn.Module, ...]:
        """The teacher's network, if it is augmented."""
        return (self.follower.network,) if self.augment else ()


class BYOL(_WithTeacher):
    """Grill et al. 2020: each view predicts the teacher's embedding of the other.

    Args:
        network: what the teacher begins as.
        projection: width of the embeddings.
        hidden: of the hidden layers of projection and prediction.
        teacher_momentum, teacher_schedule: of the moving average; see `momentum_at`.
        augment_teacher: the teacher has Deep Augmentation, too.

    """

    source = "Grill et al. 2020, arXiv:2006.07733"
    settings = ("projection", "hidden", *OF_TEACHERS)
    defaults: ClassVar = {
        "projection": 256,
        "hidden": 4096,
        "teacher_momentum": 0.996,
        "teacher_schedule": "cosine",
    }

    def __init__(
        self,
        network: nn.Module,
        *,
        projection: int,
        hidden: int | None,
        teacher_momentum: float,
        teacher_schedule: str,
        augment_teacher: bool,
    ) -> None:
        super().__init__(network, teacher_momentum, teacher_schedule, augment_teacher)
        heads = lightly("lightly.models.modules.heads", "method='byol'")
        self.predictor = heads.BYOLPredictionHead(projection, hidden, projection)
        losses = lightly("lightly.loss.negative_cosine_similarity", "method='byol'")
        self.distance = losses.NegativeCosineSimilarity()

    @staticmethod
    def head(classifier: nn.Module, classes: int, projection: int, hidden: int | None) -> nn.Module:
        """Two layers, the hidden one with BatchNorm."""
        return lightly_head("BYOLProjectionHead", classifier, hidden, projection)

    def forward(self, network: nn.Module, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """See `Method.forward`; the loss of both directions, ``4 - 2·cos - 2·cos``, in [0, 8]."""
        z = embeddings(network, x)
        p = self.predictor(z).float()
        target = self.follower(x)
        with full_precision(z):
            (p1, p2), (t1, t2) = p.chunk(2), target.chunk(2)
            loss = 4 + 2 * self.distance(p1, t2) + 2 * self.distance(p2, t1)
            return {"loss": loss, "spread": embedding_spread(z.detach())}


class MoCo(_WithTeacher):
    """Chen et al. 2020 (v2): the first view against the teacher's embedding of the second and a queue of former ones.

    The queue is a buffer, so that a run that goes on has it, and lightly's is none. All processes put their keys in it.
    Keys are not shuffled among processes, as they are in the paper: BatchNorm may tell a pair by its batch.

    Args:
        network: what the teacher begins as.
        temperature: τ.
        projection: width of the embeddings.
        hidden: of the head's hidden layer.
        queue: how many keys are kept.
        teacher_momentum, teacher_schedule, augment_teacher: as for `BYOL`.

    """

    source = "He et al. 2020, arXiv:1911.05722; v2: Chen et al. 2020, arXiv:2003.04297"
    settings = ("temperature", "projection", "hidden", "queue", *OF_TEACHERS)
    rows = 1
    defaults: ClassVar = {
        "projection": 128,
        "hidden": 2048,
        "queue": 4096,
        "teacher_momentum": 0.999,
        "teacher_schedule": "constant",
    }

    def __init__(
        self,
        network: nn.Module,
        *,
        temperature: float,
        projection: int,
        hidden: int | None,
        queue: int,
        teacher_momentum: float,
        teacher_schedule: str,
        augment_teacher: bool,
    ) -> None:
        super().__init__(network, teacher_momentum, teacher_schedule, augment_teacher)
        self.temperature = temperature
        self.queue: Tensor
        self.oldest: Tensor
        self.register_buffer("queue", unit_rows(torch.randn(queue, projection)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def head(classifier: nn.Module, classes: int, projection: int, hidden: int | None) -> nn.Module:
        """Two layers without BatchNorm."""
        return lightly_head("MoCoProjectionHead", classifier, hidden, projection)

    def forward(self, network: nn.Module, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """See `Method.forward`; the loss in nats. In training mode the keys take the place of the oldest."""
        first, second = x.chunk(2)
        z = embeddings(network, first)
        key = self.follower(second)
        with full_precision(z):
            key = unit_rows(key)
            # a copy: the backward looks at it when the queue has moved on
            loss = queue_loss(unit_rows(z), key, self.queue.clone(), self.temperature)
            if self.training:
                self._put(all_rows(key))
            return {"loss": loss, "spread": embedding_spread(z.detach())}

    @torch.no_grad()
    def _put(self, keys: Tensor) -> None:
        """Let keys take the place of as many oldest ones."""
        places = (self.oldest + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, places, keys)
        self.oldest.copy_((self.oldest + len(keys)) % len(self.queue))


def queue_loss(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Eq. 1 of He et al. 2020: ``-log exp(q·k/τ) / (exp(q·k/τ) + Σ_j exp(q·queue_j/τ))``, the mean in nats.

    Args:
        query, key: ``(N, D)`` at length 1, row i of each of the same image.
        queue: ``(K, D)`` at length 1.
        temperature: τ > 0.

    """
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))
