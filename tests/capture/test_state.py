"""What a forward changes of its modules: told from a copy that only iterates in another order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.capture.state import ModelState, unchanged


class Named(nn.Module):
    """Keeps a set, as transformers' models do, that its forward reads and does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.kept = {0}
        self.kept.update((9, 8))
        self.kept.discard(0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h) if 8 in self.kept else h


def test_a_set_is_the_same_in_any_order() -> None:
    model, x = Named(), torch.randn(4, 8)
    assert list(model.kept) != list(set(model.kept))  # else this shows nothing
    assert list(ModelState(model).changes()) == []
    aug = ga.rewrite(model, "first", subset=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))


def test_another_entry_is_a_change() -> None:
    model = Named()
    state = ModelState(model)
    model.kept.add(5)
    assert list(state.changes()) == ["kept"]
    state.restore()
    assert model.kept == {8, 9}


def test_statistics_that_a_kernel_writes_without_counting_are_put_back() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    before = {name: b.clone() for name, b in model.named_buffers()}
    with unchanged(model):
        model(torch.randn(4, 8))
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
