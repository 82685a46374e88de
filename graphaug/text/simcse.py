"""Unsupervised SimCSE: each sentence is its own positive, through an encoder whose passes differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphaug.contrastive.losses import info_nce
from graphaug.errors import BatchError, UnsupportedModel

TEMPERATURE = 0.05
"""SimCSE's, in units of cosine similarity (Gao et al. 2021, section 3)."""


class SimCSE(nn.Module):
    """An encoder with SimCSE's head: linear and tanh on the first position, in training only.

    In eval mode the vector is the first position itself, the pooler ``cls_before_pooler``. The sites in the paper's
    numbering: 0 behind the embeddings, ``i`` behind block ``i``, and the number of blocks plus one behind the head, 13
    for BERT-base.

    Args:
        encoder: a transformers encoder; it is not copied.

    Raises:
        UnsupportedModel: no ``config.hidden_size``, by which the head is made.

    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        width = getattr(getattr(encoder, "config", None), "hidden_size", None)
        if not isinstance(width, int):
            raise UnsupportedModel(
                f"{type(encoder).__name__} has no config.hidden_size: SimCSE wraps transformers' encoders."
            )
        self.encoder = encoder
        self.head = Head(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return ``(rows, width)`` vectors of ``(rows, tokens)`` ids and their mask."""
        outputs: Any = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        vectors: Tensor = self.head(outputs.last_hidden_state[:, 0])
        return vectors


class Head(nn.Module):
    """Linear and tanh while training, the identity in eval mode: BERT's pooling layer, which SimCSE trains anew."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        # As transformers does with new layers, and so SimCSE's code: published learning rates go with it.
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(rows, width)`` to ``(rows, width)``."""
        return torch.tanh(self.dense(x)) if self.training else x


def twice(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack a batch on itself: ``(N, tokens)`` tensors become ``(2N, tokens)``, the two views ``[x1; x2]``."""
    return {name: torch.cat([value, value]) for name, value in batch.items()}


def simcse_loss(vectors: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """SimCSE's Eq. 1: InfoNCE with the first views as anchors and all second views as candidates.

    Args:
        vectors: ``(2N, width)`` of ``[x1; x2]``, with N of at least 2.
        temperature: in units of cosine similarity.

    Returns:
        A scalar in nats.

    Raises:
        BatchError: an odd number of rows, or fewer than two sentences.

    """
    if vectors.ndim != 2 or len(vectors) % 2:
        raise BatchError(
            f"two views of one number of sentences, (2N, width), are needed, not {(*vectors.shape,)}."
        )
    first, second = vectors.chunk(2)
    return info_nce(first, second, temperature)
