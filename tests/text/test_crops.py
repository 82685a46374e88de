"""Crops of sentences: spans of the sentence they are of, drawn alike for one seed, and read by each pass for itself."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import text_runs
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphaug.errors import ConfigError, InvalidOption
from graphaug.text.corpus.batches import pad
from graphaug.text.corpus.crops import Crops
from graphaug.text.model import build
from graphaug.text.objective import SPANS, TextFeed, TextObjective
from graphaug.text.passes import check_passes
from graphaug.text.simcse import SimCSE
from graphaug.text.train import simcse

PLAIN = replace(text_runs.CONFIG, at=(), stop_grad=False, dropout=False, checkpoint_every=0, epochs=1)
CLS, SEP = 2, 3
ROWS = [[CLS, *range(10, 10 + n), SEP] for n in (1, 2, 5, 9, 12, 3, 7, 4)]


@given(
    words=st.lists(st.integers(5, 50), max_size=20),
    percent=st.integers(1, 100),
    opened=st.booleans(),
    closed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_crop_is_a_span_of_its_share_between_the_ends(words, percent, opened, closed, seed):
    row = [CLS] * opened + words + [SEP] * closed
    (found,) = Crops(percent / 100, {CLS, SEP})([row], torch.Generator().manual_seed(seed))
    assert found[:1] == [CLS] or not opened
    assert found[-1:] == [SEP] or not closed
    inner = found[opened : len(found) - closed]
    want = max(1, round(percent / 100 * len(words))) if words else 0
    assert len(inner) == want
    assert abs(want - Fraction(percent, 100) * len(words)) <= max(Fraction(1, 2), 1 if want == 1 else 0)
    assert any(words[i : i + want] == inner for i in range(len(words) - want + 1))


def test_every_span_is_drawn_as_often():
    row = [CLS, 10, 11, 12, 13, SEP]
    found = Crops(0.5, {CLS, SEP})([row] * 6000, torch.Generator().manual_seed(0))
    counts = [found.count([CLS, a, a + 1, SEP]) for a in (10, 11, 12)]
    assert sum(counts) == 6000
    # of 6,000 draws with probability 1/3 the standard deviation is 36.5; five of them
    assert all(abs(c - 2000) < 183 for c in counts)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_a_share_outside_of_its_domain_is_refused(share):
    with pytest.raises(InvalidOption, match="must be in"):
        Crops(share, ())
    with pytest.raises(ConfigError, match="crop"):
        replace(PLAIN, crop=share)


def feed(config, crops=None):
    return TextFeed(ROWS, config, (8, 16), 0, torch.device("cpu"), crops=crops)


def test_each_pass_reads_a_crop_of_its_own_and_a_run_goes_on_with_the_draws():
    config = replace(PLAIN, crop=0.5, batch_size=4)
    made = feed(config, Crops(0.5, {CLS, SEP}))
    made.start_epoch()
    ids, mask = next(made.batches(0))
    assert len(ids) == len(mask) == 8
    chosen = [ROWS[i] for i in made.chosen[0]]
    draws = torch.Generator().manual_seed(config.seed + SPANS)
    crops = Crops(0.5, {CLS, SEP})
    want, real = pad([*crops(chosen, draws), *crops(chosen, draws)], (8, 16), 0)
    assert torch.equal(ids, want)
    assert torch.equal(mask, real)
    assert not torch.equal(ids[:4], ids[4:])
    state = made.state_dict(new_epoch=False)
    after = next(made.batches(1))
    again = feed(config, Crops(0.5, {CLS, SEP}))
    again.load_state_dict(state)
    again.start_epoch()
    assert all(torch.equal(a, b) for a, b in zip(next(again.batches(1)), after, strict=True))
    assert "spans" not in feed(PLAIN).state_dict(new_epoch=False)  # what earlier runs wrote can be read


@pytest.mark.parametrize("cache", [None, 1, 3, 4])
def test_the_loss_is_that_of_the_two_crops(cache):
    """Also in parts: sentence i of the first half is computed beside its own second crop."""
    model = build(PLAIN, text_runs.corpus().lines)
    network = SimCSE(model.encoder).double().eval()
    config = replace(PLAIN, crop=0.5, cache=cache)
    ids = torch.randint(5, 60, (8, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    found = TextObjective(network, config)(ids, mask)["loss"]
    z = torch.nn.functional.normalize(network(ids, mask), dim=1)
    scores = z[:4] @ z[4:].T / config.temperature
    want = torch.nn.functional.cross_entropy(scores, torch.arange(4))
    torch.testing.assert_close(found.double(), want, atol=1e-5, rtol=1e-5)


def test_masked_language_reads_the_crops():
    from graphaug.text.corpus.masking import Masking

    model = build(replace(PLAIN, mlm=True), text_runs.corpus().lines)
    config = replace(PLAIN, mlm=True, crop=0.5, batch_size=4)
    made = TextFeed(
        ROWS,
        config,
        (8, 16),
        0,
        torch.device("cpu"),
        Masking(model.tokenizer, 0.15),
        Crops(0.5, {CLS, SEP}),
    )
    made.start_epoch()
    ids, _, masked, positions, labels = next(made.batches(0))
    told = labels >= 0
    whole = masked.flatten().clone()
    whole[positions[told]] = labels[told]
    assert torch.equal(whole.view_as(ids), ids)


def test_crops_let_the_passes_differ_and_deep_views_have_none():
    model = build(PLAIN, text_runs.corpus().lines)
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with pytest.raises(ConfigError, match="would be the same"):
        check_passes(model.encoder, replace(PLAIN, dropout=True))
    check_passes(model.encoder, replace(PLAIN, dropout=True, crop=0.9))
    with pytest.raises(ConfigError, match=r"deep_views=True with crop=0.5"):
        replace(PLAIN, at=(1,), deep_views=True, crop=0.5)


@pytest.mark.long
def test_a_run_that_crops_ends_and_repeats(tmp_path):
    config = replace(PLAIN, crop=0.6, dropout=True)
    first = simcse(config, tmp_path / "first", corpus=text_runs.corpus())
    second = simcse(config, tmp_path / "second", corpus=text_runs.corpus())
    assert [line["loss"] for line in first.metrics] == [line["loss"] for line in second.metrics]
    whole = simcse(replace(config, crop=1.0), tmp_path / "whole", corpus=text_runs.corpus())
    assert whole.metrics[0]["loss"] != first.metrics[0]["loss"]
