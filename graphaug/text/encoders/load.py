"""Encoders from files: a run, a transformers model, a sentence-transformers model, each told by what is there."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from graphaug.contrastive.runs.files import PART
from graphaug.errors import EncoderError, InvalidOption, did_you_mean
from graphaug.text.corpus.masking import check_mask
from graphaug.text.corpus.mlm import MaskedHead, no_masked_language
from graphaug.text.encoders.encoder import (
    Encoder,
    TextEncoder,
    check_first_position,
    check_vocabulary,
    first_line,
)
from graphaug.text.encoders.pooling import AT_FIRST, check_pooler
from graphaug.text.encoders.sentence_transformer import SentenceTransformerEncoder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

RUN = "encoder"
"""The directory in a run's directory that holds its encoder, in transformers' format."""

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
    name = _resolved(name)
    modules = _json(name, "modules.json", list)
    if modules is not None and pooler is None:
        return SentenceTransformerEncoder(name, modules, max_length, batch_size, place)
    folder = str(modules[0].get("path", "")) if modules else ""
    saved = _json(name, SETTINGS, dict, folder) or {}
    own = (
        (_json(name, "sentence_bert_config.json", dict, folder) or {}).get("max_seq_length")
        if modules
        else None
    )
    chosen = pooler or check_pooler(saved.get("pooler", DEFAULT))
    model, tokenizer, _ = _transformers(name, folder, chosen)
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

    name = _resolved(name)
    modules = _json(name, "modules.json", list)
    folder = str(modules[0].get("path", "")) if modules else ""
    auto = AutoModelForMaskedLM if mlm else None
    # Weights saved in half precision are trained in single: the optimizer's steps would be lost in their rounding.
    model, tokenizer, unpooled = _transformers(name, folder, DEFAULT, auto, dropout, dtype=torch.float32)
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


def _directory(path: Path) -> Path:
    """The directory with the model's files for what was named."""
    if not path.is_dir():
        raise EncoderError(f"{str(path)!r} is a file: name the directory that holds the model's files.")
    if (path / "modules.json").exists() or (path / "config.json").exists():
        return path
    if (path / RUN / "config.json").exists():
        return path / RUN
    if (path / "encoder.safetensors").exists():
        raise EncoderError(f"{str(path)!r} holds a run on images: its encoder does not read text.")
    below = sorted(p.parent for p in path.glob("*/config.json"))
    hint = f" Did you mean {str(below[0])!r}?" if below else ""
    raise EncoderError(
        f"{str(path)!r} holds no encoder: neither modules.json (sentence-transformers), nor config.json "
        f"(transformers), nor {RUN}/config.json (a run).{hint}"
    )


def without_dropout(config: PretrainedConfig) -> dict[str, float]:
    """Set every dropout probability of a configuration to 0, also where it is a ``pdrop`` or ``layerdrop``.

    Returns:
        What they were. Layers read them when they are made; `with_dropout` then brings them back, so that whoever loads
        what was saved has dropout again.

    """
    found = {key: value for key, value in config.to_dict().items() if "drop" in key}
    kept = {k: v for k, v in found.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    for key in kept:
        setattr(config, key, 0.0)
    return kept


def with_dropout(config: PretrainedConfig, kept: Mapping[str, float]) -> None:
    """Give a configuration the probabilities back that `without_dropout` took; existing layers stay as they are."""
    for key, value in kept.items():
        setattr(config, key, value)


def _resolved(name: str | os.PathLike[str]) -> str:
    """The directory with the model's files, or its name on the hub."""
    name = os.path.expanduser(os.fspath(name))
    if os.path.exists(name):
        return str(_directory(Path(name)))
    if not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name):
        raise EncoderError(f"{name!r} does not exist.{_neighbours(Path(name))}")
    # a name on the hub may have one slash as well, but nobody keeps a run in a directory called like its owner
    if any(
        Path(name).parent.joinpath(file).exists() for file in ("config.yaml", "config.json") if "/" in name
    ):
        raise EncoderError(f"{name!r} does not exist.{_neighbours(Path(name))}")
    return name


def _transformers(
    name: str, folder: str, pooler: str, auto: Any = None, dropout: bool = True, **more: Any
) -> tuple[Any, PreTrainedTokenizerBase, bool]:
    """The encoder, its tokenizer, and whether it lacks weights of its pooling layer; none of its own code is run."""
    from transformers import AutoConfig, AutoModel

    options: dict[str, Any] = {"subfolder": folder, "trust_remote_code": False}
    with _loading(name):
        config = AutoConfig.from_pretrained(name, **options)
    if getattr(config, "is_encoder_decoder", False):
        raise EncoderError(
            f"{name!r} is an encoder with a decoder ({config.model_type}), whose last hidden states are the decoder's: "
            "use an encoder, such as BERT or RoBERTa."
        )
    if auto is not None:
        tokenizer = _tokenizer(name, options)
        check_mask(tokenizer)
        if type(config) not in auto._model_mapping:
            raise no_masked_language(config.model_type)
    kept = {} if dropout else without_dropout(config)
    with _loading(name):
        model, loaded = (auto or AutoModel).from_pretrained(
            name, config=config, weights_only=True, output_loading_info=True, **options, **more
        )
    with_dropout(model.config, kept)
    missing = sorted(loaded["missing_keys"])
    if auto is not None:  # a head that is missing is to be trained
        start = model.base_model_prefix + "."
        missing = [key.removeprefix(start) for key in missing if key.startswith(start)]
    pooling = [key for key in missing if key.startswith("pooler.")]
    if pooling and pooler == "cls":
        raise EncoderError(
            f"{name!r} has no weights for its pooling layer, which would be random: use --pooler cls_before_pooler."
        )
    if len(missing) > len(pooling) or loaded["mismatched_keys"]:
        odd = [key for key in missing if key not in pooling] or sorted(map(str, loaded["mismatched_keys"]))
        raise EncoderError(
            f"the weights of {name!r} do not fit its configuration: {len(odd)} are missing or of another shape, "
            f"first {odd[0]!r}."
        )
    return model, _tokenizer(name, options) if auto is None else tokenizer, bool(pooling)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """What transformers raises is an error of ours; of weights that are missing it does not report."""
    try:
        with _unreported():
            yield
    except Exception as error:  # transformers has no class of its own for this
        raise _not_loaded(name, error) from error


def _not_loaded(name: str, error: Exception) -> EncoderError:
    hub = ""
    if not os.path.isdir(name):
        near = _neighbours(Path(name))
        hub = f" It is no directory here, so it was looked for on the hub.{near}"
    return EncoderError(f"{name!r} is no model that transformers can load.{hub} {first_line(error)}")


def _tokenizer(name: str, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # as in `_loading`
        raise EncoderError(f"{name!r} has no tokenizer that can be loaded: {first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # transformers 5 makes one without words where there are no files, and every word is [UNK] then.
        raise EncoderError(
            f"{name!r} has no tokenizer: save the one that the model was trained with beside it."
        )
    return tokenizer


@contextmanager
def _unreported() -> Iterator[None]:
    """Without transformers' report of weights that are missing: what matters of it is an error here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


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


def _json(name: str, file: str, kind: type, folder: str = "") -> Any:
    """Content of a JSON file of a model, in a directory or on the hub; None where there is none or nothing in it."""
    path = Path(name, folder, file)
    if not os.path.isdir(name):
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(name, f"{folder}/{file}".lstrip("/")))
        except LocalEntryNotFoundError as error:  # no network, and the file is not in the cache
            if not isinstance(try_to_load_from_cache(name, f"{folder}/config.json".lstrip("/")), str):
                raise _not_loaded(
                    name, error
                ) from error  # nor is the model: asking for more would only take time
            return None
        except (
            EntryNotFoundError,
            OSError,
            ValueError,
        ):  # whether the model is there at all is told on loading it
            return None
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EncoderError(f"{str(path)!r} is no JSON: {error}.") from error
    items = content if isinstance(content, list) else []
    if not isinstance(content, kind) or not all(isinstance(item, dict) for item in items):
        raise EncoderError(f"{str(path)!r} is not what it should be: {str(content)[:60]}.")
    return content or None


def _neighbours(path: Path) -> str:
    parent = path.parent
    names = {p.name: str(p) for p in parent.iterdir() if p.is_dir()} if parent.is_dir() else {}
    return did_you_mean(path.name, names)
