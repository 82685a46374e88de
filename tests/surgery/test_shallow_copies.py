"""A shallow copy of a rewritten model is another one with the same modules. Oracle: the plain model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, SparseBackwardLost

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two graphs, a number that they rely on, and a child of a name that needs an alias."""

    def __init__(self) -> None:
        super().__init__()
        self.blk, self.mid, self.doubled = nn.Linear(6, 6), nn.Linear(6, 6), False
        self.add_module("class", nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = getattr(self, "class")(self.mid(self.blk(x)))
        h = h + 1 if self.training else h
        return h * 2 if self.doubled else h


def rewritten(**options: object) -> tuple[Net, ga.AugmentedModule]:
    model = Net()
    return model, ga.rewrite(model, "mid", rate=0.5, example_inputs=X, **options).train()


@pytest.mark.few(3)
@pytest.mark.parametrize("options", [{}, {"stop_grad": True}, {"freeze": "before"}, {"views": 2}])
def test_a_shallow_copy_is_a_rewritten_model_of_the_same_modules(options: dict[str, object]) -> None:
    model, aug = rewritten(**options)
    aug.set_rate(0.25)
    aug.note = "kept"
    twin = copy.copy(aug)
    assert isinstance(twin, ga.AugmentedModule)
    assert str(twin.plan) == str(aug.plan)
    assert "now rate 0.25" in str(twin.plan)
    assert (twin.note, twin.training, twin.original is model) == ("kept", True, True)
    assert list(map(id, twin.modules()))[1:] == list(map(id, aug.modules()))[1:]
    assert all(a is b for a, b in zip(twin.parameters(), aug.parameters(), strict=True))
    ga.verify(twin, X)
    outs = []
    for one in (aug, twin):
        torch.manual_seed(1)
        model.zero_grad()
        outs.append(one(X))
        outs[-1].square().sum().backward()
        outs += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    half = len(outs) // 2
    assert all(map(torch.equal, outs[:half], outs[half:]))
    model.doubled = True
    with pytest.raises(AssumptionViolated, match="doubled"):
        twin(X)
    assert torch.equal(twin.eval()(X), model(X))
    assert ga.strip(twin) is model
    assert all(p.requires_grad for p in model.parameters())


def test_each_shallow_copy_says_for_itself_that_a_sparse_step_is_lost() -> None:
    model, aug = rewritten(stop_grad=True)
    twin, was = copy.copy(aug), model.blk
    model.blk = nn.Linear(6, 6)
    for one in (twin, aug):
        with pytest.warns(SparseBackwardLost):
            one(X)
        assert one.plan.backward == "dense"
    again = copy.copy(aug)
    model.blk = was
    for one in (twin, aug, again):
        one(X)
        assert one.plan.backward == "sparse"


def test_what_is_exchanged_or_added_is_so_in_the_other_where_it_is_the_models() -> None:
    model, aug = rewritten()
    aug.probe = nn.Linear(6, 2)
    twin = copy.copy(aug)
    assert twin.probe is aug.probe
    twin.blk = nn.Identity()
    assert aug.blk is model.blk is twin.blk
    assert isinstance(aug.blk, nn.Identity)
    twin.eval()
    assert aug.training
    assert not model.blk.training
    assert not aug.probe.training
