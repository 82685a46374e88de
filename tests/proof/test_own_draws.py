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


class Drawing(nn.Module):
    """It draws in front of the cut, in the way that is asked for."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.a, self.always, self.b, self.c = nn.Linear(6, 6), Call(draw), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.always(self.a(x))))


class Call(nn.Module):
    """A closed module that draws in both modes."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return self.draw(x)


DRAWS = {
    "normal": lambda x: x + torch.randn_like(x),
    "in place": lambda x: x * torch.empty_like(x).uniform_(0.5, 1.5),
    "yes or no": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    "integers": lambda x: x + torch.randint(1, 9, x.shape),
    "order": lambda x: x + x.detach()[torch.randperm(len(x))],
    "categories": lambda x: x[:, torch.multinomial(torch.ones(x.shape[1]), 6)] + torch.randn(len(x), 1),
}


@pytest.mark.parametrize("options", [{}, {"views": 2}, {"views": 2, "pairing": "together"}], ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_closed_modules_that_draw_in_front_of_the_cut_are_no_false_alarm(
    name: str, options: dict[str, Any]
) -> None:
    x = torch.randn(8, 6)
    aug = ga.rewrite(Drawing(DRAWS[name]), "b", stop_grad=True, example_inputs=x, **options)
    apart = aug.plan.backward == "sparse" or bool(options)
    assert ("its noise the same number everywhere" in str(ga.verify(aug, x))) == apart


def test_a_branch_that_draws_is_compared_too() -> None:
    class Noisy(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Sequential(nn.Linear(6, 6), Call(DRAWS["normal"]))

    x = torch.randn(8, 6)
    claims = str(ga.verify(ga.skip_rows(Noisy(), "b", rate=0.5, example_inputs=x), x))
    assert "its noise the same number everywhere" in claims


@pytest.mark.parametrize("options", [{}, {"views": 2, "pairing": "together"}], ids=str)
def test_with_noise_in_front_of_it_a_wrong_suffix_is_found(options: dict[str, Any]) -> None:
    x = torch.randn(8, 6)
    model = Drawing(DRAWS["normal"])
    aug = ga.rewrite(model, "b", stop_grad=True, backward="sparse", example_inputs=x, **options)
    (last,) = (n for n in aug._parts.split.suffix.nodes if n.target == "c")
    with aug._parts.split.suffix.inserting_after(last):
        more = aug._parts.split.suffix.call_function(torch.mul, (last, 1.01))
    last.replace_all_uses_with(more, delete_user_cb=lambda user: user is not more)
    aug.recompile()
    with pytest.raises(VerificationError, match="in training mode the output differs"):
        ga.verify(aug, x)
