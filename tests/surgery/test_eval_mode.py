"""Eval mode is the model's own forward, whatever was changed of it since. Oracle: the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated


class Rope:
    """A plain object with a number, behind a property."""

    def __init__(self) -> None:
        self._scale = 2.0

    @property
    def scale(self) -> float:
        return self._scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head, self.rope, self._on, self.factors = nn.Linear(8, 3), Rope(), True, {"a": 1.5}

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        h = self.blocks(self.stem(x)) * self.rope.scale * self.factors["a"]
        h = h * 2 if double else h
        return self.head(h + 1 if self._on else h)


def scaled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 3


CHANGES: dict[str, Callable[[Net], Any]] = {
    "a head": lambda m: setattr(m, "head", nn.Linear(8, 5)),
    "a deep module": lambda m: m.blocks.append(nn.Linear(8, 8)),
    "a private switch": lambda m: setattr(m, "_on", False),
    "a number of an object": lambda m: setattr(m.rope, "_scale", 0.5),
    "a number of a dict": lambda m: m.factors.update(a=-1.0),
    "a hook": lambda m: m.blocks.register_forward_hook(scaled),
    "a parametrization": lambda m: nn.utils.parametrizations.weight_norm(m.stem),
    "a type": lambda m: m.double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_changed_of_the_model_is_changed_of_the_rewritten_one(change: Callable[[Net], Any]) -> None:
    model = Net()
    aug = ga.rewrite(model, at="blocks.0", stop_grad=True, example_inputs=torch.randn(4, 8))
    change(model)
    x = torch.randn(5, 8, dtype=model.stem.weight.dtype)
    aug.eval()
    assert torch.equal(aug(x), model(x))
    assert torch.equal(copy.deepcopy(aug)(x), model(x))


def test_a_call_that_the_graph_was_not_captured_for_is_the_models() -> None:
    model, x = Net(), torch.randn(4, 8)
    aug = ga.rewrite(model, at="stem", example_inputs=x).eval()
    assert torch.equal(aug(x, double=True), model.eval()(x, True))


def test_an_augmentation_that_acts_in_eval_mode_is_in_the_graph() -> None:
    model, x = Net(), torch.randn(4, 8)
    aug = ga.rewrite(model, at="stem", subset=1.0, example_inputs=x).eval()
    aug.augmentations["stem"].train()
    assert not torch.equal(aug(x), model(x))
    with pytest.raises(AssumptionViolated, match="double"):  # the original has no augmentation
        aug(x, double=True)


def test_a_graph_that_was_edited_is_what_runs() -> None:
    model, x = Net(), torch.randn(4, 8)
    aug = ga.rewrite(model, at="stem", example_inputs=x).eval()
    head = next(n for n in aug.graph.nodes if n.target == "head")
    head.replace_all_uses_with(head.args[0])
    aug.graph.erase_node(head)
    aug.recompile()
    assert aug(x).shape == (4, 8)
    assert copy.deepcopy(aug)(x).shape == (4, 8)


def test_compiled_it_is_the_graph_and_equal() -> None:
    model, x = Net(), torch.randn(4, 8)
    aug = ga.rewrite(model, at="stem", example_inputs=x).eval()
    compiled = torch.compile(aug, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), model(x))
