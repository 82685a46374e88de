"""Sentences in, vectors out: an encoder and its tokenizer as one function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from graphaug.capture.state import evaluating
from graphaug.errors import EncoderError, InvalidOption
from graphaug.text.encoders.pooling import POOLERS, check_pooler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SMALL = 0.9
"""A vocabulary with less than this share of the model's tokens is another one's, if its padding token is too."""

FALLBACK = 512
"""Tokens at most, for a model with neither a number of positions nor a tokenizer that knows its limit."""


class Encoder(Protocol):
    """What can be evaluated. ``pooler`` and ``max_length`` (tokens) are for the record."""

    pooler: str
    max_length: int | None
    truncated: int | None

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Return ``(N, D)`` float32 vectors on the CPU, in the order of the sentences."""


class TextEncoder:
    """A transformers encoder with its tokenizer; also one in the middle of its training.

    Args:
        model: gives ``last_hidden_state`` of shape ``(rows, tokens, width)``; it stays on its device.
        tokenizer: for it.
        pooler: one of ``graphaug.text.encoders.pooling.POOLERS``.
        max_length: tokens of a sentence, special ones included; longer sentences are truncated. The default is what
            model and tokenizer can take.
        batch_size: sentences a forward.

    Attributes:
        truncated: how many of the sentences encoded so far were truncated; None if the tokenizer does not tell.

    Raises:
        InvalidOption: no such pooler, a batch size below 1, or a length that the model or the tokenizer cannot take.
        EncoderError: the tokenizer has tokens that the model has no embedding for, or nothing to pad with.

    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        pooler: str = "cls_before_pooler",
        *,
        max_length: int | None = None,
        batch_size: int = 64,
    ) -> None:
        self.pooler = check_pooler(pooler)
        if batch_size < 1:
            raise InvalidOption(f"batch_size must be at least 1, not {batch_size}.")
        check_vocabulary(model, tokenizer)
        if tokenizer.pad_token is None and tokenizer.eos_token is None:
            raise EncoderError("the tokenizer has no padding token, and no end token to pad with.")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.limit = longest(model, tokenizer)
        least = tokenizer.num_special_tokens_to_add() + 1
        if max_length is not None and not least <= max_length <= self.limit:
            raise InvalidOption(
                f"max_length must be from {least} to {self.limit} for this model, not {max_length}."
            )
        self.max_length: int | None = self.limit if max_length is None else max_length
        self.truncated: int | None = 0 if tokenizer.is_fast else None

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Encode in eval mode, without gradients, in batches of similar length.

        The modes of the model's modules are as before afterwards.

        Returns:
            ``(N, D)`` float32 vectors on the CPU, in the order of the sentences.

        Raises:
            EncoderError: the model is no encoder, lacks what the pooler needs, or gives vectors that are not finite.

        """
        if not sentences:
            raise InvalidOption("there are no sentences to encode.")
        rows = self._tokens(sentences)
        # Longest first: what does not fit into memory fails at once.
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
        with torch.no_grad(), evaluating(self.model):
            chunks = [
                self._forward([rows[i] for i in order[start : start + self.batch_size]])
                for start in range(0, len(order), self.batch_size)
            ]
        vectors = torch.empty(len(rows), chunks[0].shape[1])
        vectors[torch.tensor(order)] = torch.cat(chunks)
        if not torch.isfinite(vectors).all():
            raise EncoderError(
                "the encoder's vectors are not all finite: it has diverged, or its weights are broken."
            )
        return vectors

    def _tokens(self, sentences: Sequence[str]) -> list[dict[str, list[int]]]:
        batch = self.tokenizer(
            list(sentences), truncation=True, max_length=self.max_length, return_attention_mask=True
        )
        if self.truncated is not None:
            self.truncated += sum(bool(encoding.overflowing) for encoding in batch.encodings or ())
        columns = dict(batch)
        return [{name: columns[name][i] for name in columns} for i in range(len(sentences))]

    def _forward(self, rows: list[dict[str, list[int]]]) -> Tensor:
        """Pad one batch, on the right: the first position has to be the first token."""
        width = max(1, max(len(row["input_ids"]) for row in rows))
        fill = {"input_ids": padding_id(self.tokenizer), "token_type_ids": self.tokenizer.pad_token_type_id}
        device = next(self.model.parameters()).device
        batch = {
            name: torch.tensor(
                [row[name] + [fill.get(name, 0)] * (width - len(row[name])) for row in rows], device=device
            )
            for name in rows[0]
        }
        options = {"output_hidden_states": True} if self.pooler == "first-last-mean" else {}
        outputs: Any = self.model(**batch, **options)
        return POOLERS[self.pooler](outputs, batch["attention_mask"]).float().cpu()


def check_vocabulary(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``EncoderError`` if the two do not belong together.

    That is told by a token's id beyond the model's embedding; or by another padding token than the model's in a
    vocabulary much smaller than the model's. One of the two alone occurs in pairs that belong together: embeddings are
    padded to round numbers, and padding tokens added later.
    """
    embedding = _embedding(model)
    if embedding is None:
        return
    token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if number >= embedding.num_embeddings:
        raise EncoderError(
            f"the tokenizer does not match the model: it has tokens up to {number} ({token!r}), and the model's "
            f"embedding has {embedding.num_embeddings} rows. Load the tokenizer that the model was trained with, or "
            f"call model.resize_token_embeddings({number + 1}) and train it."
        )
    config = getattr(model, "config", None)
    pad = getattr(config, "pad_token_id", None)
    words = getattr(config, "vocab_size", None)
    if not isinstance(pad, int) or not isinstance(words, int) or tokenizer.pad_token_id is None:
        return
    if pad != tokenizer.pad_token_id and len(tokenizer) < SMALL * words:
        raise EncoderError(
            f"the tokenizer does not match the model: it has {len(tokenizer)} tokens and pads with number "
            f"{tokenizer.pad_token_id}, and the model has {words} and pads with number {pad}. Load the tokenizer that "
            "the model was trained with."
        )


def check_first_position(model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ``EncoderError`` if the vector of the first position is the same whatever follows, as a decoder's is."""
    texts = ["a", "a sentence of some more words"]
    rows = [tokenizer(text, truncation=True, max_length=8)["input_ids"] for text in texts]
    device = next(model.parameters()).device
    if device.type == "meta" or rows[0][:1] != rows[1][:1] or len(rows[0]) == len(rows[1]):
        return
    with torch.no_grad(), evaluating(model):
        first, second = (
            model(
                input_ids=torch.tensor([ids], device=device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64, device=device),
            ).last_hidden_state[0, 0].float()
            for ids in rows
        )  # fmt: skip
    if torch.allclose(first, second, rtol=1e-5, atol=1e-6 * float(first.abs().max())):
        raise EncoderError(
            f"{name!r}: the first position of {type(model).__name__} sees nothing of the sentence behind it, as in a "
            "decoder, so that its vector says nothing. Use an encoder, such as BERT or RoBERTa; to score this model, "
            "take --pooler mean."
        )


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token to pad with: the padding token, or the end token of a tokenizer without one."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token is not None else tokenizer.eos_token_id)


def ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that open and close a sentence."""
    known = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    return frozenset(int(token) for token in known if token is not None)


def longest(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens of a sentence model and tokenizer can take, special tokens included."""
    limits = [tokenizer.model_max_length]
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions)
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding index.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    limit = min(limits)
    return limit if limit < 1_000_000 else FALLBACK  # transformers' "no limit" has thirty digits


def first_line(error: Exception) -> str:
    """Return the first line of another library's message, for use in one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _embedding(model: nn.Module) -> nn.Embedding | None:
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Embedding) else None
