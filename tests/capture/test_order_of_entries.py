"""The order of the entries of a ModelOutput, which its tuple and its values have: that in which the model set them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

import graphaug as ga


class Tower(nn.Module):
    """As a vision tower returns it: without a pooled output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        h = self.layer(x)
        return BaseModelOutputWithPooling(last_hidden_state=h, hidden_states=(x, h))


class Pools(nn.Module):
    """Sets the entry that stands before others in the class after it was made, as models of images and text do."""

    def __init__(self, *, open_tower: bool) -> None:
        super().__init__()
        self.tower, self.head, self.open_tower = Tower(), nn.Linear(4, 4), open_tower

    def forward(self, x: Tensor) -> Any:
        if self.open_tower:
            h = self.tower.layer(x)
            out = BaseModelOutputWithPooling(last_hidden_state=h, hidden_states=(x, h))
        else:
            out = self.tower(x)
        out["pooler_output"] = self.head(out.last_hidden_state)
        return out


@pytest.mark.parametrize("open_tower", [True, False])
@pytest.mark.parametrize("form", ["eager", "compiled"])
def test_it_is_the_models(open_tower: bool, form: str) -> None:
    torch.manual_seed(0)
    model, x = Pools(open_tower=open_tower), torch.randn(6, 4)
    at = "tower.layer" if open_tower else "tower"
    aug = ga.rewrite(model, at, allow_bypass=True, subset=0.0, example_inputs=x)
    torch._dynamo.reset()
    run = torch.compile(aug, fullgraph=True, backend="eager") if form == "compiled" else aug
    wanted, found = model(x), run(x)
    assert list(wanted) == list(found) == ["last_hidden_state", "hidden_states", "pooler_output"]
    flat = [torch.utils._pytree.tree_leaves(tuple(out.values())) for out in (wanted, found)]
    for a, b in zip(*flat, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(found.pooler_output, found["pooler_output"], rtol=0, atol=0)


@pytest.mark.parametrize("key", ["extra", "made", "entries", "class", "hidden.x"])
def test_an_entry_may_have_any_name(key: str) -> None:
    class Adds(Pools):
        def forward(self, x: Tensor) -> Any:
            out = self.tower(x)
            out[key] = self.head(out.last_hidden_state)
            return out

    model, x = Adds(open_tower=False), torch.randn(6, 4)
    aug = ga.rewrite(model, "tower", allow_bypass=True, subset=0.0, example_inputs=x)
    wanted, found = model(x), aug(x)
    assert list(found) == list(wanted)
    torch.testing.assert_close(found[key], wanted[key], rtol=0, atol=0)


def test_gradients_go_to_what_was_set_later() -> None:
    torch.manual_seed(0)
    model, x = Pools(open_tower=False), torch.randn(6, 4)
    aug = ga.rewrite(model, "head", allow_bypass=True, subset=1.0, stop_grad=True, example_inputs=x)
    aug(x).pooler_output.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
