"""Regions of opened code that switch the grad mode. Oracle: the plain model, its gradients, and the mode behind it."""

import copy

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import CaptureError


class Net(nn.Module):
    def __init__(self, region) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.region, self.finetune = region, False

    @torch.set_grad_enabled(False)
    def frozen(self, x: Tensor) -> Tensor:
        return self.first(x)

    @torch.no_grad()
    def without(self, x: Tensor) -> Tensor:
        return self.first(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.region(self, x)).relu())


def off(m, x):
    with torch.set_grad_enabled(False):
        return m.first(x)


def on(m, x):
    with torch.set_grad_enabled(True):
        return m.first(x)


def by_an_attribute(m, x):
    with torch.set_grad_enabled(m.finetune):
        return m.first(x)


def by_the_mode(m, x):
    with torch.set_grad_enabled(m.training):
        return m.first(x)


def nested(m, x):
    with torch.set_grad_enabled(False):
        h = m.first(x)
        with torch.set_grad_enabled(True):
            h = h + m.first(x)
        return h + m.first(x).sum()


def set_and_set_back(m, x):
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    h = m.first(x)
    torch.set_grad_enabled(before)
    return h


def entered_later(m, x):
    region = torch.set_grad_enabled(True)
    with torch.no_grad():
        h = m.first(x)
        with region:
            h = h + m.first(x)
    return h


def mixed(m, x):
    with torch.no_grad(), torch.set_grad_enabled(True), torch.enable_grad():
        return m.first(x)


def by_a_decorator(m, x):
    return m.frozen(x)


def without_gradients(m, x):
    return m.without(x)


REGIONS = [off, on, by_an_attribute, by_the_mode, nested, set_and_set_back, mixed]


@pytest.mark.parametrize("at", ["second", "head"])
@pytest.mark.parametrize("region", [*REGIONS, by_a_decorator, without_gradients], ids=lambda f: f.__name__)
def test_gradients_and_the_mode_behind_it_are_the_models(region, at: str) -> None:
    model = Net(region)
    plain = copy.deepcopy(model)
    aug = ga.rewrite(model, at=at, subset=0.0, allow_bypass=True, example_inputs=torch.randn(6, 5))
    for rows in (6, 9):
        x = torch.randn(rows, 5)
        out, expected = aug(x), plain(x)
        assert torch.is_grad_enabled()
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        out.sum().backward()
        expected.sum().backward()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if q.grad is not None:
                torch.testing.assert_close(p.grad, q.grad)


def test_regions_that_cross_each_other_are_refused() -> None:
    with pytest.raises(CaptureError, match="runs with gradients in the model, and without in the graph"):
        ga.rewrite(Net(entered_later), at="second", allow_bypass=True, example_inputs=torch.randn(6, 5))
