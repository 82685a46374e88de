"""A WordPiece tokenizer trained on given text: the same text gives the same vocabulary, ids included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from graphaug.errors import DataError, InvalidOption

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
"""BERT's special tokens; their ids are 0 to 4."""

PREFIX = "##"
PRIVATE = 0xF0000
"""The first code point of Unicode's private plane 15, where text has no characters."""


def train_wordpiece(
    lines: Iterable[str],
    vocab_size: int = 8000,
    *,
    lowercase: bool = True,
    min_frequency: int = 2,
    alphabet: int = 1000,
    max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Train a WordPiece tokenizer with BERT's normalisation, special tokens and ``[CLS] … [SEP]``.

    The vocabulary is grown by merging the most frequent pair of pieces, as ``tokenizers``' own ``WordPieceTrainer``
    does; that one numbers the pieces in the order of a hash map, so that ids, and where counts are equal pieces too,
    differ between runs (huggingface/tokenizers, issue 1794).

    Args:
        lines: sentences.
        vocab_size: pieces at most, special tokens included; a small text may give fewer.
        lowercase: and strip accents.
        min_frequency: of a pair that is merged.
        alphabet: characters that are kept, the most frequent ones; a word with another one is ``[UNK]``.
        max_length: the tokenizer's ``model_max_length``, in tokens.

    Raises:
        DataError: no words in the text.
        InvalidOption: ``vocab_size`` does not hold the special tokens and every character.

    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    words: Counter[str] = Counter()
    for line in lines:
        split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(line))
        words.update(word for word, _ in split)
    vocabulary = _vocabulary(words, vocab_size, min_frequency, alphabet)

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(PREFIX)
    cls, sep = SPECIAL["cls_token"], SPECIAL["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    settings: dict[str, Any] = {"model_max_length": max_length, **SPECIAL}
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)
    return made


def _vocabulary(words: Counter[str], size: int, min_frequency: int, alphabet: int) -> dict[str, int]:
    """Piece → id: special tokens, characters at the beginning of a word, characters within one, merges by rank."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    kept = sorted(sorted(counts, key=lambda c: (-counts[c], c))[:alphabet])
    if not kept:
        raise DataError("a tokenizer needs text to be trained on, and there are no words in this one.")
    # A character within a word becomes a character of its own, so that the trainer sees plain characters, which it
    # numbers in sorted order; a prefix it would number in the order of a hash map.
    inner = {character: chr(PRIVATE + i) for i, character in enumerate(kept)}
    outer = {private: character for character, private in inner.items()}
    known = {word: count for word, count in words.items() if inner.keys() >= set(word)}
    spelled = {word[0] + "".join(inner[c] for c in word[1:]): count for word, count in known.items()}
    characters = len(set("".join(spelled)))
    if size < len(SPECIAL) + characters:
        raise InvalidOption(
            f"vocab_size {size} is too small: {len(SPECIAL)} special tokens and {characters} characters, at the "
            f"beginning of words and within, need {len(SPECIAL) + characters}. A smaller alphabet needs less."
        )
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=min_frequency, special_tokens=[*SPECIAL.values()], show_progress=False
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(_repeated(spelled), trainer)
    pieces = tokenizer.get_vocab()
    ordered = sorted(pieces, key=lambda piece: pieces[piece])
    return {_wordpiece(piece, outer): number for number, piece in enumerate(ordered)}


def _repeated(words: dict[str, int], most: int = 10_000) -> Iterator[str]:
    """Every word as often as it occurs, in lines of bounded length."""
    for word, count in words.items():
        for start in range(0, count, most):
            yield " ".join([word] * min(most, count - start))


def _wordpiece(piece: str, outer: dict[str, str]) -> str:
    plain = "".join(outer.get(character, character) for character in piece)
    return PREFIX + plain if piece[0] in outer else plain
