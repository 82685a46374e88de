"""Moved weights. Oracle: a deep copy of the model, its weights moved by hand with the same random numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import ConvNet, TextNet
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, InvalidOption, SiteNotFound, UnsupportedModel

TOKENS = torch.randint(20, (5, 6), generator=torch.Generator().manual_seed(0))


def step(module: nn.Module, parameters: list[Tensor]) -> tuple[Tensor, Any]:
    out = module(TOKENS)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out.detach(), torch.autograd.grad((out * weight).sum(), parameters, allow_unused=True)


@pytest.mark.parametrize("at", [None, "blocks.0"])
def test_it_is_a_copy_with_noise_on_its_weights(at: str | None) -> None:
    torch.manual_seed(0)
    model = TextNet().double()
    moved, twin = ga.perturb_weights(model, at, 0.3, example_inputs=TOKENS), copy.deepcopy(model)
    torch.manual_seed(4)
    found = step(moved, list(model.parameters()))
    torch.manual_seed(4)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if at is None or name.startswith(("embed", "position", "blocks.0")):
                values = p.flatten()
                spread = ((values - values.mean()) ** 2).sum().div(len(values) - 1).sqrt()
                p += 0.3 * spread * torch.randn(p.shape, dtype=p.dtype)
    expected = step(twin, list(twin.parameters()))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_it_owns_nothing_moves_afresh_and_not_in_eval_mode() -> None:
    model = TextNet()
    before = {n: p.clone() for n, p in model.named_parameters()}
    moved = ga.perturb_weights(model, eta=0.2)
    assert not list(moved.parameters())
    assert not moved.state_dict()
    assert not torch.equal(moved(TOKENS), moved(TOKENS))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    moved.set(eta=0.0)
    torch.testing.assert_close(moved(TOKENS), model(TOKENS))
    moved.set(eta=0.5)
    model.eval()
    assert torch.equal(moved(TOKENS), model(TOKENS))


def test_a_rewritten_model_keeps_its_augmentation() -> None:
    aug = ga.rewrite(TextNet().double(), "blocks.1", rate=0.5, example_inputs=TOKENS)
    moved = ga.perturb_weights(aug, "blocks.0", 0.0, example_inputs=TOKENS)
    torch.manual_seed(0)
    moved(TOKENS)
    rows = aug.drawn["blocks.1"].rows
    assert int(rows.sum()) == 2
    assert all(name.startswith(("embed", "position", "blocks.0")) for name in moved.names)


@pytest.mark.slow
@pytest.mark.long
def test_compiled_whole_a_new_size_recompiles_nothing() -> None:
    model = TextNet().double()
    moved = ga.perturb_weights(model, "blocks.0", 0.3, example_inputs=TOKENS)
    compiled = torch.compile(moved, fullgraph=True, backend="aot_eager")
    compiled(TOKENS).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for eta in (0.1, 0.0):
            moved.set(eta=eta)
            compiled(TOKENS).sum().backward()
    torch.testing.assert_close(compiled(TOKENS), model(TOKENS))


def test_what_moves_nothing_is_refused() -> None:
    with pytest.raises(InvalidOption, match="eta=-1"):
        ga.perturb_weights(ConvNet(), eta=-1)
    with pytest.raises(InvalidOption, match="no parameters up to 'input'"):
        ga.perturb_weights(ConvNet(), "input")
    with pytest.raises(UnsupportedModel, match="this is a str"):
        ga.perturb_weights("ConvNet")
    with pytest.raises(SiteNotFound, match="layer9"):
        ga.perturb_weights(ConvNet(), "layer9")


def test_a_parameter_that_became_another_is_named() -> None:
    model = TextNet()
    moved = ga.perturb_weights(model, "blocks.0", 0.3, example_inputs=TOKENS)
    nn.utils.parametrizations.weight_norm(model.blocks[0].out)
    with pytest.raises(
        AssumptionViolated, match=r"blocks\.0\.out\.weight, to be moved .*perturb_weights again"
    ):
        moved(TOKENS)
    again = ga.perturb_weights(model, "blocks.0", 0.3, example_inputs=TOKENS)
    assert again(TOKENS).isfinite().all()
