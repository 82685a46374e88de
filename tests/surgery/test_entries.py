"""Sites that return several tensors, of which the model goes on with one; oracle: forward hooks at that entry."""

from __future__ import annotations

import enum
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


class Key(enum.Enum):
    FIRST = 1
    SECOND = 2


@dataclass(frozen=True)
class Frozen:
    first: Tensor
    second: Tensor


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
    "frozen dataclass": (Frozen, lambda r: r.second, ("second",)),
    "output of transformers": (Output, lambda r: r.second, ("second",)),
    "output of transformers, by position": (Output, lambda r: r[1], None),
}


@pytest.mark.few(5)
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


@pytest.mark.few(5)
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


@pytest.mark.few(2)
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_is_skipped_by_whatever_of_it_is_used(name: str) -> None:
    """The last state has its rows in dimension 1."""
    x = torch.randn(6, 5, WIDTH)
    model = Uses(*RECURRENT[name])
    model(x)
    aug = ga.rewrite(model, at="inner", stop_grad=True, example_inputs=x)
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (
        2,
        14,
    ):  # of 2.11 the rows of states are not proved
        assert aug.plan.backward == "sparse", aug.plan.reason
    assert aug.plan.sites[0].rows.endswith("6 samples")
    ga.verify(aug, x)  # raises where hooks differ


class Kept(nn.Module):
    """A module that is called for what it keeps, or writes."""

    def __init__(self, act: Callable[[Kept, Any], Any]) -> None:
        super().__init__()
        self.linear, self.act, self.loss = nn.Linear(WIDTH, WIDTH), act, torch.zeros(())

    def forward(self, given: Any) -> Any:
        return self.act(self, given)


def keeps_a_loss(module: Kept, given: Any) -> Any:
    module.loss = module.linear(given[0]).square().mean()
    return given[0], given[1]


def writes(module: Kept, given: Any) -> Any:
    given[1].mul_(2)
    return given[0], given[1]


class Drops(nn.Module):
    """Calls a module with what the site returns, and drops what comes of that."""

    def __init__(self, act: Callable[[Kept, Any], Any]) -> None:
        super().__init__()
        self.stem, self.inner, self.kept = nn.Linear(WIDTH, WIDTH), Two(lambda a, b: (a, b)), Kept(act)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = self.inner(self.stem(x))
        self.kept(both)
        return self.head(both[1])


@pytest.mark.parametrize("act", [keeps_a_loss, writes])
def test_what_a_module_does_beside_its_result_is_a_use(act: Callable[[Kept, Any], Any]) -> None:
    """Its result is dropped; what it keeps has a gradient, what it writes is read."""
    with pytest.raises(ga.GraphaugError, match="'inner' does not separate"):
        ga.rewrite(Drops(act), at="inner", stop_grad=True, example_inputs=torch.randn(6, WIDTH))


class Ready(nn.Module):
    """Decides by a buffer, so that fakes do not tell what comes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ready", torch.ones(()))
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if self.ready.item() else x


@pytest.mark.parametrize("name", RECURRENT)
def test_entries_of_a_value_that_is_not_known_are_told_by_their_names(name: str) -> None:
    x = torch.randn(6, 5, WIDTH)
    model = Uses(*RECURRENT[name])
    model.stem = Ready()  # type: ignore[assignment]
    model(x)
    aug = ga.rewrite(model, at="inner", rate=0.0, subset=1.0, stop_grad=True, example_inputs=x)
    assert any("NOT proved" in note for note in aug.plan.notes)
    aug(x).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.stem.parameters())
    both = Uses(nn.LSTM(WIDTH, WIDTH, batch_first=True), lambda r: r[0].mean(1) + r[1][0][-1])
    both.stem = Ready()  # type: ignore[assignment]
    both(x)
    with pytest.raises(ga.GraphaugError, match="another entry of 'inner'"):
        ga.rewrite(both, at="inner", stop_grad=True, example_inputs=x)


@pytest.mark.parametrize(
    "pick", [lambda r: r.pop("b"), lambda r: r.popitem()[1], lambda r: [r.pop("a"), r["b"]][1]]
)
def test_an_entry_that_is_taken_out_is_the_one(pick: Callable[[Any], Tensor]) -> None:
    x = torch.randn(6, WIDTH)
    model = Uses(Two(lambda a, b: {"a": a, "b": b}), pick)
    model(x)
    aug = ga.rewrite(model, at="inner", stop_grad=True, example_inputs=x)
    assert aug.plan.sites[0].entry == ("b",)
    ga.verify(aug, x)


def test_two_entries_of_which_one_is_taken_out_are_a_bypass() -> None:
    x = torch.randn(6, WIDTH)
    model = Uses(Two(lambda a, b: {"a": a, "b": b}), lambda r: r.pop("b") + r["a"])
    model(x)
    with pytest.raises(ga.GraphaugError, match="another entry of 'inner'"):
        ga.rewrite(model, at="inner", example_inputs=x)


def test_the_size_of_another_entry_is_no_use_of_it() -> None:
    x = torch.randn(6, 5, WIDTH)
    layer = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    model = Uses(layer, lambda r: r[1][0].transpose(0, 1).reshape(r[0].size(0), -1))
    model(x)
    aug = ga.rewrite(model, at="inner", stop_grad=True, example_inputs=x)
    assert aug.plan.sites[0].entry == (1, 0)
    ga.verify(aug, x)


def test_keys_that_no_plan_can_hold_are_not_followed() -> None:
    """A site with such keys is one of several entries, of which the first is augmented."""
    x = torch.randn(6, WIDTH)
    model = Uses(Two(lambda a, b: {Key.FIRST: a, Key.SECOND: b}), lambda r: r[Key.SECOND])
    model(x)
    with pytest.raises(ga.GraphaugError, match="another entry of 'inner'"):
        ga.rewrite(model, at="inner", example_inputs=x)


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
