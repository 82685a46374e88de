"""Calls that leave a constant of the example out, or give one of another type. Oracle: the model's own call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated

pytestmark = pytest.mark.few(8)


class Net(nn.Module):
    """What ``how`` does it does behind the site."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def behind(self, h: Tensor, how: Any) -> Tensor:
        if how is None:
            return h
        return h * (3 if how is True else 5 if how is False else 0.5 + len(str(how)))


class ByDefault(Net):
    def forward(self, x: Tensor, how: Any = False) -> Tensor:
        return self.last(self.behind(self.first(x), how))


class ByNumber(Net):
    def forward(self, x: Tensor, how: Any = 2.0) -> Tensor:
        return self.last(self.behind(self.first(x), how))


class ByKeyword(Net):
    def forward(self, x: Tensor, *, how: Any = True) -> Tensor:
        return self.last(self.behind(self.first(x), how))


class ByAnyKeyword(Net):
    def forward(self, x: Tensor, **more: Any) -> Tensor:
        return self.last(self.behind(self.first(x), more.get("how", True)))


X = torch.randn(4, 8)
GIVEN = [(), (True,), (False,), (None,), (1,), (0,), (2.0,), (2,), ("2",)]


@pytest.mark.parametrize("cls", [ByDefault, ByNumber, ByKeyword, ByAnyKeyword])
@pytest.mark.parametrize("example", GIVEN, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_a_call_is_the_models_or_refused(cls: type[Net], example: tuple[Any, ...], training: bool) -> None:
    model = cls()
    named = [{"how": how[0]} if how else {} for how in (example, *GIVEN)]
    aug = ga.rewrite(model, at="first", rate=0.0, example_inputs={"x": X, **named[0]}).train(training)
    assert torch.equal(aug(X, **named[0]), model(X, **named[0]))
    for more in named[1:]:
        try:
            found = aug(X, **more)
        except AssumptionViolated:
            assert training  # eval mode refuses nothing
        else:
            assert torch.equal(found, model(X, **more)), more


def test_an_input_that_is_given_twice_is_refused() -> None:
    aug = ga.rewrite(ByDefault(), at="first", example_inputs=X)
    with pytest.raises(AssumptionViolated, match="gives 'x' twice"):
        aug(X, x=X)


def test_a_call_that_lacks_a_constant_says_what_it_takes_instead() -> None:
    aug = ga.rewrite(ByDefault(), at="first", example_inputs={"x": X, "how": True})
    with pytest.raises(AssumptionViolated, match="with how=True, which this call lacks: it is False there"):
        aug(X)


class TakesAlong(nn.Module):
    """Takes keywords along, and looks at some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, **options: Any) -> Any:
        h = self.first(x)
        if options.get("doubled"):
            h = h * 2
        h = h * options.get("factor", 1.0)
        h = self.last(h)
        return (h, h) if options.get("both") else h


def test_a_keyword_that_makes_no_difference_may_be_given_or_not() -> None:
    model, x = TakesAlong(), torch.randn(4, 8)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs={"x": x, "modality": "text", "number": 3})
    for options in ({}, {"modality": "text"}, {"number": 3}, {"modality": "text", "number": 3}):
        assert torch.equal(aug(x, **options), model(x))
    with pytest.raises(AssumptionViolated, match="modality"):
        aug(x, modality="image")


@pytest.mark.parametrize("options", [{"doubled": True}, {"factor": 3.0}, {"both": True}], ids=str)
def test_a_keyword_that_makes_a_difference_is_missed(options: dict[str, Any]) -> None:
    model, x = TakesAlong(), torch.randn(4, 8)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs={"x": x, "modality": "text", **options})
    found, expected = (m(x, **options) for m in (aug, model))
    assert all(map(torch.equal, *(v if isinstance(v, tuple) else (v,) for v in (found, expected))))
    with pytest.raises(AssumptionViolated, match="which this call lacks"):
        aug(x)
