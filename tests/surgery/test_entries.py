"""Sites that return several tensors, of which the model goes on with one; oracle: forward hooks at that entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

import graphaug as ga

WIDTH = 8


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Both:
    first: Tensor
    second: Tensor


@dataclass
class Output(ModelOutput):
    """As encoders of transformers return it."""

    first: Tensor | None = None
    second: Tensor | None = None


class Two(nn.Module):
    """Two tensors, in one structure or another."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.pack = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.a(x), self.b(x))


class Uses(nn.Module):
    """A model that goes on with one of them."""

    def __init__(self, inner: nn.Module, pick: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.stem, self.inner, self.head, self.pick = nn.Linear(WIDTH, WIDTH), inner, nn.LazyLinear(3), pick

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pick(self.inner(self.stem(x))))


PACKED: dict[str, tuple[Any, Callable[[Any], Tensor], tuple[Any, ...]]] = {
    "tuple, first": (lambda a, b: (a, b), lambda r: r[0], (0,)),
    "tuple, second": (lambda a, b: (a, b), lambda r: r[1], (1,)),
    "list": (lambda a, b: [a, b], lambda r: r[1], (1,)),
    "nested": (lambda a, b: (a, (b, a)), lambda r: r[1][0], (1, 0)),
    "dict": (lambda a, b: {"a": a, "b": b}, lambda r: r["b"], ("b",)),
    "dict in a tuple": (lambda a, b: (a, {"b": b}), lambda r: r[1]["b"], (1, "b")),
    "named tuple": (Pair, lambda r: r.second, None),
    "dataclass": (Both, lambda r: r.second, ("second",)),
    "output of transformers": (Output, lambda r: r.second, ("second",)),
    "output of transformers, by position": (Output, lambda r: r[1], None),
}


@pytest.mark.parametrize("name", PACKED)
def test_the_one_entry_that_is_used_is_augmented(name: str) -> None:
    pack, pick, entry = PACKED[name]
    x = torch.randn(6, WIDTH)
    model = Uses(Two(pack), pick)
    model(x)
    aug = ga.rewrite(model, at="inner", stop_grad=True, backward="sparse", example_inputs=x)
    (site,) = aug.plan.sites
    assert site.shape == (6, WIDTH)
    assert entry is None or site.entry == entry
    assert aug.plan.backward == "sparse", aug.plan.reason
    ga.verify(aug, x)  # raises where hooks differ
    shown = next(s for s in ga.sites(model, x) if s.path == "inner")
    assert shown.separates
    assert shown.shape == (6, WIDTH)
    assert ga.Plan.from_json(aug.plan.to_json()) == aug.plan


@pytest.mark.parametrize("name", PACKED)
def test_every_row_of_that_entry_can_be_stopped(name: str) -> None:
    """The gradient of everything before the cut is none, that of what is behind it the model's own."""
    pack, pick, _ = PACKED[name]
    x = torch.randn(6, WIDTH)
    model = Uses(Two(pack), pick)
    model(x).sum().backward()
    head = {n: p.grad.clone() for n, p in model.head.named_parameters() if p.grad is not None}
    model.zero_grad()
    aug = ga.rewrite(model, at="inner", rate=0.0, subset=1.0, stop_grad=True, example_inputs=x)
    aug(x).sum().backward()
    assert all(
        p.grad is None or not p.grad.any() for p in [*model.stem.parameters(), *model.inner.parameters()]
    )
    for parameter, gradient in head.items():
        torch.testing.assert_close(dict(model.head.named_parameters())[parameter].grad, gradient)


RECURRENT: dict[str, tuple[nn.Module, Callable[[Any], Tensor]]] = {
    "LSTM, outputs": (nn.LSTM(WIDTH, WIDTH, batch_first=True), lambda r: r[0].mean(1)),
    "LSTM, last state": (nn.LSTM(WIDTH, WIDTH, batch_first=True), lambda r: r[1][0][-1]),
    "LSTM, last cell": (nn.LSTM(WIDTH, WIDTH, batch_first=True), lambda r: r[1][1][-1]),
    "GRU, outputs": (nn.GRU(WIDTH, WIDTH, batch_first=True), lambda r: r[0].mean(1)),
    "GRU, last state": (nn.GRU(WIDTH, WIDTH, batch_first=True), lambda r: r[1][-1]),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_is_skipped_by_whatever_of_it_is_used(name: str) -> None:
    """The last state has its rows in dimension 1."""
    x = torch.randn(6, 5, WIDTH)
    model = Uses(*RECURRENT[name])
    model(x)
    aug = ga.rewrite(model, at="inner", stop_grad=True, example_inputs=x)
    assert aug.plan.backward == "sparse", aug.plan.reason
    assert aug.plan.sites[0].rows.endswith("6 samples")
    ga.verify(aug, x)  # raises where hooks differ


def test_an_entry_that_is_used_beside_another_is_a_bypass() -> None:
    x = torch.randn(6, WIDTH)
    model = Uses(Two(lambda a, b: (a, b)), lambda r: r[0] + r[1])
    model(x)
    with pytest.raises(ga.GraphaugError, match="another entry of 'inner'"):
        ga.rewrite(model, at="inner", example_inputs=x)


def test_a_tap_still_reads_all_that_a_site_returns() -> None:
    x = torch.randn(6, WIDTH)
    model = Uses(Two(lambda a, b: (a, b)), lambda r: r[1])
    model(x)
    kept: list[Any] = []
    model.inner.register_forward_hook(lambda _, args, out: kept.append(out))
    model(x)
    found = ga.tap(model, at="inner", example_inputs=x)(x)["inner"]
    assert all(torch.equal(a, b) for a, b in zip(found, kept[0], strict=True))
