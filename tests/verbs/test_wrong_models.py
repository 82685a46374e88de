"""What is said to a model that is not the one meant: around it, without a forward, or rewritten somewhere inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graphaug as ga
from graphaug.errors import InvalidOption, NotRewritten, UnsupportedModel


class Trained(nn.Module):
    """A model that a trainer trains, and that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.lists = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4)])

    def training_step(self, x: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.backbone(x).mean()
        return loss


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    "verb", [ga.sites, lambda m: ga.rewrite(m, "backbone"), lambda m: ga.tap(m, "backbone")]
)
def test_of_a_model_without_a_forward_what_has_one_is_named(verb: Any) -> None:
    with pytest.raises(
        UnsupportedModel, match=r"Trained has no forward: rewrite a module in it .*\(backbone\)"
    ):
        verb(Trained())


def test_a_forward_of_the_object_alone_is_one() -> None:
    model = nn.Module()
    model.lin = nn.Linear(4, 4)
    model.forward = lambda x: model.lin(x)
    with pytest.raises(ga.GraphaugError) as caught:
        ga.rewrite(nn.ModuleList([nn.ModuleList()]), "0")
    assert "give a module that is called" in str(caught.value)
    x = torch.randn(3, 4)
    assert torch.equal(ga.rewrite(model, "lin", example_inputs=x).eval()(x), model.lin(x))


@pytest.mark.parametrize("verb", [ga.strip, lambda m: ga.verify(m, torch.randn(4, 4))])
def test_a_rewritten_model_inside_another_is_named(verb: Any) -> None:
    aug = ga.rewrite(net(), "1")
    with pytest.raises(NotRewritten, match=r"Give it what was rewritten in it: '1'\."):
        verb(nn.Sequential(nn.Identity(), aug))
    with pytest.raises(NotRewritten, match=r"Give it the module inside the wrapper\."):
        verb(torch.compile(aug))


def test_a_number_in_a_tensor_and_a_list_of_rates_are_answered_with_what_to_give() -> None:
    aug = ga.rewrite(net(), "1")
    with pytest.raises(InvalidOption, match=r"give a float between 0 and 1, as its \.item\(\) is"):
        aug.set_rate(torch.tensor(0.1))  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match=r"as its \.item\(\) is"):
        ga.rewrite(net(), "1", transform=ga.Noise(torch.tensor(0.1)))  # type: ignore[arg-type]
    for verb in (ga.rewrite, ga.skip_rows):
        with pytest.raises(InvalidOption, match=r"at=\{site: rate\}"):
            verb(net(), ["0", "1"], rate=[0.1, 0.2])  # type: ignore[operator]
