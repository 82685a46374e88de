"""Noise against NEFTune's hook in transformers, and the formulas of DeVries & Taylor and MODALS in numpy."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.integrations.neftune import neftune_post_forward_hook

from graphaug.augment.transform import Context
from graphaug.augment.transforms.noise import Noise, Noised
from graphaug.errors import BatchError, InvalidOption


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def test_given_the_same_draws_it_is_the_neftune_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    noise, h = Noise(5.0, "uniform", "neftune"), normal(3, 7, 16)
    draws = noise.draw(h)
    ours = noise(h, draws)
    unit = draws.noise
    monkeypatch.setattr(
        torch.Tensor, "uniform_", lambda self, low, high: self.copy_((low + high) / 2 + unit * high)
    )
    theirs = neftune_post_forward_hook(SimpleNamespace(training=True, neftune_noise_alpha=5.0), None, h)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # transformers' root is in float32
    assert (ours - h).abs().max() > 0.9 * 5 / math.sqrt(7 * 16)
    cotangent = torch.randn_like(h)
    for out in (ours, theirs):
        assert torch.equal(torch.autograd.grad(out, h, cotangent)[0], cotangent)


def test_with_a_mask_neftune_counts_the_real_tokens_and_leaves_the_padding() -> None:
    """Jain et al. 2023, algorithm 1, row by row: L is the length of the sequence."""
    torch.manual_seed(0)
    h, lengths = torch.randn(3, 6, 4, dtype=torch.float64), [6, 2, 0]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    for kind in (mask, mask.long()):
        noise = Noise(3.0, "uniform", "neftune")
        draws = noise.draw(h, Context(mask=kind))
        out = noise(h, draws)
        for i, length in enumerate(lengths):
            size = 3.0 / math.sqrt(length * 4) if length else 0.0
            torch.testing.assert_close(out[i, :length], h[i, :length] + size * draws.noise[i, :length])
            assert torch.equal(out[i, length:], h[i, length:])


@pytest.mark.parametrize("distribution", ["gaussian", "uniform"])
@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 5), (6, 3, 4, 4)])
def test_the_scale_is_the_standard_deviation_that_is_named(distribution: str, shape: tuple[int, ...]) -> None:
    """c + γ·σ·X: σ over everything, per feature (DeVries & Taylor 2017), per feature of the class (MODALS)."""
    torch.manual_seed(0)
    h, labels = normal(*shape), torch.tensor([2, 0, 2, 0, 2, 7])
    plain = h.detach().numpy()
    spreads = {
        "absolute": np.ones_like(plain),
        "site": np.full_like(plain, plain.std(ddof=1)),
        "feature": np.broadcast_to(plain.std(0, ddof=1), shape),
        "class": np.stack(
            [
                plain[np.asarray(labels) == label].std(0, ddof=1) if label != 7 else np.zeros(shape[1:])
                for label in labels.tolist()
            ]
        ),
    }
    for relative, spread in spreads.items():
        noise = Noise(0.3, distribution, relative)
        draws = noise.draw(h, Context(labels=labels))
        out = noise(h, draws)
        np.testing.assert_allclose(out.detach(), plain + 0.3 * spread * draws.noise.numpy(), rtol=1e-6)
        cotangent = torch.randn_like(h)
        assert torch.equal(torch.autograd.grad(out, h, cotangent)[0], cotangent)  # σ is a constant


def test_the_spread_is_that_of_the_batch_if_it_is_known() -> None:
    batch = torch.randn(9, 4, dtype=torch.float64)
    for relative, expected in (("site", batch.std().view(1, 1)), ("feature", batch.std(0, keepdim=True))):
        assert torch.equal(Noise(1, relative=relative).draw(batch[:1], Context(batch=batch)).scale, expected)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), distribution=st.sampled_from(["gaussian", "uniform"]))
def test_the_noise_is_of_unit_size(seed: int, distribution: str) -> None:
    """Moments of 20,000 numbers within 5 standard errors."""
    draws = Noise(1.0, distribution).draw(
        torch.zeros(200, 100), Context(generator=torch.Generator().manual_seed(seed))
    )
    x = draws.noise.double().flatten()
    variance, fourth = (1.0, 3.0) if distribution == "gaussian" else (1 / 3, 1 / 5)
    assert abs(x.mean()) < 5 * math.sqrt(variance / len(x))
    assert abs(x.square().mean() - variance) < 5 * math.sqrt((fourth - variance**2) / len(x))
    if distribution == "uniform":
        assert x.abs().max() <= 1


def test_sigma_0_changes_nothing() -> None:
    h = torch.randn(3, 4)
    noise = Noise(0.0)
    assert torch.equal(noise(h, noise.draw(h)), h)
    assert torch.equal(Noise(1.0)(h, Noised(torch.ones(3, 4), torch.ones(1, 1))), h + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": -0.1}, r"sigma=-0.1 is outside \[0, inf\)"),
        ({"distribution": "gausian"}, "Did you mean 'gaussian'"),
        ({"relative": "neftun"}, "Did you mean 'neftune'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Noise(**options)


@pytest.mark.parametrize(
    ("relative", "context", "message"),
    [
        ("class", Context(), "labels of the rows were not given"),
        ("class", Context(labels=torch.tensor([0, 1])), "Labels of 3 rows are 3 integers"),
        ("class", Context(labels=torch.zeros(3)), "Labels of 3 rows are 3 integers"),
        ("neftune", Context(mask=torch.ones(3, 9)), r"A mask of shape \(3, 9\) is not of the tokens"),
    ],
)
def test_what_does_not_fit_is_refused(relative: str, context: Context, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        Noise(1.0, relative=relative).draw(torch.randn(3, 4, 5), context)
