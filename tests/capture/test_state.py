"""What a forward changes of its modules: told from a copy that only iterates in another order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.capture.state import ModelState


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
