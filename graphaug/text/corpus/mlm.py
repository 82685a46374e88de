"""The head of a masked-language model, by itself, and the loss on its predictions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphaug.errors import EncoderError
from graphaug.text.corpus.masking import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MaskedHead(nn.Module):
    """What a transformers model for masked language has behind its encoder: hidden states → scores of every token.

    The encoder is taken out of it, so that hidden states can come from elsewhere, a rewritten encoder for one. Weights
    that the two share stay shared.

    Args:
        model: such as ``BertForMaskedLM``; its encoder is ``model.base_model``, to be taken before.

    Raises:
        EncoderError: it looks at more of its encoder than the hidden states.

    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        setattr(model, model.base_model_prefix, _Given())
        parameter = next(model.parameters())
        try:
            with torch.no_grad():
                self(
                    torch.zeros(
                        1, 1, model.config.hidden_size, dtype=parameter.dtype, device=parameter.device
                    )
                )
        except (AttributeError, TypeError, ValueError) as error:
            raise EncoderError(
                f"the head of {type(model).__name__} cannot be taken off its encoder ({error}): leave it out."
            ) from error

    def forward(self, hidden: Tensor) -> Tensor:
        """``(rows, tokens, width)`` to ``(rows, tokens, vocabulary)``."""
        logits: Tensor = self.model(inputs_embeds=hidden).logits
        return logits

    @contextmanager
    def whole(self, encoder: nn.Module) -> Iterator[PreTrainedModel]:
        """The model with its encoder again, to be saved."""
        setattr(self.model, self.model.base_model_prefix, encoder)
        try:
            yield self.model
        finally:
            setattr(self.model, self.model.base_model_prefix, _Given())


class _Given(nn.Module):
    """Stands where the encoder was, and passes on the hidden states that it is given as embeddings."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=inputs_embeds)


def masked_head(encoder: PreTrainedModel) -> MaskedHead:
    """Make a head for an encoder, with random weights but for those that it shares with the embedding.

    Raises:
        EncoderError: transformers has no masked-language model of this kind.

    """
    from transformers import AutoModelForMaskedLM

    try:
        model = AutoModelForMaskedLM.from_config(encoder.config)
    except ValueError as error:
        raise no_masked_language(type(encoder).__name__) from error
    setattr(model, model.base_model_prefix, encoder)
    model.tie_weights()
    return MaskedHead(model)


def no_masked_language(kind: str) -> EncoderError:
    """Return the error about a kind of model that has no such head, such as GPT-2."""
    return EncoderError(
        f"{kind} has no masked-language model in transformers: use an encoder such as BERT or RoBERTa, or leave the "
        "objective out."
    )


def chosen_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where labels are given: the head is by far the largest layer, and needs to look at these positions only.

    Their number is brought up to a quarter of all positions, or if there are more to all, so that a compiled step sees
    few shapes; what fills it up has the label ``IGNORED``.

    Args:
        labels: ``(rows, tokens)``.

    Returns:
        Positions among ``rows · tokens``, and their labels.

    """
    flat = labels.flatten()
    found = (flat != IGNORED).nonzero()[:, 0]
    room = -(-len(flat) // 4)
    room = room if len(found) <= room else len(flat)
    positions = torch.zeros(room, dtype=torch.int64)
    positions[: len(found)] = found
    told = torch.full((room,), IGNORED)
    told[: len(found)] = flat[found]
    return positions, told


def masked_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross entropies in nats where a label is given; `labelled` says how many there are.

    Args:
        scores: ``(positions, vocabulary)``.
        labels: ``(positions,)``.

    """
    return F.cross_entropy(scores.float(), labels, ignore_index=IGNORED, reduction="sum")


def labelled(labels: Tensor) -> Tensor:
    """How many positions have a label, in the type of a loss."""
    return (labels != IGNORED).sum().float()
