"""An encoder of text as ``graphaug sites`` and ``graphaug draw`` look at it: what ``graphaug simcse`` would train."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from graphaug.errors import EncoderError, meant, nearest
from graphaug.text.simcse import SimCSE

PREFIX = "encoder:"
"""What stands before the name of an encoder, where models of images can be named too."""

_MISSPELT = 0.85
"""How like a size a name is that is not looked for on the hub, by difflib; bert-base-uncased has 0.69."""

ROWS, TOKENS = 2, 16
"""Of the example."""


def is_encoder(name: str) -> bool:
    """Whether a name says an encoder of text."""
    return name.startswith(PREFIX) and name != PREFIX


def is_meant(name: str) -> bool:
    """Whether a name without `PREFIX` looks like that of an encoder: a size, a directory, a user's name on the hub."""
    from graphaug.text.encoders.models import SIZES

    return (
        name in SIZES
        or (bool(name) and Path(name).is_dir())
        or re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    )


def encoder_in_training(name: str) -> tuple[SimCSE, dict[str, Tensor]]:
    """The encoder with SimCSE's head, and an example of its inputs, ``(ROWS, TOKENS)`` ids and their mask.

    Args:
        name: ``encoder:SIZE``, with random weights; or ``encoder:`` and a directory or a name on the hub.

    Raises:
        EncoderError: nothing of that name, or what cannot be loaded.

    """
    from graphaug.text.config import SimCSEConfig
    from graphaug.text.encoders.load import load_trainable
    from graphaug.text.encoders.models import SIZES, from_config
    from graphaug.text.sts.report import quiet

    quiet()
    name = name.removeprefix(PREFIX)
    if name in SIZES:
        from graphaug.text.corpus.tokenizer import train_wordpiece

        words = train_wordpiece(["any words: a run's own are learned from its text"])
        encoder: nn.Module = from_config(name, words, vocab_size=SimCSEConfig().vocab_size)
    elif not Path(name).exists() and (sizes := nearest(name, SIZES, limit=1, cutoff=_MISSPELT)):
        raise EncoderError(f"no encoder is called {name!r}.{meant(PREFIX + size for size in sizes)}")
    else:
        encoder, _, _ = load_trainable(name)
    ones = torch.ones(ROWS, TOKENS, dtype=torch.long)
    return SimCSE(encoder), {"input_ids": ones, "attention_mask": ones.clone()}
