"""From the vectors of a sentence's tokens to the vector of the sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from graphaug.errors import EncoderError, InvalidOption, did_you_mean


def cls(outputs: Any, mask: Tensor) -> Tensor:
    """The first position behind the model's own pooling layer: linear and tanh in BERT."""
    pooled = getattr(outputs, "pooler_output", None)
    if pooled is None:
        raise EncoderError(
            "pooler 'cls' needs a pooling layer, and this model has none: use 'cls_before_pooler'."
        )
    assert isinstance(pooled, Tensor)
    return pooled


def cls_before_pooler(outputs: Any, mask: Tensor) -> Tensor:
    """The first position of the last block's output, as SimCSE evaluates unsupervised encoders."""
    return _last(outputs)[:, 0]


def mean(outputs: Any, mask: Tensor) -> Tensor:
    """The mean of the last block's output over the sentence's tokens, padding left out."""
    return _mean(_last(outputs), mask)


def first_last_mean(outputs: Any, mask: Tensor) -> Tensor:
    """The mean over tokens of the mean of the first and the last block's outputs.

    The first block is ``hidden_states[1]``; 0 is the embeddings, which SimCSE's code took before it was corrected
    (princeton-nlp/SimCSE, issue 133).
    """
    return _mean((outputs.hidden_states[1] + _last(outputs)) / 2, mask)


POOLERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "cls": cls,
    "cls_before_pooler": cls_before_pooler,
    "mean": mean,
    "first-last-mean": first_last_mean,
}
"""Name → function of a transformers output and the ``(rows, tokens)`` mask, to ``(rows, width)``."""

AT_FIRST = ("cls", "cls_before_pooler")
"""Poolers that look at the first position alone, which has to see the whole sentence."""

ALIASES = {"avg": "mean", "avg_first_last": "first-last-mean", "first_last_mean": "first-last-mean"}
"""What others call them; named in the error, not accepted."""


def check_pooler(name: str) -> str:
    """Return ``name``; raise ``InvalidOption`` unless it is a pooler's."""
    if name not in POOLERS:
        meant = f" Did you mean {ALIASES[name]!r}?" if name in ALIASES else did_you_mean(name, POOLERS)
        raise InvalidOption(f"no pooler is called {name!r}.{meant} There are {', '.join(POOLERS)}.")
    return name


def _last(outputs: Any) -> Tensor:
    last = getattr(outputs, "last_hidden_state", None)
    if not isinstance(last, Tensor) or last.ndim != 3:
        raise EncoderError(
            "the model is no encoder of text: it gives no last_hidden_state of shape (rows, tokens, width)."
        )
    return last


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weight = mask.unsqueeze(-1).to(states.dtype)
    # A sentence without a single token, which tokenizers without [CLS] make of an empty one, is the zero vector.
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)
