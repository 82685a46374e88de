"""Encoders against transformers used directly, one sentence at a time; and everything that is no encoder."""

import copy
import json
import re
import shutil

import pytest
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    FlaubertModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

from graphaug.capture.state import evaluating
from graphaug.errors import EncoderError, InvalidOption
from graphaug.text.corpus.tokenizer import train_wordpiece
from graphaug.text.encoders.encoder import TextEncoder
from graphaug.text.encoders.load import load_encoder, load_trainable, save_encoder
from graphaug.text.encoders.models import from_config
from graphaug.text.encoders.pretrained import without_dropout

SENTENCES = [
    "a b",
    "the cat sat on the mat",
    "",
    "a cat and a dog ran and ran and ran",
    "dog",
    "a b",
    "the end",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(SENTENCES * 2, 100, max_length=40)


@pytest.fixture(scope="module")
def model(tokenizer):
    """With a pooling layer, and in training mode with much dropout: encoding has to switch that off."""
    config = from_config("bert-tiny", tokenizer, hidden_dropout_prob=0.5).config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertModel(config).train()


@pytest.fixture
def saved(tmp_path, model, tokenizer):
    save_encoder(tmp_path / "bert", model, tokenizer)
    return tmp_path / "bert"


def one_by_one(model, tokenizer, pooler, sentences=SENTENCES):
    """No batches, so no padding and no mask."""
    model = copy.deepcopy(model).eval()
    rows = []
    for sentence in sentences:
        ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            outputs = model(ids, output_hidden_states=True)
        rows.append(
            {
                "cls": lambda o: o.pooler_output[0],
                "cls_before_pooler": lambda o: o.hidden_states[-1][0, 0],
                "mean": lambda o: o.hidden_states[-1][0].mean(0),
                "first-last-mean": lambda o: torch.stack(
                    [o.hidden_states[1][0], o.hidden_states[-1][0]]
                ).mean((0, 1)),
            }[pooler](outputs)
        )
    return torch.stack(rows)


@pytest.mark.parametrize("pooler", ["cls", "cls_before_pooler", "mean", "first-last-mean"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_batch_gives_what_each_sentence_gives_alone(model, tokenizer, pooler, batch_size):
    vectors = TextEncoder(model, tokenizer, pooler, batch_size=batch_size).encode(SENTENCES)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, one_by_one(model, tokenizer, pooler), rtol=1e-4, atol=1e-5)


def test_poolers_differ(model, tokenizer):
    """Else the test above could not tell them apart."""
    found = [one_by_one(model, tokenizer, p) for p in ("cls", "cls_before_pooler", "mean", "first-last-mean")]
    assert all((a - b).abs().max() > 0.01 for i, a in enumerate(found) for b in found[:i])


def test_encoding_leaves_modes_gradients_and_the_random_state_alone(model, tokenizer):
    model = copy.deepcopy(model).train()
    model.encoder.layer[0].eval()  # as a user does who freezes a block
    before = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    assert not TextEncoder(model, tokenizer).encode(SENTENCES).requires_grad
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), state)

    def fails():
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert {name: module.training for name, module in model.named_modules()} == before


def test_batches_are_of_similar_length_and_the_longest_is_first(model, tokenizer):
    widths = []
    model = copy.deepcopy(model)
    model.register_forward_pre_hook(lambda m, a, kw: widths.append(kw["input_ids"].shape), with_kwargs=True)
    TextEncoder(model, tokenizer, batch_size=2).encode(SENTENCES)
    lengths = sorted((len(tokenizer(s)["input_ids"]) for s in SENTENCES), reverse=True)
    assert [tuple(w) for w in widths] == [(len(lengths[i : i + 2]), lengths[i]) for i in range(0, 7, 2)]


def test_long_sentences_are_truncated_and_counted(model, tokenizer):
    encoder = TextEncoder(model, tokenizer, "mean", max_length=6)
    vectors = encoder.encode(SENTENCES)
    short = [len(tokenizer(s)["input_ids"]) <= 6 for s in SENTENCES]
    assert encoder.truncated == short.count(False) > 0
    full = one_by_one(model, tokenizer, "mean")
    close = [torch.allclose(a, b, atol=1e-5) for a, b in zip(vectors, full, strict=True)]
    assert close == short
    endless = TextEncoder(model, tokenizer, "mean")
    assert endless.max_length == 40
    endless.encode(["dog " * 500])
    assert endless.truncated == 1


def test_roberta_has_two_positions_less_than_its_table(tokenizer):
    """It counts them from behind the padding index; one token more would be out of the table."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 10**30
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=22, pad_token_id=1, **sizes)
    model = RobertaModel(config).eval()
    encoder = TextEncoder(model, tokenizer, "mean")
    assert encoder.max_length == 20
    assert encoder.encode(["dog " * 100]).shape == (1, 8)
    with pytest.raises((IndexError, RuntimeError), match="out of "):
        model(torch.full((1, 21), 5))


def test_a_tokenizer_without_padding_pads_with_its_end(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    with torch.random.fork_rng():
        model = GPT2Model(
            GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=40)
        ).eval()
    vectors = TextEncoder(model, tokenizer, "mean", batch_size=7).encode(SENTENCES)
    torch.testing.assert_close(vectors, one_by_one(model, tokenizer, "mean"), rtol=1e-4, atol=1e-5)
    tokenizer.eos_token = None
    with pytest.raises(EncoderError, match="no padding token"):
        TextEncoder(model, tokenizer, "mean")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("men", "'mean'"),
        ("avg", "'mean'"),
        ("CLS", ""),
        ("avg_first_last", "'first-last-mean'"),
        ("first-last", "'first-"),
    ],
)
def test_an_unknown_pooler(model, tokenizer, given, meant):
    with pytest.raises(
        InvalidOption, match=f"{given!r}.*{meant}.*There are cls, cls_before_pooler, mean, first-last-m"
    ):
        TextEncoder(model, tokenizer, given)
    with pytest.raises(InvalidOption, match=f"{given!r}.*{meant}"):
        load_encoder("/nothing/is/read/before", given)


def test_options_outside_their_domain(model, tokenizer):
    for options, message in [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"max_length": 41}, "from 3 to 40 for this model, not 41"),
        ({"max_length": 2}, "from 3 to 40"),
        ({"max_length": 0}, "from 3 to 40"),
    ]:
        with pytest.raises(InvalidOption, match=message):
            TextEncoder(model, tokenizer, **options)
    with pytest.raises(InvalidOption, match="no sentences"):
        TextEncoder(model, tokenizer).encode([])


def test_a_tokenizer_that_does_not_match(model, tokenizer):
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["surprise"])
    rows = model.config.vocab_size
    with pytest.raises(
        EncoderError, match=f"tokens up to {rows} \\('surprise'\\), .*embedding has {rows} rows"
    ):
        TextEncoder(model, larger)


def test_a_small_vocabulary_with_another_padding_token_does_not_match(model, tokenizer):
    """All its ids fit; real pairs have one of the two differences at most."""

    def pair(padding, words):
        config = BertConfig(vocab_size=words, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        config.pad_token_id = padding
        return TextEncoder(BertModel(config), tokenizer)

    words = len(tokenizer)
    for padding, size in (
        (0, 2 * words),
        (1, words),
        (None, 2 * words),
    ):  # rounded up, added later, not known
        assert pair(padding, size)
    with pytest.raises(
        EncoderError, match=f"has {words} tokens and pads with number 0, and the model has {2 * words}"
    ):
        pair(1, 2 * words)


def test_an_encoder_with_a_decoder_is_refused(tmp_path, tokenizer):
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 100}
    heads = {
        "encoder_attention_heads": 1,
        "decoder_attention_heads": 1,
        "encoder_ffn_dim": 8,
        "decoder_ffn_dim": 8,
    }
    save_encoder(
        tmp_path / "bart", BartModel(BartConfig(**sizes, **heads, max_position_embeddings=40)), tokenizer
    )
    for load in (load_encoder, load_trainable):
        with pytest.raises(EncoderError, match=r"is an encoder with a decoder \(bart\)"):
            load(tmp_path / "bart")


def test_masked_language_of_a_decoder_is_refused_by_name(tmp_path, tokenizer):
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=100)
    save_encoder(tmp_path / "gpt2", GPT2Model(config), tokenizer)
    with pytest.raises(EncoderError, match=r"^gpt2 has no masked-language model in transformers"):
        load_trainable(tmp_path / "gpt2", mlm=True)
    plain = copy.deepcopy(tokenizer)
    plain.mask_token = None
    save_encoder(tmp_path / "gpt2", GPT2Model(config), plain)
    with pytest.raises(EncoderError, match=r"^the tokenizer has no mask token"):
        load_trainable(tmp_path / "gpt2", mlm=True)


def test_a_decoder_whose_first_position_sees_nothing_is_refused(tmp_path, tokenizer):
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=len(tokenizer))
    tokenizer = copy.deepcopy(tokenizer)
    save_encoder(tmp_path / "gpt2", GPT2Model(config), tokenizer)
    for load in (load_encoder, load_trainable):
        with pytest.raises(EncoderError, match=r"gpt2': the first position of GPT2Model sees nothing"):
            load(tmp_path / "gpt2")
    assert load_encoder(tmp_path / "gpt2", "mean").encode(["dog", "a cat"]).shape == (2, 8)
    found = without_dropout(config)
    assert found
    assert not any(getattr(config, name) for name in found)  # it calls them pdrop


@pytest.mark.parametrize("kind", [BertModel, FlaubertModel])
def test_without_dropout_there_is_none_and_what_is_saved_has_its_own(kind, tmp_path, tokenizer):
    sizes = {
        "vocab_size": 100,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "n_layers": 1,
    }
    names = {
        "emb_dim": 8,
        "n_heads": 1,
        "layerdrop": 0.3,
        "n_words": len(tokenizer),
    }
    config = kind.config_class(**{**sizes, **names} if kind is not BertModel else sizes)
    save_encoder(tmp_path / "first", kind(config), tokenizer)
    for mlm in {False, kind is BertModel}:
        encoder, _, _ = load_trainable(tmp_path / "first", mlm=mlm, dropout=False)
        encoder.train()
        ids = torch.randint(5, len(tokenizer), (2, 9), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            one, two = (encoder(ids).last_hidden_state for _ in range(2))
        assert torch.equal(one, two)
        save_encoder(tmp_path / "second", encoder, tokenizer)
        first, second = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("first", "second"))
        dropped = {name: value for name, value in first.items() if "drop" in name}
        assert any(dropped.values())
        assert {name: second[name] for name in dropped} == dropped


def test_the_count_of_truncated_sentences_begins_at_none(saved):
    encoder = load_encoder(saved, max_length=3)
    assert encoder.truncated == 0
    encoder.encode(["a cat and a dog"])
    assert encoder.truncated == 1


def test_vectors_that_are_not_finite(model, tokenizer):
    broken = copy.deepcopy(model)
    nn.init.constant_(broken.embeddings.LayerNorm.weight, float("nan"))
    with pytest.raises(EncoderError, match="not all finite"):
        TextEncoder(broken, tokenizer).encode(SENTENCES)


def test_a_saved_encoder_gives_the_same_vectors(saved, model, tokenizer):
    vectors = load_encoder(saved).encode(SENTENCES)
    torch.testing.assert_close(
        vectors, one_by_one(model, tokenizer, "cls_before_pooler"), rtol=1e-4, atol=1e-5
    )
    assert "graphaug.json" in {p.name for p in saved.iterdir()}
    assert [p.name for p in saved.parent.iterdir()] == ["bert"]


def test_a_run_is_loaded_with_its_own_pooler(tmp_path, model, tokenizer):
    save_encoder(tmp_path / "run" / "encoder", model, tokenizer, pooler="cls_before_pooler")
    save_encoder(tmp_path / "run" / "encoder", model, tokenizer, pooler="mean")  # replaces it
    encoder = load_encoder(tmp_path / "run")
    assert encoder.pooler == "mean"
    assert load_encoder(tmp_path / "run", "cls").pooler == "cls"
    torch.testing.assert_close(
        encoder.encode(SENTENCES), one_by_one(model, tokenizer, "mean"), rtol=1e-4, atol=1e-5
    )


def test_saving_fails_whole(tmp_path, tokenizer, model, monkeypatch):
    with pytest.raises(EncoderError, match=r"Linear is no transformers model.*graphaug\.strip"):
        save_encoder(tmp_path / "x", nn.Linear(2, 2), tokenizer)
    with pytest.raises(InvalidOption, match="'mean'"):
        save_encoder(tmp_path / "x", model, tokenizer, pooler="meen")
    save_encoder(tmp_path / "x", model, tokenizer)
    before = sorted(p.name for p in (tmp_path / "x").iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def full_weights(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for kind, fails in ((type(model), full_weights), (type(tokenizer), full)):
        with monkeypatch.context() as patch:
            patch.setattr(kind, "save_pretrained", fails)
            with pytest.raises(EncoderError, match="No space left"):
                save_encoder(tmp_path / "x", model, tokenizer)
        assert sorted(p.name for p in (tmp_path / "x").iterdir()) == before
        assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_pooling_layer_that_was_never_saved_is_not_made_up(tmp_path, model, tokenizer):
    """transformers fills it with random numbers, anew on each loading."""
    headless = BertModel(model.config, add_pooling_layer=False)
    save_encoder(tmp_path / "bert", headless, tokenizer)
    with pytest.raises(EncoderError, match=r"no weights for its pooling layer.*cls_before_pooler"):
        load_encoder(tmp_path / "bert", "cls")
    assert load_encoder(tmp_path / "bert").encode(["dog"]).shape == (1, 128)
    with pytest.raises(EncoderError, match=r"pooler 'cls' needs a pooling layer.*cls_before_pooler"):
        TextEncoder(headless, tokenizer, "cls").encode(["dog"])


def test_weights_that_do_not_fit(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(EncoderError, match="do not fit its configuration"):
        load_encoder(saved)


def test_what_is_no_encoder(tmp_path, saved, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, match in [
        ("bret", "so it was looked for on the hub. Did you mean 'bert'"),
        (tmp_path / "bret", r"does not exist\. Did you mean .*bert'"),
        (tmp_path, r"holds no encoder: .*Did you mean .*bert'"),
        (saved / "config.json", "is a file: name the directory"),
        ("./no/such/place", "does not exist"),
        ("no-such/model-on-the-hub", "no model that transformers can load. It is no directory here"),
    ]:
        with pytest.raises(EncoderError, match=match):
            load_encoder(name)
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / "encoder.safetensors").write_bytes(b"")
    with pytest.raises(EncoderError, match="a run on images"):
        load_encoder(tmp_path / "vision")

    tokens = tmp_path / "no-tokenizer"
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(tokens)
    with pytest.raises(EncoderError, match="has no tokenizer"):
        load_encoder(tokens)
    pictures = tmp_path / "vit"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(pictures)
    tokenizer.save_pretrained(pictures)
    with pytest.raises(EncoderError, match="no encoder of text: ViTModel cannot run on token ids"):
        load_encoder(pictures)
    for text, match in [
        ("[", "modules.json' is no JSON"),
        ('{"a": 1}', "is not what it"),
        ("[1]", "is not what it"),
    ]:
        (saved / "modules.json").write_text(text)
        with pytest.raises(EncoderError, match=re.escape(match)):
            load_encoder(saved, "mean")


@pytest.mark.long
def test_a_sentence_transformers_model_is_told_by_its_files(tmp_path, saved, model, tokenizer):
    st = pytest.importorskip("sentence_transformers")
    reference = st.SentenceTransformer(str(saved), device="cpu")  # adds mean pooling
    reference.max_seq_length = 7
    reference.save(str(tmp_path / "st"))
    own = load_encoder(tmp_path / "st", device="cpu")
    assert (own.pooler, own.max_length) == ("its own", 7)
    expected = torch.from_numpy(reference.encode(SENTENCES))
    torch.testing.assert_close(own.encode(SENTENCES), expected, rtol=1e-4, atol=1e-5)
    plain = load_encoder(tmp_path / "st", "mean", device="cpu")
    torch.testing.assert_close(plain.encode(SENTENCES), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidOption, match="max_length must be from 3 to 7"):
        load_encoder(tmp_path / "st", max_length=8)
    modules = json.loads((tmp_path / "st" / "modules.json").read_text())
    modules[1]["type"] = "os.path.Pooling"
    (tmp_path / "st" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match=r"a module of its own, 'os\.path\.Pooling'"):
        load_encoder(tmp_path / "st")
    shutil.rmtree(tmp_path / "st" / "1_Pooling")
    assert load_encoder(tmp_path / "st", "cls").encode(["dog"]).shape == (1, 128)
