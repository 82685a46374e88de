"""One site of several in a forward. Oracle: hooks at the site whose turn it was, and the counts of the turns."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import ConvNet, TextNet
from torch import Tensor

import graphaug as ga
from graphaug.errors import AlreadyRewritten, BatchError, InvalidOption

pytestmark = pytest.mark.few(1)

SITES = ["input", "stem", "layer1"]
X, LABELS = (
    torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double(),
    torch.tensor([0, 1, 2, 3, 4, 0]),
)


def rewritten(**options: Any) -> ga.AugmentedModule:
    torch.manual_seed(0)
    options = {"transform": ga.Mix(alpha=1.0), "subset": 1.0, **options}
    return ga.rewrite(ConvNet().double(), SITES, one_site=True, **options)


def turn(aug: Any) -> int:
    acted = [i for i, site in enumerate(SITES) if aug.drawn[site].rows.any()]
    assert len(acted) == 1
    return acted[0]


def test_each_site_has_its_turn_as_often_as_the_others() -> None:
    aug = rewritten(transform=ga.Noise(0.1), subset=0.5)
    counts = torch.zeros(3)
    for _ in range(150):
        aug(X)
        counts[turn(aug)] += 1
    assert (counts - 50).abs().max() < 4.5 * math.sqrt(150 * 2 / 9)
    assert "one of the 3 sites in a forward" in str(aug.plan)


@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_manifold_mixup_of_verma_et_al(compiled: bool) -> None:
    """A layer of a random set, its hidden states and the labels mixed alike; values, loss and gradients."""
    aug = rewritten(subset=2 / 3)
    model = ga.strip(aug)
    run = torch.compile(aug, fullgraph=True, backend="aot_eager") if compiled else aug
    seen: set[int] = set()
    named = dict(model.named_parameters())
    for seed in range(6):
        frozen = {n: b.clone() for n, b in model.named_buffers()}
        torch.manual_seed(seed)
        loss = ga.mixed_cross_entropy(run(X), LABELS, run.drawn)
        mine = torch.autograd.grad(loss, list(named.values()))
        site = SITES[turn(aug)]
        seen.add(turn(aug))
        drawn = aug.drawn[site]
        one = torch.eye(6, dtype=torch.float64)
        mixing = one.clone()
        for k, i in enumerate(drawn.index.tolist()):
            mixing[i] = drawn.lam[k] * one[i] + (1 - drawn.lam[k]) * one[drawn.partners[k]]
        model.load_state_dict(frozen, strict=False)

        def mix(h: Tensor, mixing: Tensor = mixing) -> Tensor:
            return torch.einsum("ij,j...->i...", mixing, h)

        if site == "input":
            logits = model(mix(X))
        else:
            handle = model.get_submodule(site).register_forward_hook(lambda m, a, h, mix=mix: mix(h))
            logits = model(X)
            handle.remove()
        expected = -(mixing @ F.one_hot(LABELS, 5).double() * F.log_softmax(logits, 1)).sum(1).mean()
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
        for found, other in zip(mine, torch.autograd.grad(expected, list(named.values())), strict=True):
            torch.testing.assert_close(found, other, rtol=1e-8, atol=1e-10)
    assert len(seen) > 1


@pytest.mark.long
def test_a_turn_recompiles_nothing() -> None:
    aug = rewritten(transform=ga.Noise(0.1), subset=0.5)
    compiled = torch.compile(aug, fullgraph=True, backend="aot_eager")
    compiled(X).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        turns = {(compiled(X).sum().backward(), turn(aug))[1] for _ in range(12)}
    assert len(turns) > 1


@pytest.mark.long
def test_verify_copies_and_files() -> None:
    tokens = torch.randint(20, (6, 6))
    at = {"embed": 0.5, "blocks.0": ga.Noise(0.1), "blocks.1": ga.Mix(alpha=1.0)}
    aug = ga.rewrite(TextNet().double(), at, one_site=True, stop_grad=True, example_inputs=tokens)
    for _ in range(3):
        claims = str(ga.verify(aug, tokens, tolerance=1e-9))
        assert claims.count("3 of 6 rows augmented") == 3
    torch.manual_seed(1)
    expected = aug(tokens)
    for twin in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        torch.manual_seed(1)
        assert torch.equal(twin(tokens), expected)
    again = ga.rewrite(ga.strip(aug), ga.Plan.from_json(aug.plan.to_json()), example_inputs=tokens)
    torch.manual_seed(1)
    assert torch.equal(again(tokens), expected)
    assert torch.equal(aug.eval()(tokens), ga.strip(aug)(tokens))


@pytest.mark.long
def test_what_one_site_is_not_of_is_refused() -> None:
    with pytest.raises(InvalidOption, match="at= selects one only"):
        ga.rewrite(ConvNet(), "layer1", one_site=True)
    with pytest.raises(InvalidOption, match="one_site=1 is neither True nor False"):
        ga.rewrite(ConvNet(), SITES, one_site=1)
    with pytest.raises(AlreadyRewritten, match="one_site is drawn from the sites of one call"):
        ga.rewrite(rewritten(), "layer2")
    both = ga.rewrite(ConvNet().double(), SITES, transform=ga.Mix())
    out = both(X)
    with pytest.raises(BatchError, match="mixed at several sites"):
        ga.mixed_cross_entropy(out, LABELS, both.drawn)
