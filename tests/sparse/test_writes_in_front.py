"""Opened code that writes into what a closed module before the cut holds. Oracle: the plain model with a hook."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import BypassedSite, GraphaugError

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Writing(nn.Module):
    """Writes into its layer before it calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.tied = nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied.weight = self.inner.weight

    def write(self) -> None:
        raise NotImplementedError

    def forward(self, h: Tensor) -> Tensor:
        self.write()
        return self.inner(h)


class Clipped(Writing):
    def write(self) -> None:
        self.inner.weight.data.clamp_(-0.1, 0.1)


class Detached(Writing):
    def write(self) -> None:
        self.inner.weight.detach().mul_(0.5)


class ByItem(Writing):
    def write(self) -> None:
        self.inner.weight.data[:, 0] = 0


class ByOut(Writing):
    def write(self) -> None:
        torch.clamp(self.inner.weight.data, -0.1, 0.1, out=self.inner.weight.data)


class ByKeyword(Writing):
    def write(self) -> None:
        nn.init.constant_(self.inner.bias, 3.0)


class OfAList(Writing):
    def write(self) -> None:
        torch._foreach_mul_([p.data for p in self.inner.parameters()], 0.5)


class ByAnotherName(Writing):
    def write(self) -> None:
        self.tied.weight.data.mul_(0.5)


class Halving(nn.Module):
    """Changes what another module holds when it is called."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        object.__setattr__(self, "layer", layer)

    def forward(self) -> None:
        self.layer.weight.data.mul_(0.5)


class ByAClosedModule(Writing):
    def __init__(self) -> None:
        super().__init__()
        self.halve = Halving(self.inner)

    def write(self) -> None:
        self.halve()


CASES = [Clipped, Detached, ByItem, ByOut, ByKeyword, OfAList, ByAnotherName, ByAClosedModule]


@pytest.mark.parametrize("cls", CASES)
def test_the_write_comes_first(cls: type[Writing]) -> None:
    """Three steps of an optimizer, whose first call is the write's first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), cls(), nn.Linear(6, 6))
    if cls is ByAClosedModule:  # a copy's module would hold the layer of this one
        plain = nn.Sequential(copy.deepcopy(model[0]), cls(), copy.deepcopy(model[2]))
        plain.load_state_dict(model.state_dict())
    else:
        plain = copy.deepcopy(model)
    try:
        aug = ga.rewrite(model, at="1.inner", rate=0.0, subset=0.5, stop_grad=True, example_inputs=X).train()
    except GraphaugError:
        assert cls is ByAClosedModule  # refused is right as well
        return
    optimizers = [torch.optim.SGD(m.parameters(), 0.5) for m in (model, plain)]
    for _ in range(3):
        found = aug(X)
        stopped = aug.drawn["1.inner"].rows[:, None]
        hook = plain[1].inner.register_forward_hook(
            lambda _m, _i, o, s=stopped: torch.where(s, o.detach(), o)
        )
        expected = plain(X)
        hook.remove()
        torch.testing.assert_close(found, expected)
        for optimizer, output in zip(optimizers, (found, expected), strict=True):
            optimizer.zero_grad()
            output.square().mean().backward()
            optimizer.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_every_claim_of_verify_begins_with_the_model_as_it_is() -> None:
    """A write that one claim's call makes would hide from the next that the write comes too late."""

    class Watched(Writing):
        def write(self) -> None:
            self.inner.bias.data.zero_()

    model = nn.Sequential(nn.Linear(6, 6), Watched(), nn.Linear(6, 6))
    bias = model[1].inner.bias.detach().clone()

    def as_it_was(*_: object) -> None:  # a list of what was seen would be put back
        torch.testing.assert_close(model[1].inner.bias.detach(), bias)

    model[0].register_forward_hook(as_it_was)
    aug = ga.rewrite(model, at="1.inner", rate=0.5, subset=0.5, stop_grad=True, example_inputs=X)
    ga.verify(aug, X)
    aug.train()(X)
    with pytest.raises(AssertionError):  # as a second call would find
        aug(X)


def test_a_way_around_the_cut_through_a_weight_is_found() -> None:
    """What is written into a layer behind the cut comes from in front of it."""

    class Fast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            self.head.weight.data.copy_(x.T @ x)
            return self.head(self.inner(x))

    with pytest.raises(BypassedSite):
        ga.rewrite(Fast(), at="inner", stop_grad=True, example_inputs=X)
