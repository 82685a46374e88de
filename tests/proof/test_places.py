"""A site whose module came to stand at another site as well. Oracle: the model run by hand, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = (nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        self.again = self.head  # two names of one from the beginning

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.b(self.a(x))))


pytestmark = pytest.mark.few(6)
X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
SITES = ["a", "b", "a.0", "b.0", "head@0", "head@1"]


def shared(model: Net) -> None:
    model.b = model.a


def shared_inside(model: Net) -> None:
    model.b[0] = model.a[0]


def shared_backwards(model: Net) -> None:
    model.a = model.b


OPENED = {shared: "b.", shared_backwards: "a."}
"""The sites that open what is exchanged, which is refused."""
CHANGES = [lambda _: None, shared, shared_inside, shared_backwards]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", [SITES, ["a", "b"], ["b", "a"], ["b"], ["a.0"], ["b.0"], ["head@1"]])
def test_a_tap_is_verified_at_its_own_place(change, at) -> None:
    model = Net()
    tapped = ga.tap(model, at, example_inputs=X)
    change(model)
    if any(site.startswith(OPENED.get(change, "-")) for site in at):
        with pytest.raises(AssumptionViolated, match="was exchanged"):
            tapped(X)
        return
    modules, parts = (
        dict(model.named_modules(remove_duplicate=False)),
        [dict(m._modules) for m in model.modules()],
    )
    values = {"a.0": model.a[0](X), "a": model.a(X)}
    values |= {"b.0": model.b[0](values["a"]), "b": model.b(values["a"])}
    values["head@0"] = model.head(values["b"])
    values["head@1"] = model.head(values["head@0"])
    found = tapped.eval()(X)
    assert all(torch.equal(found[site], values[site]) for site in at)
    assert len(ga.verify(tapped, X).claims) == 3
    assert dict(model.named_modules(remove_duplicate=False)) == modules
    assert [m._modules for m in model.modules()] == parts
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", ["b", "head@1"])
def test_so_is_an_augmentation(change, at) -> None:
    model = Net()
    aug = ga.rewrite(model, at, rate=0.5, example_inputs=X)
    change(model)
    assert any("equal those of forward hooks" in claim for claim in ga.verify(aug, X).claims)
