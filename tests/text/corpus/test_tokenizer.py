"""The trained tokenizer and the encoders built for it."""

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer

from graphaug.errors import ConfigError, DataError, InvalidOption
from graphaug.text.corpus.tokenizer import train_wordpiece
from graphaug.text.encoders.models import SIZES, from_config


def text(lines=400):
    """Words of drawn syllables, Zipf-like: many pairs occur equally often, which is where trainers differ."""
    generator = torch.Generator().manual_seed(0)
    syllables = [a + b for a in "bdklmnrst" for b in "aeiou"]
    draw = lambda n, k: torch.randint(n, (k,), generator=generator).tolist()  # noqa: E731
    words = ["".join(syllables[i] for i in draw(len(syllables), 1 + n % 4)) for n in range(500)]
    return [
        " ".join(words[min(i, j)] for i, j in zip(draw(500, 9), draw(500, 9), strict=True))
        for _ in range(lines)
    ]


@pytest.fixture(scope="module")
def lines():
    return text()


@pytest.fixture(scope="module")
def tokenizer(lines):
    return train_wordpiece(lines, 300, max_length=64)


def test_the_same_text_gives_the_same_ids(lines, tokenizer):
    """Hash maps of the library are seeded anew for each training: three of them would not agree by chance."""
    for _ in range(3):
        assert train_wordpiece(lines, 300).get_vocab() == tokenizer.get_vocab()


def test_the_vocabulary_is_that_of_the_library_up_to_ties(lines, tokenizer):
    """Against tokenizers' own WordPieceTrainer, which breaks ties differently from run to run."""
    theirs = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    theirs.normalizer = normalizers.BertNormalizer(lowercase=True)
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    theirs.train_from_iterator(
        lines,
        trainers.WordPieceTrainer(
            vocab_size=300, min_frequency=2, special_tokens=special, show_progress=False
        ),
    )
    ours = set(tokenizer.get_vocab())
    # The library gives every character a piece at both places, seen there or not; the rest is merges.
    merges = {piece for piece in theirs.get_vocab() if len(piece.removeprefix("##")) > 1} - set(special)
    assert len(merges) > 150
    assert len(ours & merges) / len(merges) > 0.95


def test_it_tokenizes_as_berts_own_tokenizer_with_that_vocabulary(lines, tokenizer, tmp_path):
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n", encoding="utf-8")
    theirs = BertTokenizer(vocab=str(path), do_lower_case=True)
    probes = [*lines[:50], "Bada LÉMU, nosuchword!", "", "[MASK] " + lines[0]]
    assert tokenizer(probes)["input_ids"] == theirs(probes)["input_ids"]
    pair, expected = (t(lines[0], lines[1], return_token_type_ids=True) for t in (tokenizer, theirs))
    assert pair["token_type_ids"] == expected["token_type_ids"]
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert tokenizer.mask_token == "[MASK]"
    known = tokenizer(lines)["input_ids"]
    assert all(tokenizer.unk_token_id not in row for row in known)
    assert tokenizer.decode(known[0], skip_special_tokens=True) == lines[0]


def test_a_saved_one_is_loaded_by_transformers(lines, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    from_config("bert-tiny", tokenizer).save_pretrained(
        tmp_path
    )  # config.json may change which class is loaded
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(lines[:20])["input_ids"] == tokenizer(lines[:20])["input_ids"]
    assert loaded.model_max_length == 64


def test_rare_characters_are_left_out_of_a_small_alphabet():
    found = train_wordpiece(["ab ab"] * 5 + ["aβ"], 50, alphabet=2)
    assert not any("β" in piece for piece in found.get_vocab())
    assert found.tokenize("βa ab") == ["[UNK]", "ab"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_lowercase(lowercase):
    found = train_wordpiece(["Éa Éa"] * 3, 50, lowercase=lowercase)
    assert found.tokenize("Éa") == (["ea"] if lowercase else ["Éa"])


def test_training_errors(lines):
    with pytest.raises(DataError, match="no words"):
        train_wordpiece(["", "  "])
    with pytest.raises(InvalidOption, match=r"vocab_size 12 is too small: .* need (\d+)") as caught:
        train_wordpiece(lines, 12)
    enough = int(str(caught.value).split(" need ")[1].split(".")[0])
    assert len(train_wordpiece(lines, enough)) == enough


@pytest.mark.parametrize("name", ["bert-tiny", "bert-mini"])
def test_a_named_size_has_the_published_number_of_parameters(name, tokenizer):
    """Closed form: embeddings, and four attention and two feed-forward matrices a block, with biases and norms."""
    blocks, width, heads = SIZES[name]
    model = from_config(name, tokenizer)
    embeddings = (len(tokenizer) + 64 + 2) * width + 2 * width
    block = (
        4 * (width + 1) * width + 2 * width + (width + 1) * 4 * width + (4 * width + 1) * width + 2 * width
    )
    assert sum(p.numel() for p in model.parameters()) == embeddings + blocks * block
    assert model.config.num_attention_heads == heads
    batch = tokenizer(["bada", "kole mu"], padding=True, return_tensors="pt")
    assert model(**batch).last_hidden_state.shape[::2] == (2, width)


def test_random_weights_come_from_torchs_generator(tokenizer):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in from_config("bert-tiny", tokenizer).parameters()])

    with torch.random.fork_rng():
        first, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_settings_of_a_model(tokenizer):
    assert from_config("bert-tiny", tokenizer, num_hidden_layers=3).config.num_hidden_layers == 3
    with pytest.raises(ConfigError, match="Did you mean 'bert-small'"):
        from_config("bert-smal", tokenizer)
    with pytest.raises(ConfigError, match=r"'num_hidden_layer'\. Did you mean 'num_hidden_layers'"):
        from_config("bert-tiny", tokenizer, num_hidden_layer=3)
