"""Models that draw for themselves, in front of the cut and behind it: `verify` compares the same draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import VerificationError

pytestmark = pytest.mark.few(4)


class Vae(nn.Module):
    """It draws behind the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2))
        self.mu, self.spread, self.dec = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(3, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.enc(x)
        mu = self.mu(h)
        return self.dec(mu + torch.randn_like(mu) * (0.5 * self.spread(h)).exp()), mu


class Always(nn.Module):
    """A closed module that draws in both modes."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Everywhere(nn.Module):
    """It draws in front of the cut, for what comes behind too, and behind it in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3))
        self.drop, self.always, self.dec = nn.Dropout(0.3), Always(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        later, noisy = torch.randn(x.shape[0], 3), x + 0.1 * torch.randn_like(x)
        h = self.always(self.drop(self.enc(noisy)))
        return self.dec(nn.functional.gumbel_softmax(h)) + later + torch.randn(x.shape[0], 3)


@pytest.mark.parametrize("backward", ["sparse", "dense"])
@pytest.mark.parametrize(
    "options",
    [{"rate": 0.3}, {"transform": ga.Noise(0.1)}, {"transform": ga.Mix()}],
    ids=["drop", "noise", "mix"],
)
@pytest.mark.parametrize("kind", [Vae, Everywhere])
def test_verify_passes_a_model_that_draws(kind: Any, options: dict[str, Any], backward: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    aug = ga.rewrite(kind(), "enc", stop_grad=True, backward=backward, example_inputs=x, **options)
    state = torch.get_rng_state()
    assert f"training mode{' (sparse' if backward == 'sparse' else ''}" in str(ga.verify(aug, x))
    assert torch.equal(torch.get_rng_state(), state)


def test_so_it_does_with_views_and_skipped_rows() -> None:
    x = torch.randn(8, 6)
    ga.verify(ga.rewrite(Vae(), "enc", views=2, pairing="together", stop_grad=True, example_inputs=x), x)
    ga.verify(ga.skip_rows(Residual(), "b", rate=0.5, example_inputs=x), x)


class Residual(nn.Module):
    """A branch, and noise behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = h + self.b(h)
        return self.c(h + torch.randn_like(h))


def scaled(x: Tensor) -> Tensor:
    return 1.5 * torch.randn_like(x)


def drawn_for_half(x: Tensor) -> Tensor:
    return torch.cat([torch.randn_like(part) for part in x.chunk(2)])


def drawn_twice(x: Tensor) -> Tensor:
    torch.randn_like(x)
    return torch.randn_like(x)


@pytest.mark.parametrize("other", [scaled, drawn_for_half, drawn_twice, torch.rand_like])
def test_other_noise_behind_the_cut_is_found(other: Any) -> None:
    x = torch.randn(8, 6)
    aug = ga.rewrite(Vae(), "enc", stop_grad=True, backward="sparse", example_inputs=x)
    (noise,) = (n for n in aug._parts.split.suffix.nodes if n.target is torch.randn_like)
    noise.target = other
    aug.recompile()
    with pytest.raises(VerificationError, match="in training mode the output differs"):
        ga.verify(aug, x)
