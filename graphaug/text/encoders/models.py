"""Encoders with random weights, of sizes that have a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from graphaug.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerBase


class Size(NamedTuple):
    """Blocks, width in features, and attention heads; the feed-forward layers are four times as wide."""

    blocks: int
    width: int
    heads: int


SIZES = {
    "bert-tiny": Size(2, 128, 2),
    "bert-mini": Size(4, 256, 4),
    "bert-small": Size(4, 512, 8),
    "bert-medium": Size(8, 512, 8),
    "bert-base": Size(12, 768, 12),
    "bert-large": Size(24, 1024, 16),
}
"""BERT's sizes: base and large of Devlin et al. (2019), the smaller ones of Turc et al. (2019, arXiv:1908.08962)."""


def from_config(name: str, tokenizer: PreTrainedTokenizerBase, **overrides: Any) -> BertModel:
    """Build a BERT encoder of a named size for a tokenizer, with random weights from torch's global generator.

    Its embedding has a row for every token, its positions are the tokenizer's ``model_max_length`` (512 if that is not
    set). It has no pooling layer, which nothing would have trained.

    Args:
        name: one of ``SIZES``.
        tokenizer: whose vocabulary and padding token it is for.
        overrides: further settings of ``transformers.BertConfig``, such as ``num_hidden_layers=6``.

    Raises:
        ConfigError: no size of that name, or a setting that ``BertConfig`` does not have.

    """
    from transformers import BertConfig, BertModel

    if name not in SIZES:
        raise ConfigError(
            f"no size is called {name!r}.{did_you_mean(name, SIZES)} There are {', '.join(SIZES)}."
        )
    known = BertConfig().to_dict()
    for key in overrides:
        if key not in known:
            raise ConfigError(f"BertConfig has no setting {key!r}.{did_you_mean(key, known)}")
    size = SIZES[name]
    longest = tokenizer.model_max_length
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.width,
        "num_hidden_layers": size.blocks,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
        # Where a tokenizer has no limit, transformers puts a number of thirty digits.
        "max_position_embeddings": longest if longest < 1_000_000 else 512,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return BertModel(BertConfig(**{**settings, **overrides}), add_pooling_layer=False)
