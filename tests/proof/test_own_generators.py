"""Generators that a forward makes anew, and those that the model keeps. Oracle: the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import CaptureError


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.generator = torch.Generator().manual_seed(1)


class Anew(Noisy):
    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return self.last(self.first(x) * torch.rand(8, generator=generator))


class AnewInPlace(Noisy):
    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator()
        generator.manual_seed(len(x.shape))
        return self.last(self.first(x) * torch.empty(8).uniform_(generator=generator))


class Kept(Noisy):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * torch.rand(8, generator=self.generator))


@pytest.mark.parametrize("cls", [Anew, AnewInPlace])
def test_one_that_is_made_in_every_call_is_refused(cls: type[nn.Module]) -> None:
    with pytest.raises(CaptureError, match="generator"):
        ga.rewrite(cls(), at="first", example_inputs=torch.randn(4, 8))


@pytest.mark.parametrize("cls", [Anew, AnewInPlace, Kept])
def test_in_a_closed_module_and_kept_by_the_model_it_is_the_models(cls: type[nn.Module]) -> None:
    x = torch.randn(4, 8)
    model = nn.Sequential(cls(), nn.Linear(8, 3))
    aug = ga.rewrite(model, at="1", rate=0.0, example_inputs=x)
    for _ in range(3):
        model[0].generator.manual_seed(5)
        expected = model(x)
        model[0].generator.manual_seed(5)
        assert torch.equal(aug(x), expected)


def test_one_that_the_model_keeps_goes_on() -> None:
    model, x = Kept(), torch.randn(4, 8)
    aug = ga.rewrite(model, at="first", rate=0.0, example_inputs=x)
    model.generator.manual_seed(5)
    expected = [model(x), model(x)]
    model.generator.manual_seed(5)
    assert all(torch.equal(aug(x), e) for e in expected)
