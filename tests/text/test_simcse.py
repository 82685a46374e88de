"""The SimCSE objective, its sites, masking and batches: closed forms, gradients row by row, transformers' collator."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import binom
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DataCollatorForLanguageModeling,
    DistilBertConfig,
    DistilBertModel,
)

import graphaug
from graphaug.errors import BatchError, DataError, EncoderError, InvalidOption, SiteNotFound, UnsupportedModel
from graphaug.text.corpus.batches import epoch, pad, widths
from graphaug.text.corpus.masking import IGNORED, Masking
from graphaug.text.corpus.tokenizer import train_wordpiece
from graphaug.text.simcse import SimCSE, simcse_loss, twice

pytestmark = pytest.mark.few(2)

ROWS, TOKENS = 12, 6


def encoder(kind="bert", dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "bert":
            config = BertConfig(
                vocab_size=40,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=8,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
            )
            return BertModel(config, add_pooling_layer=False)
        config = DistilBertConfig(
            vocab_size=40,
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=32,
            max_position_embeddings=8,
            dropout=dropout,
        )
        return DistilBertModel(config)


@pytest.fixture
def batch():
    """Row i holds tokens of its own, so that the embedding's gradient tells what reached it from row i."""
    ids = torch.arange(ROWS)[:, None] * 3 + torch.randint(
        3, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0)
    )
    ids[:, 0] = 39  # [CLS], shared
    mask = torch.ones_like(ids)
    mask[::2, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def reached(model, batch):
    """Which rows' gradient arrives at the embeddings, of a sum in which every vector counts."""
    weight = model.encoder.get_input_embeddings().weight
    weight.grad = None
    model(**batch).square().sum().backward()
    return [bool(weight.grad[3 * i : 3 * i + 3].abs().max() > 0) for i in range(ROWS)]


@pytest.mark.parametrize(
    ("kind", "site"), [("bert", 0), ("bert", 1), ("bert", 2), ("bert", 3), ("distilbert", 3)]
)
@pytest.mark.long
def test_a_stopped_gradient_stops_at_every_site_of_the_paper(kind, site, batch):
    """The last one, behind the head, too: there it did nothing in the released code."""
    model = SimCSE(encoder(kind)).train()
    assert all(reached(model, batch))
    aug = graphaug.rewrite(model, at=site, rate=0.4, subset=0.5, stop_grad=True, example_inputs=batch).train()
    assert reached(aug, batch).count(False) == ROWS // 2


@pytest.mark.long
def test_the_site_behind_the_head_is_the_vector_that_is_compared(batch):
    """Dropout at rate 1 there leaves zeros of half of the vectors, and the others as they were."""
    model = SimCSE(encoder())
    plain = model.train()(**batch)
    aug = graphaug.rewrite(model, at=3, rate=1.0, subset=0.5, stop_grad=True, example_inputs=batch).train()
    vectors = aug(**batch)
    zero = (vectors == 0).all(1)
    assert int(zero.sum()) == ROWS // 2
    torch.testing.assert_close(vectors[~zero], plain[~zero])
    weight = aug.head.dense.weight
    vectors.square().sum().backward()
    stopped = weight.grad.clone()
    weight.grad = None
    model(**batch)[~zero].square().sum().backward()
    torch.testing.assert_close(stopped, weight.grad)  # the head below learns from the other rows alone


@pytest.mark.long
def test_a_site_beyond_the_head_is_named_with_the_range(batch):
    with pytest.raises(SiteNotFound, match="4 is out of range: SimCSE has the stages 0 to 3"):
        graphaug.rewrite(SimCSE(encoder()), at=4, example_inputs=batch)


def test_the_head_is_for_training_only(batch):
    model = SimCSE(encoder())
    first = model.encoder(**batch).last_hidden_state[:, 0]
    torch.testing.assert_close(model.eval()(**batch), first)
    dense = model.head.dense
    torch.testing.assert_close(model.train()(**batch), torch.tanh(first @ dense.weight.T + dense.bias))
    assert model.encoder is SimCSE(model.encoder).encoder
    with pytest.raises(UnsupportedModel, match=r"Linear has no config\.hidden_size"):
        SimCSE(nn.Linear(2, 2))


def test_the_two_passes_of_a_sentence_differ_by_the_models_own_dropout(batch):
    def views(dropout):
        return SimCSE(encoder(dropout=dropout)).train()(**twice(batch)).chunk(2)

    torch.testing.assert_close(*views(0.0))
    first, second = views(0.1)
    assert (first - second).abs().max() > 1e-3
    stacked = twice(batch)
    assert torch.equal(stacked["input_ids"][:ROWS], batch["input_ids"])
    assert torch.equal(stacked["input_ids"][ROWS:], batch["input_ids"])


def test_the_loss_is_that_of_the_paper():
    """Eq. 1 of Gao et al., in NumPy: anchors are the first views, candidates all second views, temperature 0.05."""
    vectors = torch.randn(10, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = vectors.numpy() / np.linalg.norm(vectors.numpy(), axis=1, keepdims=True)
    similarity = z[:5] @ z[5:].T / 0.05
    expected = np.mean([logsumexp(row) - row[i] for i, row in enumerate(similarity)])
    assert float(simcse_loss(vectors)) == pytest.approx(expected, rel=1e-12)
    assert float(simcse_loss(torch.ones(16, 3))) == pytest.approx(np.log(8), rel=1e-6)
    for wrong in (torch.ones(5, 3), torch.ones(4), torch.ones(2, 3)):
        with pytest.raises(BatchError):
            simcse_loss(wrong)


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(["abcdefg hijklmn opqrst uvwxyz the cat sat on a mat"] * 3, 200, min_frequency=1)


def masked_batch(tokenizer):
    """Ids of sentences in the form of a batch, with special tokens and padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, len(tokenizer), (400, 32), generator=generator)
    ids[:, 0], ids[:, 20], ids[:, 21:] = (
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.pad_token_id,
    )
    return ids, 400 * 19


def shares(ids, masked, labels, mask_id):
    chosen = labels != IGNORED
    hidden, same = chosen & (masked == mask_id), chosen & (masked == ids)
    return [int(x.sum()) for x in (chosen, hidden, same, chosen & ~hidden & ~same)]


def test_masking_draws_as_transformers_collator_does(tokenizer):
    ids, words = masked_batch(tokenizer)
    masked, labels = Masking(tokenizer)(ids, torch.Generator().manual_seed(1))
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=1)
    theirs = collator([{"input_ids": row} for row in ids.tolist()])
    for found in (
        shares(ids, masked, labels, tokenizer.mask_token_id),
        shares(ids, theirs["input_ids"], theirs["labels"], tokenizer.mask_token_id),
    ):
        # A random token may be the one that was there: it then counts as kept, once in the number of words.
        for count, probability in zip(found, (0.15, 0.12, 0.015, 0.015), strict=True):
            low, high = binom.interval(1 - 1e-6, words, probability)
            assert low - 3 <= count <= high + 3
    chosen = labels != IGNORED
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert not chosen[special].any()
    replaced = masked[chosen & (masked != ids) & (masked != tokenizer.mask_token_id)]
    assert not torch.isin(replaced, torch.tensor(tokenizer.all_special_ids)).any()
    assert len(replaced.unique()) > 20


def test_masking_comes_from_its_generator(tokenizer):
    ids, words = masked_batch(tokenizer)
    before = ids.clone()
    draws = [Masking(tokenizer)(ids, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(ids, before)
    assert int((Masking(tokenizer, 1.0)(ids)[1] != IGNORED).sum()) == words


def test_masking_errors(tokenizer):
    for rate in (0, 1.5, float("nan")):
        with pytest.raises(InvalidOption, match="in \\(0, 1\\]"):
            Masking(tokenizer, rate)
    without = copy.deepcopy(tokenizer)
    without.mask_token = None
    with pytest.raises(EncoderError, match="no mask token"):
        Masking(without)


def test_batches_have_few_shapes():
    assert widths(32) == (8, 16, 24, 32)
    assert widths(20, 8) == (8, 16, 20)
    assert widths(5) == (5,)
    rows = [[7] * n for n in (3, 9, 1)]
    ids, mask = pad(rows, widths(32), 0)
    assert ids.shape == mask.shape == (3, 16)
    assert mask.sum(1).tolist() == [3, 9, 1]
    assert [row[row != 0].tolist() for row in ids] == rows
    assert torch.equal(mask == 1, ids == 7)
    assert {pad([[7] * n], widths(32), 0)[0].shape[1] for n in range(1, 33)} == {8, 16, 24, 32}
    with pytest.raises(DataError, match="33 tokens fits none of the lengths up to 32"):
        pad([[7] * 33], widths(32), 0)
    with pytest.raises(InvalidOption):
        widths(0)


def test_an_epoch_takes_each_sentence_once_in_an_order_of_its_generator():
    def order(seed):
        return list(epoch(23, 5, torch.Generator().manual_seed(seed)))

    batches = order(0)
    assert [len(b) for b in batches] == [5, 5, 5, 5]
    taken = [i for b in batches for i in b]
    assert len(set(taken)) == 20
    assert set(taken) <= set(range(23))
    assert order(0) == batches != order(1)
    with pytest.raises(DataError, match="batch_size=5 is larger than the 4 sentences"):
        next(epoch(4, 5))
    with pytest.raises(InvalidOption, match="at least 2 sentences"):
        next(epoch(4, 1))
