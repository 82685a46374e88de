"""Models and tokenizers from transformers' files; none of the code beside them is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from graphaug.errors import EncoderError
from graphaug.text.corpus.masking import check_mask
from graphaug.text.corpus.mlm import no_masked_language
from graphaug.text.encoders.encoder import first_line
from graphaug.text.encoders.files import not_loaded

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def from_transformers(
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


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """What transformers raises is an error of ours; of weights that are missing it does not report."""
    try:
        with _unreported():
            yield
    except Exception as error:  # transformers has no class of its own for this
        raise not_loaded(name, error) from error


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
