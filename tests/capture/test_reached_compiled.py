"""Changes after compiling that torch's compiler has to see by itself: it compiles anew, and then all is compared."""

import collections
import functools

import pytest
import torch
from compiling import check_noticed_when_compiled
from torch import Tensor, nn

import graphaug as ga

Gains = collections.namedtuple("Gains", "first")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.gains, self.size = Gains(1.0), torch.Size([1])
        self.scaled = functools.partial(torch.mul, other=1.0)
        self.table, self.shift = {"a": torch.ones(4)}, torch.ones(4)
        self.prompts = nn.ParameterDict({"a": nn.Parameter(torch.ones(4))})

    def helper(self, h: Tensor) -> Tensor:
        return h

    @classmethod
    def of_class(cls, h: Tensor) -> Tensor:
        return h

    @staticmethod
    def of_none(h: Tensor) -> Tensor:
        return h

    @property
    def gain(self) -> float:
        return 2.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.of_class(self.of_none(self.helper(self.first(x)))) * self.gains.first * self.size[0]
        for value in (*self.table.values(), *self.prompts.values()):
            h = h + value
        h = h if self.shift is None else h * self.gain
        return self.last(self.scaled(h))


CHANGES = {
    "helper": lambda m: setattr(m, "helper", lambda h: h * 3),
    "forward": lambda m: setattr(m, "forward", lambda x: m.first(x)),
    "of_none": lambda m: setattr(m, "of_none", torch.tanh),
    "gains": lambda m: setattr(m, "gains", Gains(3.0)),
    "size": lambda m: setattr(m, "size", torch.Size([3])),
    "scaled": lambda m: setattr(m, "scaled", functools.partial(torch.mul, other=3.0)),
    "table": lambda m: m.table.__setitem__("b", torch.ones(4)),
    "prompts": lambda m: m.prompts.__setitem__("b", nn.Parameter(torch.ones(4))),
    "shift": lambda m: setattr(m, "shift", None),
}


@pytest.mark.long
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_after_compiling_is_noticed(what):
    aug = ga.rewrite(Net(), "first", rate=0.5, example_inputs=torch.randn(4, 4)).train()
    check_noticed_when_compiled(aug, torch.randn(3, 4), CHANGES[what])
