"""Geometry against closed forms and SciPy's pairwise distances."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from torch import nn

from graphaug import errors
from graphaug.analysis import (
    alignment,
    effective_rank,
    embedding_std,
    geometry,
    pair_geometry,
    site_embeddings,
    tolerance,
    uniformity,
)


def points(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x):
    x = np.asarray(x)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1)


@settings(max_examples=30)
@given(
    n=st.integers(2, 40),
    d=st.integers(1, 8),
    seed=st.integers(0, 1000),
    t=st.floats(0.1, 4),
    chunk=st.integers(1, 50),
    dead=st.integers(0, 40),
)
def test_uniformity_is_the_log_mean_potential_whatever_the_chunks(n, d, seed, t, chunk, dead):
    x = points(n, d, seed)
    x[:dead] = 0  # rows that cannot be normalised lie at the origin
    expected = math.log(np.exp(-t * pdist(unit(x), "sqeuclidean")).mean())
    assert uniformity(x, t, chunk=chunk) == pytest.approx(expected, abs=1e-9)


def test_alignment_and_uniformity_at_their_ends():
    x = points(10, 3)
    assert alignment(x, 5 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(x, -x, alpha=1) == pytest.approx(2)
    assert uniformity(x[:1].expand(7, 3)) == pytest.approx(0)
    assert uniformity(torch.zeros(50, 8)) == 0  # a dead encoder is the worst, not the best
    assert uniformity(torch.eye(50).double()) == pytest.approx(-4)  # ‖a - b‖² = 2 for all pairs


def test_tolerance_is_the_mean_cosine_within_classes():
    x, labels = points(30, 4), torch.arange(30) % 4
    u = unit(x)
    pairs = [(i, j) for i in range(30) for j in range(30) if i != j and i % 4 == j % 4]
    assert tolerance(x, labels) == pytest.approx(np.mean([u[i] @ u[j] for i, j in pairs]))


def test_collapse_measures():
    assert embedding_std(points(20000, 64)) == pytest.approx(1 / 8, rel=0.01)
    assert embedding_std(points(1, 4).expand(6, 4)) == pytest.approx(0, abs=1e-12)
    square = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert effective_rank(square) == pytest.approx(2)
    assert effective_rank(square + 7) == pytest.approx(2)
    assert effective_rank(torch.stack([square[:, 0], square[:, 0]], 1)) == pytest.approx(1)
    assert effective_rank(torch.full((5, 3), 2.0)) == 0


def test_geometry_of_a_models_sites():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).train()
    first, second = torch.randn(2, 12, 1, 8, 8)
    labels = torch.arange(12) % 3
    pairs = [(first[:6], second[:6]), (first[6:], second[6:])]
    maps, out = geometry(model, pairs, ["0", "3"], labels=labels)
    x, y = (model[0](v).mean((2, 3)).detach() for v in (first, second))
    assert (maps.site, maps.dimensions, maps.samples) == ("0", 4, 12)
    assert maps.alignment == pytest.approx(alignment(x, y), rel=1e-4)
    assert maps.uniformity == pytest.approx(uniformity(x), rel=1e-4)
    x = model(first).detach()
    assert out.tolerance == pytest.approx(tolerance(x, labels), rel=1e-4)
    assert out.rank == pytest.approx(effective_rank(x), rel=1e-4)
    assert "alignment" in str(out)
    assert "tolerance" in str(out)
    assert model.training


def test_embeddings_at_sites_are_those_of_a_forward_hook():
    """In the order of the data, over batches of several sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    x = torch.randn(11, 4)
    found = site_embeddings(model, x, ["0", "2"], batch_size=4)
    seen = {}
    for name in ("0", "2"):
        model[int(name)].register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out.detach()})
        )
    model.eval()(x)
    assert list(found) == ["0", "2"]
    for name, z in found.items():
        torch.testing.assert_close(z, seen[name])


class Permuted(nn.Module):
    def forward(self, h):
        return h.permute(0, 2, 3, 1)


def test_maps_with_the_channels_last():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Permuted())
    first, wide = torch.randn(12, 1, 8, 8), torch.randn(12, 1, 8, 12)
    maps, last = geometry(model, [(first, first)], ["0", "1"])
    assert (maps.dimensions, last.dimensions) == (4, 4)
    assert (maps.uniformity, maps.rank) == pytest.approx((last.uniformity, last.rank), rel=1e-5)
    # a map that is not square does not tell
    assert [g.dimensions for g in geometry(model, [(wide, wide)], ["0", "1"])] == [4, 6]


def test_pairs_of_sentences():
    """SimCSE's measure: positives are the pairs scored 4 or more; uniformity is over all different sentences."""
    vectors = dict(zip("abcd", points(4, 3).unbind(), strict=True))

    def embed(sentences):
        return torch.stack([vectors[s] for s in sentences])

    found = pair_geometry(embed, ["a", "a", "c"], ["b", "c", "d"], [4.5, 1.0, 5.0])
    expected = alignment(embed(["a", "c"]), embed(["b", "d"])), uniformity(embed(["a", "b", "c", "d"]))
    assert found == pytest.approx(expected)
    with pytest.raises(errors.DataError, match=r"no pair has a score of 4\.0 or more"):
        pair_geometry(embed, ["a"], ["b"], [math.nan])
    with pytest.raises(errors.BatchError, match="no pairs"):
        pair_geometry(embed, ["a"], ["b", "c"], [1.0])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: alignment(points(3, 2), points(4, 2)), errors.BatchError, "equal shapes"),
        (lambda: uniformity(points(1, 2)), errors.BatchError, "N of at least 2"),
        (lambda: uniformity(points(3, 2), chunk=0), errors.InvalidOption, "chunk is a number of rows"),
        (lambda: effective_rank(points(3, 2) / 0), errors.DataError, "not finite"),
        (lambda: tolerance(points(3, 2), torch.arange(3)), errors.DataError, "a class with two samples"),
        (lambda: tolerance(points(3, 2), torch.arange(4)), errors.BatchError, "3 labels"),
        (lambda: geometry(nn.Linear(2, 2), [], "**"), errors.DataError, "no pair"),
        (
            lambda: geometry(nn.Linear(2, 2), [(torch.ones(4, 2), torch.ones(3, 2))], "**"),
            errors.BatchError,
            "pairs",
        ),
        (lambda: geometry(nn.Linear(2, 2), [], "**", tokens="each"), errors.InvalidOption, "tokens='each'"),
        (lambda: site_embeddings(nn.Linear(2, 2), [], "**"), errors.DataError, "no batch"),
        (
            lambda: site_embeddings(nn.Linear(2, 2), torch.ones(4, 2), "**", tokens="each"),
            errors.InvalidOption,
            "tokens='each'",
        ),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
