"""Dropout against torch's own, DropBlock against torchvision's and timm's, given the same draws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropBlock2d
from torch import Tensor

from graphaug import DeepAugment
from graphaug.augment.transform import Context
from graphaug.augment.transforms.drop import Dropout, Dropped
from graphaug.errors import BatchError, InvalidOption


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def assert_same(ours: Tensor, theirs: Tensor, h: Tensor) -> None:
    """Values and gradients, by a random cotangent."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    cotangent = torch.randn_like(ours)
    gradients = [torch.autograd.grad(out, h, cotangent)[0] for out in (ours, theirs)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-9)


TORCHS: list[Any] = [
    pytest.param("element", (4, 5, 6), F.dropout, id="element"),
    pytest.param("channel", (4, 9, 3, 3), F.dropout2d, id="channel of maps"),
    pytest.param("channel", (4, 9, 3, 3, 2), F.dropout3d, id="channel of volumes"),
    pytest.param("channel", (4, 6, 9), lambda h, p: F.dropout1d(h.mT, p).mT, id="channel of tokens"),
    pytest.param("channel", (4, 30), F.dropout, id="channel of vectors"),
    pytest.param("position", (4, 9, 5), F.dropout1d, id="position of tokens"),
    pytest.param(
        "position",
        (4, 5, 3, 3),
        lambda h, p: F.dropout1d(h.flatten(2).mT, p).mT.view_as(h),
        id="position of maps",
    ),
    pytest.param(
        "head",
        (4, 5, 12),
        lambda h, p: F.dropout2d(h.view(4, 5, 6, 2).transpose(1, 2), p).transpose(1, 2).reshape(4, 5, 12),
        id="head of tokens",
    ),
    pytest.param(
        "head", (4, 12), lambda h, p: F.dropout1d(h.view(4, 6, 2), p).view(4, 12), id="head of vectors"
    ),
    pytest.param("head", (4, 6, 5, 2), F.dropout2d, id="head in a dimension"),
]


@pytest.mark.parametrize(("granularity", "shape", "torchs"), TORCHS)
def test_given_torchs_draws_it_is_torchs_dropout(
    granularity: str, shape: tuple[int, ...], torchs: Any
) -> None:
    """Which are kept is read off torch's result; and what we draw ourselves is dropped together as torch does."""
    torch.manual_seed(0)
    h = normal(*shape)
    drop = Dropout(0.3, granularity, heads=6 if granularity == "head" else None)
    theirs = torchs(h, 0.3)
    kept = theirs != 0
    assert 0 < kept.double().mean() < 1
    assert_same(drop(h, Dropped(kept)), theirs, h)
    same = together(lambda: torchs(torch.ones(shape), 0.5))
    assert torch.equal(together(lambda: drop.draw(h).kept.expand(shape)), same)


def together(draw: Any) -> Tensor:
    """Which elements are always dropped together: those alike in 80 draws."""
    patterns = torch.stack([(draw() != 0).flatten() for _ in range(80)], 1)
    return (patterns[:, None] == patterns).all(-1)


@pytest.mark.parametrize("granularity", ["element", "channel", "position"])
def test_it_is_the_dropout_of_deep_augment_with_the_same_seed(granularity: str) -> None:
    """``rate=`` and ``granularity=`` are the short spelling of this transform."""
    h = torch.randn(6, 5, 4)
    drop, node = Dropout(0.3, granularity), DeepAugment(rate=0.3, subset=1.0, granularity=granularity)
    torch.manual_seed(0)
    torch.randperm(6)  # the node draws its rows first
    ours = drop(h, drop.draw(h))
    torch.manual_seed(0)
    assert torch.equal(ours, node(h))


# --- blocks -------------------------------------------------------------------------------------


def forced(monkeypatch: pytest.MonkeyPatch, uniform: Tensor, drop: Dropout, h: Tensor) -> Tensor:
    """Our result for the uniform numbers given."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, **kind: uniform)
        draws = drop.draw(h)
    return drop(h, draws)


def bernoulli_of(uniforms: list[Tensor]) -> Any:
    """A ``bernoulli_`` that takes its uniform numbers from the list, one call after the other."""
    left = iter(uniforms)

    def bernoulli_(self: Tensor, p: float, **kind: Any) -> Tensor:
        return self.copy_(next(left) < p)

    return bernoulli_


@pytest.mark.parametrize(
    ("side", "shape"), [(3, (4, 5, 9, 9)), (5, (3, 4, 8, 11)), (1, (2, 3, 6, 6)), (7, (3, 2, 5, 5))]
)
def test_given_torchvisions_draws_it_is_torchvisions_drop_block(
    side: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row, since torchvision scales by the share kept in the batch, and we by the share kept in the row."""
    torch.manual_seed(0)
    h = normal(*shape)
    b = min(side, *shape[2:])
    uniform = torch.rand(*shape[:2], shape[2] - b + 1, shape[3] - b + 1)
    ours = forced(monkeypatch, uniform, Dropout(0.25, "block", block_size=side), h)
    monkeypatch.setattr(torch.Tensor, "bernoulli_", bernoulli_of([u[None] for u in uniform]))
    theirs = torch.cat([torchvision.ops.drop_block2d(row[None], 0.25, side, eps=1e-12) for row in h])
    assert 0 < (theirs == 0).sum() < theirs.numel()
    assert_same(ours, theirs, h)


@pytest.mark.parametrize("side", [2, 3, 4, 5])
@pytest.mark.parametrize("shared", [True, False])
def test_given_timms_draws_it_is_timms_drop_block(
    side: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's centres may lie at the border, where no whole block fits; ours there are never drawn."""
    torch.manual_seed(1)
    h = normal(3, 4, 9, 8)
    starts = (9 - side + 1, 8 - side + 1)
    uniform = torch.rand(3, 1 if shared else 4, *starts)
    ours = forced(monkeypatch, uniform, Dropout(0.3, "block", block_size=side, shared=shared), h)
    centres = torch.full((3, uniform.shape[1], 9, 8), 2.0)
    first = side // 2
    centres[:, :, first : first + starts[0], first : first + starts[1]] = uniform
    monkeypatch.setattr(torch.Tensor, "bernoulli_", bernoulli_of([u[None] for u in centres]))
    timms = DropBlock2d(drop_prob=0.3, block_size=side, couple_channels=shared).train()
    assert_same(ours, torch.cat([timms(row[None]) for row in h]), h)


@pytest.mark.parametrize(
    "shape", [(3, 10, 4), (3, 4, 6, 7), (2, 3, 5, 4, 6)], ids=["tokens", "maps", "volumes"]
)
def test_a_block_is_what_lies_behind_its_start(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The algorithm in loops: every start drops the positions of its block."""
    torch.manual_seed(2)
    channel = 2 if len(shape) == 3 else 1
    places = [n for i, n in enumerate(shape) if i not in (0, channel)]
    starts, sides = [n - 1 for n in places], [2] * len(places)
    uniform = torch.rand(shape[0], shape[channel], *starts)
    drop = Dropout(0.2, "block", block_size=2)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *size, **kind: uniform)
        kept = drop.draw(torch.randn(shape)).kept
    gamma = 0.2 * math.prod(places) / math.prod(sides) / math.prod(starts)
    expected = torch.ones(shape[0], shape[channel], *places, dtype=torch.bool)
    for index in (uniform < gamma).nonzero().tolist():
        block = tuple(slice(i, i + 2) for i in index[2:])
        expected[(index[0], index[1], *block)] = False
    assert torch.equal(kept.movedim(channel, 1), expected)


def test_blocks_drop_about_the_rate_and_every_row_keeps_its_mean() -> None:
    torch.manual_seed(0)
    drop, h = Dropout(0.1, "block", block_size=3), torch.ones(64, 8, 20, 20, dtype=torch.float64)
    draws = drop.draw(h)
    assert 0.085 < (~draws.kept).double().mean() < 0.1  # a little less, as blocks overlap
    assert torch.allclose(drop(h, draws).flatten(1).mean(1), torch.ones(64, dtype=torch.float64))


# --- the rate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["element", "channel", "position", "block", "head"])
def test_rate_0_keeps_everything_and_rate_1_nothing(granularity: str) -> None:
    h = torch.randn(4, 6, 8).requires_grad_()
    for rate, expected in ((0.0, h), (1.0, torch.zeros_like(h))):
        # one block is all positions: rate 1 then starts it with certainty
        drop = Dropout(rate, granularity, heads=2 if granularity == "head" else None)
        out = drop(h, drop.draw(h))
        assert torch.equal(out.abs(), expected.abs())
        (gradient,) = torch.autograd.grad(out.sum(), h)
        assert torch.equal(gradient, torch.full_like(h, 1 - rate))


@settings(max_examples=10)
@given(
    rate=st.floats(0.1, 0.9),
    granularity=st.sampled_from(["element", "channel", "position", "head"]),
    seed=st.integers(0, 99),
)
def test_the_expectation_is_the_value(rate: float, granularity: str, seed: int) -> None:
    """The mean over many rows lies within 5 standard errors of 1; a row's mean has variance rate/(1-rate)/decisions."""
    drop = Dropout(rate, granularity, heads=4 if granularity == "head" else None)
    h = torch.ones(3000, 4, 4, dtype=torch.float64)
    draws = drop.draw(h, Context(generator=torch.Generator().manual_seed(seed)))
    decisions = 3000 * (16 if granularity == "element" else 4)
    error = math.sqrt(rate / (1 - rate) / decisions)
    assert abs(drop(h, draws).mean() - 1) < 5 * error


# --- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.1}, r"rate=1.1 is outside \[0, 1\]"),
        ({"rate": "a"}, "rate='a' is no number"),
        ({"granularity": "chanel"}, "Did you mean 'channel'"),
        ({"granularity": None}, "granularity=None is unknown"),
        ({"block_size": 3}, "block_size=3 is of granularity='block', and not of 'element'"),
        ({"heads": 3, "granularity": "channel"}, "heads=3 is of granularity='head'"),
        ({"shared": True}, "shared=True is of granularity='block'"),
        ({"granularity": "head"}, "needs heads="),
        ({"granularity": "head", "heads": 0}, "heads=0: give a whole number of at least 1"),
        ({"granularity": "block", "block_size": 0}, "block_size=0: give a whole number"),
        ({"granularity": "block", "block_size": 2.0}, "block_size=2.0: give a whole number"),
        ({"granularity": "block", "shared": 1}, "shared=1 is neither True nor False"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Dropout(**options)


@pytest.mark.parametrize(
    ("drop", "shape", "message"),
    [
        (Dropout(0.5, "head", heads=3), (2, 4, 8), "8 channels .* are not those of heads=3"),
        (Dropout(0.5, "head", heads=2), (2, 4, 8, 8), "4 channels .* are not those of heads=2"),
        (Dropout(0.5, "block"), (2, 4), "have 0"),
        (Dropout(0.5, "block"), (2, 4, 3, 3, 3, 3), "have 4"),
    ],
)
def test_rows_that_do_not_fit_are_refused(drop: Dropout, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(BatchError, match=message):
        drop.draw(torch.zeros(shape))
