"""What ``functools.cached_property`` keeps is made by the model's own first call. Oracle: a model never rewritten."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import CaptureError

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """A forward that reads a number, a tensor and a switch of what is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

    @functools.cached_property
    def scale(self) -> float:
        return float(self.inner.weight.detach().norm())

    @functools.cached_property
    def table(self) -> Tensor:
        return self.inner.weight.detach().mean(0)

    @functools.cached_property
    def wide(self) -> bool:
        return self.inner.out_features > 4

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x) * self.scale + self.table
        return self.last(h if self.wide else -h)


class Overridden(Scaled):
    """A forward that reads none of it, of a class whose forward does."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x))


class Branching(Scaled):
    """A forward that is refused."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x) * self.scale
        return self.last(h if h.sum() > 0 else -h)


class Listed(Scaled):
    """A forward that reads a list that is kept."""

    @functools.cached_property
    def factors(self) -> list[float]:
        return [1.0, 2.0]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x) * self.factors[1])


def kept(model: nn.Module) -> set[str]:
    return vars(model).keys() & {"scale", "table", "wide", "factors"}


@pytest.mark.parametrize("examples", [{"example_inputs": X}, {}], ids=["examples", "guessed"])
@pytest.mark.parametrize("cls", [Scaled, Overridden])
def test_nothing_is_kept_by_a_capture(cls: type[Scaled], examples: dict[str, Any]) -> None:
    """Weights that are loaded between rewriting and the first call are those that the kept values are made of."""
    torch.manual_seed(0)
    model = cls()
    plain, loaded = copy.deepcopy(model), {k: 3 * v for k, v in model.state_dict().items()}
    aug = ga.rewrite(model, at="inner", rate=0.0, **examples)
    assert not kept(model)
    for one in (model, plain):
        one.load_state_dict(loaded)
    for mode in (True, False):
        assert torch.equal(aug.train(mode)(X), plain.train(mode)(X))
    assert kept(model) == kept(plain)


def test_nothing_is_kept_by_a_refused_capture() -> None:
    model = Branching()
    with pytest.raises(CaptureError, match="branches on the data"):
        ga.rewrite(model, at="inner", rate=0.0, example_inputs=X)
    assert not kept(model)


def test_what_is_kept_by_now_is_read() -> None:
    model = Scaled()
    expected = model(X)
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=X)
    assert torch.equal(aug.train()(X), expected)
    assert kept(model) == {"scale", "table", "wide"}


def test_an_object_is_to_be_made_before() -> None:
    model = Listed()
    with pytest.raises(CaptureError, match=r"'factors', a cached_property.*Run the model once"):
        ga.rewrite(model, at="inner", rate=0.0, example_inputs=X)
    assert not kept(model)
    expected = model(X)
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=X)
    assert torch.equal(aug.train()(X), expected)


class Child(nn.Module):
    """Keeps a number that its parent reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    @functools.cached_property
    def width(self) -> float:
        return float(self.layer.weight.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class OfAChild(nn.Module):
    """A forward that reads what a closed child keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = Child(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x) / self.inner.width)


class OfValues(Scaled):
    """A forward that reads a dtype, a device and a size that are kept."""

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        return self.inner.weight.dtype

    @functools.cached_property
    def device(self) -> torch.device:
        return self.inner.weight.device

    @functools.cached_property
    def shape(self) -> torch.Size:
        return self.inner.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x).to(self.device, self.dtype) * self.shape[0])


class Registering(Scaled):
    """A forward that reads what registers a buffer when it is made."""

    @functools.cached_property
    def mask(self) -> Tensor:
        self.register_buffer("made", torch.ones(6))
        return self.made

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x) * self.mask)


@pytest.mark.parametrize("cls", [OfAChild, OfValues])
def test_values_and_what_a_child_keeps_are_read_in_the_first_call(cls: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = cls()
    plain = copy.deepcopy(model)
    aug = ga.rewrite(model, at="inner", rate=0.0, example_inputs=X).train()
    for _ in range(2):
        assert torch.equal(aug(X), plain(X))


def test_what_changes_more_when_it_is_made_is_to_be_made_before() -> None:
    model = Registering()
    with pytest.raises(CaptureError, match=r"'mask', a cached_property.*sets 'made'.*Run the model once"):
        ga.rewrite(model, at="inner", rate=0.0, example_inputs=X)
    assert "made" not in model._buffers
    expected = model(X)
    assert torch.equal(ga.rewrite(model, at="inner", rate=0.0, example_inputs=X).train()(X), expected)
