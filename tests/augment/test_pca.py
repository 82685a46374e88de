"""PCA against scikit-learn's, and its derivative against finite differences and torch's own of an eigenbasis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import decomposition
from torch import Tensor

from graphaug.augment.transform import Context
from graphaug.augment.transforms.pca import PCA
from graphaug.errors import InvalidOption


def batch(*shape: int, seed: int = 0) -> Tensor:
    """Rows whose directions have different variances."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, dtype=torch.float64, generator=generator)
    return (x * torch.linspace(0.5, 2, shape[-1], dtype=torch.float64) + 3).requires_grad_()


def without(samples: np.ndarray[Any, Any], chosen: slice, count: int) -> np.ndarray[Any, Any]:
    """The samples without some of the directions that scikit-learn finds."""
    fitted = decomposition.PCA(n_components=count, svd_solver="full").fit(samples)
    v = fitted.components_[chosen]
    return samples - (samples - fitted.mean_) @ v.T @ v


@pytest.mark.parametrize("remove", ["first", "last"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("shape", [(6, 20), (30, 5), (6, 3, 2, 4)], ids=["wide", "tall", "maps"])
def test_rows_lose_the_directions_that_scikit_learn_finds(
    shape: tuple[int, ...], k: int, gradient: bool, remove: str
) -> None:
    h = batch(*shape)
    pca = PCA(k, remove=remove, gradient=gradient)
    count = min(shape[0] - 1, h[0].numel())
    chosen = slice(0, k) if remove == "first" else slice(count - k, count)
    expected = without(h.detach().flatten(1).numpy(), chosen, count)
    np.testing.assert_allclose(pca(h, pca.draw(h)).detach().flatten(1), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("shape", "channel"), [((3, 7, 4), 2), ((3, 4, 2, 5), 1)], ids=["tokens", "maps"])
def test_of_tokens_every_position_is_a_sample(shape: tuple[int, ...], channel: int) -> None:
    h = batch(*shape)
    pca = PCA(2, over="token")
    samples = h.detach().movedim(channel, -1)
    expected = without(samples.reshape(-1, 4).numpy(), slice(0, 2), 4).reshape(samples.shape)
    np.testing.assert_allclose(
        pca(h, pca.draw(h)).detach().movedim(channel, -1), expected, rtol=1e-6, atol=1e-9
    )


def test_the_directions_are_those_of_the_whole_batch_if_it_is_known() -> None:
    whole = batch(12, 6).detach()
    rows = whole[[2, 5, 7]]
    pca = PCA(2)
    expected = without(whole.numpy(), slice(0, 2), 6)[[2, 5, 7]]
    np.testing.assert_allclose(pca(rows, pca.draw(rows, Context(batch=whole))), expected, rtol=1e-6)


def test_without_gradient_the_fit_is_a_constant() -> None:
    """The derivative is I - VVᵀ, of each row by itself."""
    h = batch(8, 5)
    pca = PCA(2)
    v = decomposition.PCA(n_components=2, svd_solver="full").fit(h.detach().numpy()).components_
    cotangent = torch.randn_like(h)
    (ours,) = torch.autograd.grad(pca(h, pca.draw(h)), h, cotangent)
    np.testing.assert_allclose(ours, cotangent.numpy() @ (np.eye(5) - v.T @ v), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("remove", ["first", "last"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_with_gradient_it_is_torchs_derivative_of_an_eigenbasis(k: int, remove: str) -> None:
    """A scatter matrix of full rank, whose eigenvectors torch differentiates by itself."""
    h = batch(20, 5)
    centred = h - h.mean(0)
    v = torch.linalg.eigh(centred.mT @ centred).eigenvectors  # by rising variance
    v = v[:, -k:] if remove == "first" else v[:, :k]
    theirs = h - centred @ v @ v.mT
    pca = PCA(k, remove=remove, gradient=True)
    cotangent = torch.randn_like(h)
    ours = pca(h, pca.draw(h))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    one, other = (torch.autograd.grad(out, h, cotangent)[0] for out in (ours, theirs))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("remove", ["first", "last"])
@pytest.mark.parametrize(
    ("shape", "over"), [((5, 12), "row"), ((4, 2, 3, 2), "row"), ((2, 3, 9), "token"), ((3, 4, 3), "token")]
)
def test_with_gradient_it_is_the_derivative_by_finite_differences(
    shape: tuple[int, ...], over: str, remove: str
) -> None:
    """Also with fewer samples than features, where a scatter matrix has a null space that turns too."""
    pca = PCA(2, over=over, remove=remove, gradient=True)
    assert torch.autograd.gradcheck(lambda h: pca(h, pca.draw(h)), (batch(*shape),))


def test_equal_variances_among_the_removed_give_no_nan() -> None:
    """Where torch's derivative of the eigenvectors divides by zero, that of what they span exists."""
    h = torch.tensor(
        [[2.0, 0, 0], [-2, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 1], [0, 0, -1]], dtype=torch.float64
    )
    pca = PCA(2, gradient=True)
    assert torch.autograd.gradcheck(lambda x: pca(x, pca.draw(x)), (h.requires_grad_(),))


@settings(max_examples=25)
@given(
    rows=st.integers(1, 8),
    features=st.integers(1, 8),
    k=st.integers(0, 9),
    seed=st.integers(0, 99),
    twice=st.booleans(),
)
def test_what_is_left_has_no_variance_along_k_directions(
    rows: int, features: int, k: int, seed: int, twice: bool
) -> None:
    """The rank falls by k or to 0, the mean stays; also with every row twice, as in views of the same samples."""
    h = torch.randn(rows, features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    h = torch.cat([h, h]) if twice else h
    rank = min(rows - 1, features)
    for remove in ("first", "last"):
        pca = PCA(k, remove=remove)
        out = pca(h, pca.draw(h))
        torch.testing.assert_close(out.mean(0), h.mean(0))
        left = torch.linalg.svdvals(out - out.mean(0))
        assert int((left > 1e-9).sum()) == max(0, rank - k)
        before = torch.linalg.svdvals(h - h.mean(0))[:rank]
        kept = before[k:] if remove == "first" else before[: max(0, rank - k)]
        torch.testing.assert_close(left[: len(kept)], kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": -1}, r"k=-1 is outside \[0, inf\)"),
        ({"k": 1.5}, "k=1.5 is no whole number"),
        ({"k": None}, "k=None is no number"),
        ({"remove": "frist"}, "Did you mean 'first'"),
        ({"over": "tokens"}, "Did you mean 'token'"),
        ({"gradient": 1}, "neither True nor False"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        PCA(**options)
    if "k" in options:
        with pytest.raises(InvalidOption, match=message):
            PCA().set(**options)
