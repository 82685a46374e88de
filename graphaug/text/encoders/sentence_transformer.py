"""A sentence-transformers model as an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from graphaug.errors import EncoderError, InvalidOption
from graphaug.text.encoders.encoder import first_line


class SentenceTransformerEncoder:
    """A sentence-transformers model, with its own modules, prompts and length."""

    def __init__(
        self, name: str, modules: Sequence[Any], max_length: int | None, batch_size: int, device: str
    ) -> None:
        for module in modules:
            # The class is imported by this name.
            if not str(module.get("type", "")).startswith("sentence_transformers."):
                raise EncoderError(
                    f"{name!r} has a module of its own, {module.get('type')!r}, which would run its code. With "
                    f"--pooler (pooler=), its transformer alone is used."
                )
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as missing:
            raise EncoderError(
                f"{name!r} is a sentence-transformers model, which needs that library: pip install "
                f"sentence-transformers. With --pooler (pooler=), its transformer alone is used, without the library."
            ) from missing
        try:
            self.model = SentenceTransformer(name, device=device)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise EncoderError(
                f"{name!r} cannot be loaded by sentence-transformers: {first_line(error)}"
            ) from error
        if max_length is not None:
            limit = self.model.max_seq_length
            if not 3 <= max_length <= (limit or max_length):
                raise InvalidOption(f"max_length must be from 3 to {limit} for {name!r}, not {max_length}.")
            self.model.max_seq_length = max_length
        self.pooler = "its own"
        self.max_length = self.model.max_seq_length
        self.truncated: int | None = None  # the library does not tell
        self.batch_size = batch_size

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Return ``(N, D)`` float32 vectors on the CPU, in the order of the sentences."""
        vectors = self.model.encode(
            list(sentences), batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False
        )
        return vectors.float().cpu()
