"""The network that follows: a moving average of the trained one's weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from graphaug.rewrite import strip
from graphaug.surgery.module import AugmentedModule

SCHEDULES = ("cosine", "constant")
"""How the momentum of a teacher goes: BYOL's, which ends at 1, or MoCo's."""


class Teacher(nn.Module):
    """A copy of a network whose weights are an exponential moving average of it.

    ``θ' ← m·θ' + (1-m)·θ``. Its buffers are its own: running statistics of BatchNorms are of what it sees itself,
    and in training mode it normalises by its batch. It has no gradient.

    Args:
        network: what it follows, and begins as.
        augment: it keeps the network's Deep Augmentation; without this it is stripped of it.

    """

    def __init__(self, network: nn.Module, augment: bool = False) -> None:
        super().__init__()
        copied = copy.deepcopy(network)
        if isinstance(copied, AugmentedModule):
            if augment:
                for augmentation in copied.augmentations.values():
                    augmentation.stop_grad = False  # no row has a gradient, and a sparse step would skip none
            else:
                copied = strip(copied)
        self.network = copied.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Embeddings without a gradient, ``(rows, D)`` float32."""
        z: Tensor = self.network(x).flatten(1)
        return z.float()

    @torch.no_grad()
    def follow(self, network: nn.Module, momentum: float) -> None:
        """Move towards a network's weights."""
        ahead = dict(network.named_parameters())
        for name, own in self.network.named_parameters():
            own.lerp_(ahead[name], 1 - momentum)


def momentum_at(progress: float, base: float, schedule: str) -> float:
    """The momentum of the update behind step k of K, ``progress`` = k/K.

    ``"cosine"``: ``1 - (1 - base)·(cos(πk/K) + 1)/2``, BYOL's τ; ``"constant"``: ``base``.
    """
    if schedule == "constant":
        return base
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2
