"""BERT's masked-language objective: which tokens are hidden, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphaug.errors import EncoderError, InvalidOption

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a position that no loss is taken at, as for ``torch.nn.functional.cross_entropy``."""


def check_mask(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``EncoderError`` if there is no mask token."""
    if tokenizer.mask_token_id is None:
        raise EncoderError(
            "the tokenizer has no mask token, which the masked-language objective needs: use an encoder that was "
            "trained with it, such as BERT or RoBERTa, or leave the objective out."
        )


class Masking:
    """Draws masked batches: of the tokens chosen, 80 % become the mask, 10 % a random token, 10 % stay (Devlin et al.).

    Each token is chosen by itself with probability ``rate``; special tokens and padding never are.

    Args:
        tokenizer: with a mask token.
        rate: probability that a token is chosen.

    Raises:
        EncoderError: the tokenizer has no mask token.
        InvalidOption: ``rate`` is not in (0, 1].

    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rate: float = 0.15) -> None:
        check_mask(tokenizer)
        if not 0 < rate <= 1:
            raise InvalidOption(f"the rate of masked tokens must be in (0, 1], not {rate!r}.")
        self.rate = rate
        self.mask_id = int(tokenizer.mask_token_id)
        self.special = torch.tensor(sorted(tokenizer.all_special_ids))
        self.words = torch.tensor(
            sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
        )

    def __call__(self, input_ids: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Mask a batch; the input is left as it is.

        Args:
            input_ids: ``(rows, tokens)``, on the CPU.
            generator: of the draws.

        Returns:
            Masked ids, and labels: the original id where a token was chosen, ``IGNORED`` elsewhere.

        """
        uniform = torch.rand(2, *input_ids.shape, generator=generator)
        chosen = (uniform[0] < self.rate) & ~torch.isin(input_ids, self.special)
        hidden, replaced = chosen & (uniform[1] < 0.8), chosen & (uniform[1] >= 0.9)
        drawn = self.words[torch.randint(len(self.words), input_ids.shape, generator=generator)]
        masked = input_ids.masked_fill(hidden, self.mask_id)
        return torch.where(replaced, drawn, masked), input_ids.masked_fill(~chosen, IGNORED)
