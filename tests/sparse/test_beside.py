"""What prefix and suffix both need: computed twice where it is the same twice. Oracle: rows detached by a hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga


class Scaled(nn.Module):
    """The suffix is scaled by what the prefix begins with, without a gradient."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.between = nn.Embedding(11, 6), between
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        e = self.between(self.embed(ids))
        return self.b(torch.tanh(self.a(e))) * e.detach().mean(-1, keepdim=True)


IDS = torch.randint(11, (8, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("example", [IDS, None], ids=["example", "no example"])
@pytest.mark.long
def test_what_draws_nothing_is_computed_beside(example: Tensor | None) -> None:
    model = Scaled(nn.LayerNorm(6))
    aug = ga.rewrite(model, "tanh", rate=0.0, stop_grad=True, example_inputs=example)
    assert aug.plan.backward == "sparse", aug.plan.reason
    aug(IDS).square().sum().backward()
    rows = aug.drawn["tanh"].rows
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    def stop(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return torch.where(rows[:, None, None], out.detach(), out)

    handle = model.a.register_forward_hook(stop)  # before the tanh, which has no parameters
    model(IDS).square().sum().backward()
    handle.remove()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad)


@pytest.mark.parametrize("example", [IDS, None], ids=["example", "no example"])
@pytest.mark.parametrize("between", [nn.Dropout(0.5), nn.Sequential(nn.Identity(), nn.RReLU())])
def test_what_is_drawn_stays_dense_and_says_so(between: nn.Module, example: Tensor | None) -> None:
    plan = ga.rewrite(Scaled(between), "tanh", stop_grad=True, example_inputs=example, dry_run=True)
    assert plan.backward == "dense"
    said = "drawn at random, and would be drawn twice" if example is not None else "may be drawn at random"
    assert said in plan.reason


class Long(Scaled):
    """What the suffix needs is made of the shape of what was dropped out, which no draw decides."""

    def forward(self, ids: Tensor) -> Tensor:
        e = self.between(self.embed(ids))
        places = torch.arange(e.shape[1], dtype=e.dtype)[:, None]
        return self.b(torch.tanh(self.a(e))) * places


def test_a_draw_whose_shape_alone_is_read_does_no_harm() -> None:
    plan = ga.rewrite(Long(nn.Dropout(0.5)), "tanh", stop_grad=True, example_inputs=IDS, dry_run=True)
    assert plan.backward == "sparse", plan.reason


@pytest.mark.long
def test_gpt2_needs_no_example_for_it() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=4, n_embd=32, n_head=2, vocab_size=99, use_cache=False, bos_token_id=1, eos_token_id=1
    )
    plan = ga.rewrite(transformers.GPT2Model(config), "h.2", stop_grad=True, dry_run=True)
    assert plan.backward == "sparse", plan.reason
