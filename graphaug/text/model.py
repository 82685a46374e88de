"""An encoder that is trained, with its tokenizer and its head, and sentences as the ids of its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from graphaug.errors import InvalidOption
from graphaug.text.config import SimCSEConfig
from graphaug.text.corpus.batches import widths
from graphaug.text.corpus.mlm import MaskedHead, masked_head
from graphaug.text.corpus.tokenizer import train_wordpiece
from graphaug.text.encoders.encoder import longest
from graphaug.text.encoders.load import load_trainable, save_encoder
from graphaug.text.encoders.models import from_config
from graphaug.text.encoders.pretrained import with_dropout, without_dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Model:
    """What is trained, and its tokenizer; the head is that of masked language."""

    encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: MaskedHead | None

    def save(self, path: Path, **notes: Any) -> None:
        """Write it as an encoder that ``load_encoder`` reads, with its head if it has one."""
        with self.head.whole(self.encoder) if self.head is not None else nullcontext(self.encoder) as whole:
            save_encoder(path, whole, self.tokenizer, notes=notes)

    def state(self) -> dict[str, Tensor]:
        """The weights, on the CPU."""
        state = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        if self.head is not None:
            state |= {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take weights that `state` gave."""
        parts: dict[str, nn.Module | None] = {"encoder": self.encoder, "head": self.head}
        for prefix, part in parts.items():
            if part is not None:
                start = prefix + "."
                part.load_state_dict(
                    {n.removeprefix(start): t for n, t in state.items() if n.startswith(start)}
                )


def build(config: SimCSEConfig, lines: Sequence[str]) -> Model:
    """The encoder with its tokenizer that a configuration names; ``from_config`` trains the tokenizer on the lines.

    Raises:
        EncoderError: what ``load_trainable`` raises.
        ConfigError: no such size.

    """
    if config.from_config is not None:
        tokenizer = train_wordpiece(lines, config.vocab_size)
        encoder = from_config(config.from_config, tokenizer)
        if not config.dropout:
            # The layers have read their probabilities by now.
            kept = without_dropout(encoder.config)
            encoder = type(encoder)(encoder.config, add_pooling_layer=False)
            with_dropout(encoder.config, kept)
        return Model(encoder, tokenizer, masked_head(encoder) if config.mlm else None)
    assert config.encoder is not None
    return Model(*load_trainable(config.encoder, mlm=config.mlm, dropout=config.dropout))


def sizes(config: SimCSEConfig) -> tuple[int, ...]:
    """The lengths that batches are padded to: four at most, so that a compiled step is compiled a handful of times."""
    return widths(config.max_length, 8 * math.ceil(config.max_length / 32))


def tokenized(model: Model, lines: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
    """Ids of the tokens of every sentence, and how many sentences were truncated.

    Raises:
        InvalidOption: the model or its tokenizer cannot take so many tokens.

    """
    limit = longest(model.encoder, model.tokenizer)
    if max_length > limit:
        raise InvalidOption(f"max_length must be from 3 to {limit} for this encoder, not {max_length}.")
    rows: list[list[int]] = []
    truncated = 0
    for start in range(0, len(lines), 10_000):
        batch = model.tokenizer(list(lines[start : start + 10_000]), truncation=True, max_length=max_length)
        rows += batch["input_ids"]
        truncated += sum(bool(encoding.overflowing) for encoding in batch.encodings or ())
    return rows, truncated
