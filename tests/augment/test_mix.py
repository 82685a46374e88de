"""Mixing against torchvision's MixUp and the papers' formulas in loops; partners against scikit-learn and counts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torchvision.transforms import v2

from graphaug.augment.transform import Context
from graphaug.augment.transforms.mix import Mix, Mixed, mixed_cross_entropy
from graphaug.augment.transforms.partners import class_mean, class_spread, random_partners, symmetric_beta
from graphaug.errors import BatchError, InvalidOption

LABELS = torch.tensor([3, 1, 3, 3, 1, 8, 1, 3])


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def assert_same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    cotangent = torch.randn_like(ours)
    one, other = (torch.autograd.grad(out, inputs, cotangent, retain_graph=True) for out in (ours, theirs))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


# --- results ------------------------------------------------------------------------------------


def test_given_the_same_draws_it_is_torchvisions_mixup_labels_and_loss_too() -> None:
    """Manifold Mixup is MixUp of activations: torchvision's mixes with the row before, at one λ for the batch."""
    torch.manual_seed(0)
    h, labels, lam = normal(5, 3, 4, 4), torch.tensor([0, 3, 1, 1, 2]), 0.25  # exact in the labels' float32
    mixup = v2.MixUp(num_classes=4)
    theirs = mixup.transform(h, {"lam": lam, "labels": labels, "batch_size": 5})
    soft = mixup.transform(labels, {"lam": lam, "labels": labels, "batch_size": 5})
    weights = torch.full((5,), lam, dtype=torch.float64)
    draws = Mixed(torch.arange(5).roll(1), weights, weights)
    assert_same(Mix()(h, draws), theirs, h)
    head = normal(48, 4)
    for smoothing in (0.0, 0.1):
        ours = mixed_cross_entropy(Mix()(h, draws).flatten(1) @ head, labels, draws, smoothing)
        expected = F.cross_entropy(theirs.flatten(1) @ head, soft.double(), label_smoothing=smoothing)
        assert_same(ours, expected, h, head)


def in_a_loop(mode: str, h: Tensor, draws: Mixed) -> Tensor:
    """The papers' formulas, one row after the other."""
    out = []
    for i, c in enumerate(h):
        lam = draws.lam[i]
        if mode == "difference":
            j, k = draws.partners[i].tolist()
            out.append(c + lam * (h[j] - h[k]))
            continue
        other = h[int(draws.partners[i])]
        out.append(
            {
                "convex": lambda c=c, o=other, lam=lam: lam * c + (1 - lam) * o,
                "interpolate": lambda c=c, o=other, lam=lam: (o - c) * lam + c,
                "extrapolate": lambda c=c, o=other, lam=lam: (c - o) * lam + c,
            }[mode]()
        )
    return torch.stack(out)


@pytest.mark.parametrize("mode", ["convex", "interpolate", "extrapolate", "difference"])
@pytest.mark.parametrize("shape", [(8, 5), (8, 4, 3), (8, 3, 2, 2)])
@pytest.mark.parametrize("within", [True, False])
def test_given_the_same_draws_it_is_the_papers_formula(
    mode: str, shape: tuple[int, ...], within: bool
) -> None:
    torch.manual_seed(1)
    h = normal(*shape)
    mix = Mix(mode, alpha=0.7, within_class=within)
    draws = mix.draw(h, Context(labels=LABELS))
    assert draws.lam.unique().numel() == 8
    assert_same(mix(h, draws), in_a_loop(mode, h, draws), h)
    # as MODALS has it, with stored partners: the same values, and the gradient of the row itself only
    stored = Mix(mode, alpha=0.7, within_class=within, detach=True)(h, draws)
    torch.testing.assert_close(stored, mix(h, draws))
    lam = draws.lam.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    own = {"convex": lam, "interpolate": 1 - lam, "extrapolate": 1 + lam, "difference": torch.ones_like(h)}[
        mode
    ]
    torch.testing.assert_close(torch.autograd.grad(stored.sum(), h)[0], own)
    if within:
        assert (LABELS[draws.partners] == (LABELS[:, None] if mode == "difference" else LABELS)).all()


def test_extrapolation_from_the_mean_is_modals_with_the_mean_of_the_class() -> None:
    torch.manual_seed(2)
    h = normal(8, 6)
    mix = Mix("extrapolate", lam=0.4, partner="mean", within_class=True)
    means = torch.stack([h.detach()[label == LABELS].mean(0) for label in LABELS])
    draws = mix.draw(h, Context(labels=LABELS))
    assert_same(mix(h, draws), (h - means) * 0.4 + h, h)
    batch = torch.randn(20, 6, dtype=torch.float64)
    whole = Mix("extrapolate", lam=0.4, partner="mean")
    assert_same(whole(h, whole.draw(h, Context(batch=batch))), (h - batch.mean(0)) * 0.4 + h, h)


def test_a_number_that_is_set_later_leaves_what_was_drawn() -> None:
    mix, h = Mix(lam=0.25), torch.randn(4, 3, dtype=torch.float64)
    draws = mix.draw(h)
    mix.set(lam=1.0)
    assert (draws.lam == 0.25).all()
    assert torch.equal(mix(h, mix.draw(h)), h)


# --- draws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0, 40.0])
def test_lambda_is_beta_distributed(alpha: float) -> None:
    """Kolmogorov-Smirnov against scipy's Beta: no difference at 1 in 1,000."""
    generator = torch.Generator().manual_seed(0)
    drawn = symmetric_beta(20_000, torch.tensor([alpha]), torch.device("cpu"), generator)
    assert drawn.dtype == torch.float64
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert stats.kstest(drawn.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-4, 1e6])
def test_lambda_is_a_number_for_the_most_extreme_alpha(alpha: float) -> None:
    drawn = symmetric_beta(1000, torch.tensor([alpha]), torch.device("cpu"), torch.Generator().manual_seed(0))
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert drawn.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.2)


def test_the_batch_has_one_lambda_or_each_row_its_own() -> None:
    h = torch.randn(50, 2)
    assert Mix(per="batch").draw(h).lam.unique().numel() == 1
    assert Mix(per="row").draw(h).lam.unique().numel() == 50


def test_the_pair_of_partners_is_uniform_within_the_class() -> None:
    """Chi-square over the 12 ordered pairs of a class of four: the 99.9% quantile of 11 degrees is 31.3."""
    generator = torch.Generator().manual_seed(0)
    pairs = list(itertools.permutations([0, 2, 3, 7], 2))
    counts, draws = {i: dict.fromkeys(pairs, 0) for i in (0, 7)}, 2400
    for _ in range(draws):
        first, second = random_partners(torch.zeros(8, 1), LABELS, generator)
        for i in counts:
            counts[i][(int(first[i]), int(second[i]))] += 1
    for count in counts.values():
        assert 1 < sum((n - draws / 12) ** 2 / (draws / 12) for n in count.values()) < 31.3


@settings(max_examples=60)
@given(
    labels=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    known=st.booleans(),
    seed=st.integers(0, 999),
)
def test_partners_are_permutations_of_the_class(labels: list[int], known: bool, seed: int) -> None:
    given_labels = torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    first, second = random_partners(torch.zeros(len(labels), 2), given_labels if known else None, generator)
    for partners in (first, second):
        assert sorted(partners.tolist()) == list(range(len(labels)))
        if known:
            assert torch.equal(given_labels[partners], given_labels)
    size = [labels.count(label) if known else len(labels) for label in labels]
    assert [bool(a != b) for a, b in zip(first, second, strict=True)] == [n > 1 for n in size]


@pytest.mark.parametrize("neighbours", [1, 2, 50])
def test_nearest_partners_are_scikit_learns_neighbours(neighbours: int) -> None:
    torch.manual_seed(3)
    h = torch.randn(8, 2, 3, dtype=torch.float64)
    plain, labelled = (
        Mix("extrapolate", partner="nearest", neighbours=neighbours, within_class=w) for w in (False, True)
    )
    for mix, groups in (
        (plain, [range(8)]),
        (labelled, [(c == LABELS).nonzero()[:, 0].tolist() for c in (1, 3, 8)]),
    ):
        drawn = torch.stack([mix.draw(h, Context(labels=LABELS)).partners for _ in range(300)])
        for group in map(list, groups):
            k = min(neighbours, len(group) - 1)
            for place, i in enumerate(group):
                expected = {i}  # alone in its class
                if k:
                    search = NearestNeighbors(n_neighbors=k).fit(h[group].flatten(1).numpy())
                    expected = {group[j] for j in search.kneighbors()[1][place]}
                assert set(drawn[:, i].tolist()) == expected


@settings(max_examples=30)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_means_and_spreads_of_classes_are_those_of_their_rows(labels: list[int]) -> None:
    rows, given_labels = torch.randn(len(labels), 2, 3, dtype=torch.float64) + 100, torch.tensor(labels)
    for i, label in enumerate(labels):
        own = rows[given_labels == label]
        spread = own.std(0) if len(own) > 1 else torch.zeros_like(own[0])
        torch.testing.assert_close(class_mean(rows, given_labels)[i], own.mean(0))
        torch.testing.assert_close(class_spread(rows, given_labels)[i], spread)


# --- the loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["convex", "interpolate", "extrapolate", "difference"])
@pytest.mark.parametrize("mask", [True, False])
def test_the_loss_mixes_the_labels_of_the_rows_that_were_mixed(mode: str, mask: bool) -> None:
    """Row by row, of a batch of 9 in which rows 1, 4, 5 and 8 went through the mix."""
    torch.manual_seed(4)
    logits, labels, index = normal(9, 5), torch.randint(5, (9,)), torch.tensor([1, 4, 5, 8])
    draws = Mix(mode, alpha=1.0).draw(torch.randn(4, 3, dtype=torch.float64))
    rows = torch.zeros(9, dtype=torch.bool).index_fill(0, index, True) if mask else index
    expected = torch.zeros(9, dtype=torch.float64)
    for i in range(9):
        expected[i] = -logits[i].log_softmax(0)[labels[i]]
    for place, i in enumerate(index.tolist()):
        lam = float(draws.lam[place])
        own = {"convex": lam, "interpolate": 1 - lam}.get(mode, 1.0)
        partner = int(index[draws.partners[place].flatten()[0]])
        expected[i] = own * expected[i] - (1 - own) * logits[i].log_softmax(0)[labels[partner]]
    assert_same(mixed_cross_entropy(logits, labels, draws._replace(rows=rows)), expected.mean(), logits)


def test_the_loss_compiles_whole() -> None:
    torch.compiler.reset()
    logits, labels = torch.randn(6, 3), torch.randint(3, (6,))
    mask = torch.tensor([True, False, True, True, False, False])
    draws = Mix().draw(torch.randn(3, 2))._replace(rows=mask)
    compiled = torch.compile(mixed_cross_entropy, fullgraph=True, backend="eager")
    assert torch.equal(compiled(logits, labels, draws), mixed_cross_entropy(logits, labels, draws))


def test_the_loss_refuses_rows_that_are_not_of_the_batch() -> None:
    draws = Mix().draw(torch.randn(3, 2))
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    wrong: list[tuple[Any, str]] = [
        (None, "3 rows were mixed of a batch of 5: say which"),
        (torch.tensor([0, 1]), r"drawn.rows are \(2,\)"),
        (torch.tensor([True, False, False, False, True]), "no mask of a batch of 5"),
        (torch.tensor([True, True, True]), "no mask of a batch of 5"),
    ]
    for rows, message in wrong:
        with pytest.raises(BatchError, match=message):
            mixed_cross_entropy(logits, labels, draws._replace(rows=rows))
    with pytest.raises(BatchError, match="labels"):
        mixed_cross_entropy(logits, labels[:4], draws)
    with pytest.raises(BatchError, match=r"integers, a tensor of shape \(B,\), not torch.float32"):
        mixed_cross_entropy(logits[:3], labels[:3].float(), draws)
    with pytest.raises(BatchError, match=r"integers, a tensor of shape \(B,\), not list"):
        mixed_cross_entropy(logits[:3], [0, 1, 2], draws)
    with pytest.raises(BatchError, match=r"as aug.drawn\['layer3'\], and no Mix"):
        mixed_cross_entropy(logits[:3], labels[:3], Mix())
    with pytest.raises(IndexError):  # not ignored in silence, as cross_entropy would
        mixed_cross_entropy(logits[:3], torch.tensor([0, -100, 1]), draws)


# --- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "convx"}, "Did you mean 'convex'"),
        ({"partner": "nearst"}, "Did you mean 'nearest'"),
        ({"per": "rows"}, "Did you mean 'row'"),
        ({"alpha": 0}, r"alpha=0 is outside \(0, inf\)"),
        ({"lam": 1.5}, r"lam=1.5 is outside \[0, 1\]"),
        ({"mode": "extrapolate", "lam": -1}, r"lam=-1 is outside \[0, inf\)"),
        ({"alpha": 1.0, "lam": 0.5}, "give one of them"),
        ({"mode": "difference", "partner": "mean"}, "of two random rows"),
        ({"neighbours": 3}, "neighbours=3 is of partner='nearest'"),
        ({"partner": "nearest", "neighbours": 0}, "neighbours=0: give a whole number"),
        ({"within_class": "yes"}, "neither True nor False"),
        ({"detach": None}, "neither True nor False"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Mix(**options)


def test_without_labels_there_are_no_classes() -> None:
    with pytest.raises(BatchError, match="labels of the rows were not given"):
        Mix(within_class=True).draw(torch.randn(3, 2))
