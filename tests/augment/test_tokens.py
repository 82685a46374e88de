"""Kept tokens against timm's PatchDropout, given the same draws; what belongs to the tokens follows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import PatchDropoutWithIndices
from torch import Tensor

from graphaug.augment.transform import Context
from graphaug.augment.transforms.tokens import KeptTokens, Tokens
from graphaug.errors import BatchError, InvalidOption


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("keep", [0.25, 0.5, 0.01, 1.0])
def test_given_the_same_draws_it_is_timms_patch_dropout(
    keep: float, prefix: int, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    h = torch.randn(4, prefix + 16, 3, dtype=torch.float64).requires_grad_()
    scores = torch.rand(4, 16)
    tokens = Tokens(keep, prefix=prefix, ordered=ordered)
    timms = PatchDropoutWithIndices(1 - keep, num_prefix_tokens=prefix, ordered=ordered).train()
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: scores)
    monkeypatch.setattr(torch, "randn", lambda *size, **kind: scores)
    draws = tokens.draw(h)
    ours, (theirs, index) = tokens(h, draws), timms(h)
    if index is None:  # timm leaves everything in its order where nothing is dropped
        assert torch.equal(ours.sort(1).values, theirs.sort(1).values)
        return
    assert torch.equal(draws.kept[:, prefix:] - prefix, index)
    assert torch.equal(ours, theirs)
    cotangent = torch.ones_like(ours) * torch.arange(3)
    assert torch.equal(
        torch.autograd.grad(ours, h, cotangent)[0], torch.autograd.grad(theirs, h, cotangent)[0]
    )


@settings(max_examples=40)
@given(keep=st.floats(0.01, 1), prefix=st.integers(0, 3), count=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_share_is_kept_in_order_behind_the_prefix(keep: float, prefix: int, count: int, seed: int) -> None:
    rows = torch.zeros(3, prefix + count, 2)
    kept = Tokens(keep, prefix=prefix).draw(rows, Context(generator=torch.Generator().manual_seed(seed))).kept
    assert kept.shape == (3, prefix + max(1, math.floor(keep * count)))
    for row in kept.tolist():
        assert row[:prefix] == list(range(prefix))
        assert row == sorted(set(row))
        assert row[-1] < prefix + count


def test_every_token_is_kept_equally_often() -> None:
    """Chi-square of 10 tokens over 3,000 rows. Without replacement counts vary less, by 1 - keep; 33.7: 99.99%."""
    rows = torch.zeros(3000, 11, 1)
    kept = Tokens(0.3).draw(rows, Context(generator=torch.Generator().manual_seed(0))).kept[:, 1:]
    counts = torch.bincount(kept.flatten() - 1, minlength=10).double()
    assert counts.sum() == 9000
    assert 0.5 < ((counts - 900) ** 2 / 900).sum() / 0.7 < 33.7


def test_masks_and_positions_follow() -> None:
    torch.manual_seed(0)
    tokens, rows = Tokens(0.5), torch.randn(3, 9, 4)
    draws = tokens.draw(rows)
    mask, table, attention = torch.rand(3, 9) > 0.3, torch.randn(1, 9, 4), torch.randn(3, 2, 9, 9)
    followed = Tokens.follow(Tokens.follow(attention, draws, dim=2), draws, dim=-1)
    for i, kept in enumerate(draws.kept.tolist()):
        assert torch.equal(tokens(rows, draws)[i], rows[i, kept])
        assert torch.equal(Tokens.follow(mask, draws)[i], mask[i, kept])
        assert torch.equal(Tokens.follow(table, draws)[i], table[0, kept])
        assert torch.equal(followed[i], attention[i][:, kept][:, :, kept])
    # adding positions before or after is the same
    assert torch.equal(tokens(rows + table, draws), tokens(rows, draws) + Tokens.follow(table, draws))


@pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float32])
def test_padding_goes_before_any_real_token(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([10, 6, 5, 2])
    mask = torch.arange(11) <= lengths[:, None]
    kept = Tokens(0.5).draw(torch.zeros(4, 11, 2), Context(mask=mask.to(kind))).kept[:, 1:]
    for row, length in zip(kept.tolist(), lengths.tolist(), strict=True):
        assert sum(i <= length for i in row) == min(5, length)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, r"keep=0.0 is outside \(0, 1\]"),
        ({"keep": 1.01}, "keep=1.01 is outside"),
        ({"prefix": -1}, "prefix=-1: give a whole number of at least 0"),
        ({"ordered": 0}, "neither True nor False"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Tokens(**options)


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        ((3, 4), None, "Tokens are dimension 1"),
        ((3, 1, 4), None, "behind 1 of the prefix"),
        ((3, 4, 2, 2), None, "Tokens are dimension 1"),
        ((3, 4, 2), torch.ones(3, 5), r"A mask of shape \(3, 5\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused(shape: tuple[int, ...], mask: Tensor | None, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        Tokens().draw(torch.zeros(shape), Context(mask=mask))


def test_what_has_other_rows_cannot_follow() -> None:
    with pytest.raises(BatchError, match="2 rows of shape"):
        Tokens.follow(torch.zeros(2, 5), KeptTokens(torch.zeros(3, 2, dtype=torch.long)))
