"""What prefix and suffix both need: computed twice where it is the same twice. Oracle: rows detached by a hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import SparseBackwardError


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


class Mean(nn.Module):
    """Keeps a mean over the batches, and returns nothing: as a module that logs does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(6))

    def forward(self, h: Tensor) -> Any:
        self.kept.mul_(0.9).add_(h.detach().mean(0))


class Calls(Mean):
    """Counts its calls, and returns a number that is the same for all rows."""

    def forward(self, h: Tensor) -> Any:
        self.kept += 1
        return h.shape[-1]


class Signs(Mean):
    """Counts its calls, and returns a value of the rows that carries no gradient."""

    def forward(self, h: Tensor) -> Any:
        self.kept += 1
        return h.detach() > 0


class Watched(nn.Module):
    """A module beside the way to the cut looks at what is computed on it."""

    def __init__(self, watch: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.watch = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), watch

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        seen = self.watch(h)
        out: Tensor = self.c(torch.tanh(self.b(h)))
        return out if seen is None else out * seen


@pytest.mark.parametrize("watch", [Mean, Calls, Signs])
def test_a_module_beside_the_way_to_the_cut_sees_the_batch_once(watch: type[Mean]) -> None:
    """Nothing is proved of its rows, nor of what it keeps: it is not run on parts of a batch."""
    model, plain, x = Watched(watch()), Watched(watch()), torch.randn(8, 6)
    with pytest.raises(SparseBackwardError, match=r"watch|prefix once more"):
        ga.rewrite(model, "b", stop_grad=True, backward="sparse", example_inputs=x)
    aug = ga.rewrite(model, "b", rate=0.0, stop_grad=True, example_inputs=x).train()
    for _ in range(2):
        torch.testing.assert_close(aug(x), plain(x))
        torch.testing.assert_close(model.watch.kept, plain.watch.kept)
