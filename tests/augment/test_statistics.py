"""MixStyle and DSU against their papers' equations, written down channel by channel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from graphaug.augment.transform import Context
from graphaug.augment.transforms.statistics import MixedStyle, NewStyle, Statistics
from graphaug.errors import BatchError, InvalidOption

EPS = 1e-6
SHAPES = {"maps": (5, 3, 4, 6), "tokens": (5, 7, 3), "volumes": (4, 2, 3, 2, 3)}


def normal(*shape: int) -> Tensor:
    scales = torch.linspace(0.5, 3, shape[0], dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
    return (torch.randn(*shape, dtype=torch.float64) * scales + 2 * scales).requires_grad_()


def channels_in_front(x: Tensor) -> Tensor:
    """Rows, channels and positions."""
    return x.movedim(-1, 1) if x.dim() == 3 else x.flatten(2)


def moments(x: Tensor, i: int, c: int) -> tuple[Tensor, Tensor]:
    """µ and σ of one row and channel."""
    values = channels_in_front(x)[i, c]
    mean = values.sum() / values.numel()
    variance = ((values - mean) ** 2).sum() / (values.numel() - 1)
    return mean, (variance + EPS) ** 0.5


def assert_same(ours: Tensor, theirs: Tensor, h: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    cotangent = torch.randn_like(ours)
    one, other = (torch.autograd.grad(out, h, cotangent)[0] for out in (ours, theirs))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def back(out: Tensor, like: Tensor) -> Tensor:
    return out.movedim(1, -1) if like.dim() == 3 else out.view_as(like)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_given_the_same_draws_it_is_mixstyle(shape: tuple[int, ...]) -> None:
    """Zhou et al. 2021: γ = λσ(x) + (1-λ)σ(x̃), β = λµ(x) + (1-λ)µ(x̃), γ·(x - µ(x))/σ(x) + β, statistics detached."""
    torch.manual_seed(0)
    h, style = normal(*shape), Statistics("mixstyle", alpha=1.0)
    draws = style.draw(h)
    assert isinstance(draws, MixedStyle)
    x, expected = channels_in_front(h), []
    for i in range(shape[0]):
        j, lam = int(draws.partners[i]), draws.lam[i]
        for c in range(x.shape[1]):
            (mean, std), (mean2, std2) = moments(h.detach(), i, c), moments(h.detach(), j, c)
            gamma, beta = lam * std + (1 - lam) * std2, lam * mean + (1 - lam) * mean2
            expected.append(gamma * (x[i, c] - mean) / std + beta)
    assert_same(style(h, draws), back(torch.stack(expected).view_as(x), h), h)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_given_the_same_draws_it_is_dsu(shape: tuple[int, ...], scale: float | None) -> None:
    """Li et al. 2022: β ~ N(µ, Σµ²), γ ~ N(σ, Σσ²), Σ² the variance over the batch; γ·(x - µ)/σ + β, with gradient."""
    torch.manual_seed(0)
    h, style = normal(*shape), Statistics("dsu", scale=scale)
    draws = style.draw(h)
    assert isinstance(draws, NewStyle)
    x = channels_in_front(h)
    n, channels = x.shape[:2]
    expected: list[list[Tensor]] = [[] for _ in range(n)]
    noise = [
        t.movedim(-1, 1).reshape(n, channels) if h.dim() == 3 else t.view(n, channels)
        for t in (draws.mean, draws.std)
    ]
    for c in range(channels):
        statistics = [moments(h, i, c) for i in range(n)]
        sigmas = []
        for kind in (0, 1):
            values = torch.stack([s[kind] for s in statistics])
            sigmas.append((((values - values.mean()) ** 2).sum() / (n - 1) + EPS) ** 0.5)
        for i, (mean, std) in enumerate(statistics):
            beta = mean + (scale or 1.0) * noise[0][i, c] * sigmas[0]
            gamma = std + (scale or 1.0) * noise[1][i, c] * sigmas[1]
            expected[i].append(gamma * (x[i, c] - mean) / std + beta)
    theirs = torch.stack([torch.stack(row) for row in expected])
    assert_same(style(h, draws), back(theirs, h), h)


def test_the_new_statistics_are_the_ones_drawn() -> None:
    """A property of both: the restyled rows have the mixed, or drawn, mean and standard deviation."""
    torch.manual_seed(1)
    h = normal(6, 2, 9, 9).detach()
    style = Statistics("mixstyle")
    out = style(
        h, MixedStyle(torch.tensor([True]), torch.arange(6).roll(1), torch.zeros(6, dtype=torch.float64))
    )
    torch.testing.assert_close(out.mean((2, 3)), h.mean((2, 3)).roll(1, 0))
    torch.testing.assert_close(out.std((2, 3)), h.std((2, 3)).roll(1, 0), rtol=1e-4, atol=0)
    still = Statistics("dsu", scale=0.0)
    torch.testing.assert_close(still(h, still.draw(h)), h)


@pytest.mark.parametrize("method", ["mixstyle", "dsu"])
def test_a_forward_acts_with_the_probability(method: str) -> None:
    """On all rows or none: 400 draws within 5 standard deviations of their number."""
    h, style = torch.randn(3, 2, 4, 4), Statistics(method, probability=0.3)
    generator = torch.Generator().manual_seed(0)
    acted = 0
    for _ in range(400):
        draws = style.draw(h, Context(generator=generator))
        same = torch.equal(style(h, draws), h)
        assert same != bool(draws.active)
        acted += not same
    assert abs(acted - 120) < 5 * (400 * 0.3 * 0.7) ** 0.5
    style.set(probability=0.0)
    assert torch.equal(style(h, style.draw(h)), h)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mixstle"}, "Did you mean 'mixstyle'"),
        ({"alpha": 0.0}, r"alpha=0.0 is outside \(0, inf\)"),
        ({"method": "dsu", "alpha": 0.1}, "alpha=0.1 is of method='mixstyle', and not of 'dsu'"),
        ({"scale": 1.0}, "scale=1.0 is of method='dsu'"),
        ({"probability": 2}, r"probability=2 is outside \[0, 1\]"),
        ({"eps": 0.0}, r"eps=0.0 is outside \(0, inf\)"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Statistics(**options)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1, 1), (4, 1, 3)])
def test_without_two_positions_there_is_no_variance(shape: tuple[int, ...]) -> None:
    with pytest.raises(BatchError, match="no two positions"):
        Statistics("dsu").draw(torch.randn(shape))
