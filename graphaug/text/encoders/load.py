"""Encoders from files: a run, a transformers model, a sentence-transformers model, each told by what is there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from graphaug.contrastive.runs.files import PART
from graphaug.errors import EncoderError, InvalidOption
from graphaug.text.corpus.mlm import MaskedHead
from graphaug.text.encoders.encoder import (
    Encoder,
    TextEncoder,
    check_first_position,
    check_vocabulary,
    first_line,
)
from graphaug.text.encoders.files import read_json, resolved
from graphaug.text.encoders.pooling import AT_FIRST, check_pooler
from graphaug.text.encoders.pretrained import from_transformers
from graphaug.text.encoders.sentence_transformer import SentenceTransformerEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SETTINGS = "graphaug.json"
"""Beside a saved encoder's files: the pooler that it was trained for."""

DEFAULT = "cls_before_pooler"


def load_encoder(
    name: str | os.PathLike[str],
    pooler: str | None = None,
    *,
    max_length: int | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> Encoder:
    """Load an encoder of sentences with its tokenizer.

    Args:
        name: a directory, or a model's name on the hub. A directory with ``modules.json`` is a sentence-transformers
            model, one with ``config.json`` a transformers model, one with ``encoder/config.json`` a run.
        pooler: one of ``graphaug.text.encoders.pooling.POOLERS``. By default a sentence-transformers model runs with
            its own modules, a run with the pooler that it was trained with, and a transformers model with
            ``cls_before_pooler``. With a pooler, of a sentence-transformers model the transformer alone is used.
        max_length: tokens of a sentence, special ones included; by default the model's.
        batch_size: sentences a forward.
        device: by default a GPU if there is one.

    Raises:
        InvalidOption: no such pooler, or a size or length outside its domain.
        EncoderError: nothing of that name, no encoder of text in it, weights that do not fit its configuration, a
            pooling layer that is not among its weights, or a tokenizer that does not match.

    """
    if pooler is not None:
        check_pooler(pooler)
    if batch_size < 1:
        raise InvalidOption(f"batch_size must be at least 1, not {batch_size}.")
    place = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = resolved(name)
    modules = read_json(name, "modules.json", list)
    if modules is not None and pooler is None:
        return SentenceTransformerEncoder(name, modules, max_length, batch_size, place)
    folder = str(modules[0].get("path", "")) if modules else ""
    saved = read_json(name, SETTINGS, dict, folder) or {}
    own = (
        (read_json(name, "sentence_bert_config.json", dict, folder) or {}).get("max_seq_length")
        if modules
        else None
    )
    chosen = pooler or check_pooler(saved.get("pooler", DEFAULT))
    model, tokenizer, _ = from_transformers(name, folder, chosen)
    encoder = TextEncoder(
        model.to(place),
        tokenizer,
        chosen,
        max_length=own if max_length is None else max_length,
        batch_size=batch_size,
    )
    _probe(encoder, name)
    return encoder


def load_trainable(
    name: str | os.PathLike[str], *, mlm: bool = False, dropout: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, MaskedHead | None]:
    """Load an encoder to train it, with its tokenizer.

    A pooling layer of the encoder's own has no gradient in the objectives here: it is frozen, and kept if it was saved.

    Args:
        name: as for ``load_encoder``; of a sentence-transformers model, its transformer is taken.
        mlm: also load the head for masked language; one that was never saved begins with random weights.
        dropout: without it, every dropout probability of the model is 0; its configuration, which is saved with it,
            keeps what it has.

    Raises:
        EncoderError: as ``load_encoder``; or with ``mlm``, a kind of model that has no such head, or a tokenizer
            without a mask token.

    """
    from transformers import AutoModelForMaskedLM

    name = resolved(name)
    modules = read_json(name, "modules.json", list)
    folder = str(modules[0].get("path", "")) if modules else ""
    auto = AutoModelForMaskedLM if mlm else None
    # Weights saved in half precision are trained in single: the optimizer's steps would be lost in their rounding.
    model, tokenizer, unpooled = from_transformers(name, folder, DEFAULT, auto, dropout, dtype=torch.float32)
    check_vocabulary(model, tokenizer)
    encoder, head = (model.base_model, MaskedHead(model)) if mlm else (model, None)
    check_first_position(encoder, tokenizer, name)
    if unpooled:
        encoder.pooler = None  # random weights would be saved with it, as if they meant something
    for parameter, value in encoder.named_parameters():
        if parameter.startswith("pooler."):
            value.requires_grad_(False)
    return encoder, tokenizer, head


def save_encoder(
    path: str | os.PathLike[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pooler: str = DEFAULT,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write an encoder with its tokenizer in transformers' format, all of it or nothing.

    Args:
        path: of a directory; one that is there is replaced. ``RUN/encoder`` makes ``RUN`` a run for ``load_encoder``.
        model: a transformers model; of a rewritten one, ``graphaug.strip`` gives it.
        tokenizer: for it.
        pooler: that it is meant to be used with.
        notes: plain values that are written beside the pooler, into ``graphaug.json``.

    Raises:
        EncoderError: not a transformers model, or ``path`` cannot be written.
        InvalidOption: no such pooler.

    """
    check_pooler(pooler)
    if not hasattr(model, "save_pretrained"):
        raise EncoderError(
            f"{type(model).__name__} is no transformers model: of a rewritten one, save graphaug.strip(model)."
        )
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=PART) as temporary:
            new = Path(temporary) / "new"
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
            settings = json.dumps({"pooler": pooler, **(notes or {})}, indent=2)
            (new / SETTINGS).write_text(settings + "\n", encoding="utf-8")
            if path.exists():
                path.rename(Path(temporary) / "old")
            new.rename(path)
    except (OSError, SafetensorError) as error:  # a full disk is the latter where it is met in the weights
        reason = getattr(error, "strerror", None) or error
        raise EncoderError(f"{str(path)!r} cannot be written: {reason}.") from error


def notes_of(path: Path) -> dict[str, Any]:
    """The notes of a saved encoder, its pooler among them; none where there are no readable ones."""
    try:
        found = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _probe(encoder: TextEncoder, name: str) -> None:
    """Encode a sentence: an image model or a sequence-to-sequence model loads, and fails here."""
    try:
        encoder.encode(["a sentence"])
        if encoder.pooler in AT_FIRST:
            check_first_position(encoder.model, encoder.tokenizer, name)
    except EncoderError as error:
        said = str(error)
        raise EncoderError(said if said.startswith(repr(name)) else f"{name!r}: {said}") from error
    except Exception as error:  # a model may raise anything when it is called with what it does not know
        kind = type(encoder.model).__name__
        raise EncoderError(
            f"{name!r} is no encoder of text: {kind} cannot run on token ids. {first_line(error)}"
        ) from error
    if encoder.truncated is not None:
        encoder.truncated = 0  # the sentence was ours
