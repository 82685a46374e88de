"""The losses against closed forms, a plain loop over the definition, and two other libraries."""

import doctest
import math

import gathered
import pytest
import torch
import torch.nn.functional as F

from graphaug.contrastive import losses
from graphaug.contrastive.losses import LOSSES, info_nce, nt_xent, nt_xent_views, unit_rows
from graphaug.errors import BatchError, InvalidOption


def pair(n=6, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, generator=generator, dtype=torch.float64).unbind(0)


def cosine(a, b):
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def info_nce_by_definition(z1, z2, tau):
    terms = []
    for i in range(len(z1)):
        candidates = [math.exp(cosine(z1[i], z2[j]) / tau) for j in range(len(z2))]
        terms.append(-math.log(candidates[i] / sum(candidates)))
    return sum(terms) / len(terms)


def nt_xent_by_definition(z1, z2, tau):
    z, n = [*z1, *z2], len(z1)
    terms = []
    for i in range(2 * n):
        others = {j: math.exp(cosine(z[i], z[j]) / tau) for j in range(2 * n) if j != i}
        terms.append(-math.log(others[(i + n) % (2 * n)] / sum(others.values())))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("tau", [0.07, 0.5, 2.0])
def test_info_nce_is_equation_1(tau):
    z1, z2 = pair()
    assert info_nce(z1, z2, tau).item() == pytest.approx(info_nce_by_definition(z1, z2, tau), rel=1e-12)


@pytest.mark.parametrize("tau", [0.07, 0.5, 2.0])
def test_nt_xent_has_2n_minus_1_candidates(tau):
    z1, z2 = pair()
    assert nt_xent(z1, z2, tau).item() == pytest.approx(nt_xent_by_definition(z1, z2, tau), rel=1e-12)


def test_symmetric_info_nce_averages_both_directions():
    z1, z2 = pair()
    expected = (info_nce_by_definition(z1, z2, 0.5) + info_nce_by_definition(z2, z1, 0.5)) / 2
    assert info_nce(z1, z2, 0.5, symmetric=True).item() == pytest.approx(expected, rel=1e-12)
    assert info_nce(z1, z2, 0.5).item() != pytest.approx(info_nce(z2, z1, 0.5).item(), rel=1e-6)


def test_collapsed_embeddings_give_the_logarithm_of_the_candidates():
    z = torch.ones(7, 3, dtype=torch.float64)
    assert info_nce(z, z).item() == pytest.approx(math.log(7))
    assert nt_xent(z, z).item() == pytest.approx(math.log(13))


def test_orthogonal_pairs_closed_form():
    z = torch.eye(4, dtype=torch.float64)
    e = math.exp(1 / 0.5)
    assert info_nce(z, z, 0.5).item() == pytest.approx(-math.log(e / (e + 3)))
    assert nt_xent(z, z, 0.5).item() == pytest.approx(-math.log(e / (e + 6)))


def test_the_length_of_an_embedding_does_not_matter():
    z1, z2 = pair()
    assert nt_xent(3 * z1, z2 / 7).item() == pytest.approx(nt_xent(z1, z2).item(), rel=1e-12)


@pytest.mark.parametrize("loss", [info_nce, nt_xent])
def test_supcontrast_scaling_is_temperature_over_its_base(loss):
    z1, z2 = pair()
    scaled = loss(z1, z2, 0.5, scale="supcontrast")
    assert scaled.item() == pytest.approx(loss(z1, z2, 0.5).item() * 0.5 / 0.07, rel=1e-12)


@pytest.mark.parametrize("loss", [info_nce, nt_xent, lambda a, b: info_nce(a, b, symmetric=True)])
def test_gradients(loss):
    z1, z2 = (z.requires_grad_() for z in pair(4, 3))
    assert torch.autograd.gradcheck(loss, (z1, z2))


def test_nt_xent_of_a_huge_similarity_is_finite():
    z = F.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    assert torch.isfinite(nt_xent(z, z, 1e-3))


@pytest.mark.parametrize("loss", [info_nce, nt_xent])
def test_bad_input(loss):
    z1, z2 = pair()
    with pytest.raises(BatchError, match=r"\(6, 5\) and \(5, 5\)"):
        loss(z1, z2[:5])
    with pytest.raises(BatchError, match="at least 2 pairs"):
        loss(z1[:1], z2[:1])
    for tau in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidOption, match="temperature must be a positive number"):
            loss(z1, z2, tau)
    with pytest.raises(InvalidOption, match="Did you mean 'supcontrast'"):
        loss(z1, z2, 0.5, scale="supcon")


def test_nt_xent_is_lightlys():
    from lightly.loss import NTXentLoss

    z1, z2 = pair(9)
    for tau in (0.1, 0.5):
        # lightly normalises in the input's dtype; its closed form has no rounding of its own
        assert nt_xent(z1, z2, tau).item() == pytest.approx(NTXentLoss(tau)(z1, z2).item(), rel=1e-9)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_nt_xent_and_its_gradient_are_pytorch_metric_learnings(tau):
    from pytorch_metric_learning.losses import NTXentLoss

    z1, z2 = (z.requires_grad_() for z in pair(7))
    theirs = NTXentLoss(temperature=tau)(torch.cat([z1, z2]), torch.arange(7).repeat(2))
    ours = nt_xent(z1, z2, tau)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    for a, b in zip(torch.autograd.grad(ours, (z1, z2)), torch.autograd.grad(theirs, (z1, z2)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_gathering_in_one_process_changes_nothing():
    z1, z2 = pair()
    for loss in LOSSES.values():
        assert torch.equal(loss(z1, z2, gather=True), loss(z1, z2))


@pytest.mark.long
def test_two_processes_with_gathered_negatives_are_one_with_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(gathered.run, (str(tmp_path),), nprocs=2)
    for loss, backward in gathered.CASES:
        expected, gradients = gathered.whole(loss, backward)
        first, second = (torch.load(tmp_path / f"{loss}_{backward}_{rank}.pt") for rank in (0, 1))
        assert (first[0] + second[0]) / 2 == pytest.approx(expected, abs=1e-10), (loss, backward)
        for _, found in (first, second):
            assert found.keys() == gradients.keys()
            for name, gradient in gradients.items():
                assert (found[name] - gradient).abs().max() < 1e-10, (loss, backward, name)
        # the comparison means something: the prefix is trained, and the two processes' losses differ
        assert min(g.abs().max() for g in gradients.values()) > 1e-4
        assert abs(first[0] - second[0]) > 1e-4


@pytest.mark.parametrize("loss", [nt_xent, info_nce], ids=["nt_xent", "info_nce"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_with_rows_of_zeros_is_finite(loss, dtype, autocast):
    z = torch.cat(pair(8, 32)).to(dtype)
    z[[0, 5, 13]] = 0.0
    z.requires_grad_()
    unit = torch.nan_to_num(z.detach().double() / z.detach().double().norm(dim=1, keepdim=True))
    cosines = unit @ unit.T  # a row of zeros: 0 to all others
    if loss is nt_xent:
        logits, positive = (cosines / 0.5).fill_diagonal_(-math.inf), (torch.arange(16) + 8) % 16
    else:
        logits, positive = cosines[:8, 8:] / 0.5, torch.arange(8)
    with torch.autocast("cpu", dtype, enabled=autocast):
        found = loss(*z.chunk(2))
    found.backward()
    assert found.item() == pytest.approx(F.cross_entropy(logits, positive).item(), rel=1e-5)
    assert found.dtype == torch.float32
    assert z.grad.isfinite().all()
    assert z.grad[[0, 5, 13]].count_nonzero() == 0
    assert z.grad.count_nonzero() > 0


def test_large_embeddings_in_float16_do_not_overflow():
    z1, z2 = (100 * torch.nn.functional.normalize(z) for z in pair(6, 512))
    wanted = info_nce(z1, z2).item()
    assert info_nce(50 * z1.half(), 50 * z2.half()).item() == pytest.approx(wanted, rel=1e-3)


def test_the_gradient_of_unit_rows_is_that_of_the_definition():
    z = pair(4, 3)[0].requires_grad_()
    assert torch.autograd.gradcheck(unit_rows, z)
    assert torch.allclose(unit_rows(z), F.normalize(z))


def views_by_definition(views, tau):
    """A loop over anchors and their positives, all other rows as candidates."""
    z, k, n = [row for view in views for row in view], len(views), len(views[0])
    terms = []
    for i in range(k * n):
        others = {j: math.exp(cosine(z[i], z[j]) / tau) for j in range(k * n) if j != i}
        positives = [j for j in others if j % n == i % n]
        terms += [-math.log(others[j] / sum(others.values())) for j in positives]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_nt_xent_over_views_is_the_mean_over_all_pairs(k, tau):
    z = torch.randn(k, 4, 5, generator=torch.Generator().manual_seed(k), dtype=torch.float64).requires_grad_()
    loss = nt_xent_views(z.unbind(), tau)
    assert loss.item() == pytest.approx(views_by_definition(z.detach().unbind(), tau), rel=1e-12)
    if k == 2:
        expected = nt_xent(*z.unbind(), tau)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        mine, theirs = (torch.autograd.grad(value, z)[0] for value in (loss, expected))
        torch.testing.assert_close(mine, theirs)


def test_views_of_two_processes_are_those_of_one_with_the_whole_batch(monkeypatch):
    """The other process is played: what would be gathered is known."""
    z = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [z[:, :3], z[:, 3:]]
    unit = [torch.cat([unit_rows(view) for view in part]) for part in parts]
    monkeypatch.setattr(losses, "process_count", lambda: 2)
    found = []
    for rank in (0, 1):
        monkeypatch.setattr(losses, "process_rank", lambda rank=rank: rank)
        monkeypatch.setattr(losses, "all_rows", lambda rows: torch.cat(unit))
        found.append(nt_xent_views(parts[rank].unbind(), 0.3, gather=True))
    monkeypatch.undo()
    torch.testing.assert_close(sum(found) / 2, nt_xent_views(z.unbind(), 0.3))


def test_one_view_or_views_of_other_shapes_are_refused():
    with pytest.raises(BatchError, match="at least 2"):
        nt_xent_views([torch.ones(3, 4)])
    with pytest.raises(BatchError, match="one shape"):
        nt_xent_views([torch.ones(3, 4), torch.ones(3, 4), torch.ones(2, 4)])


PAIRS = {
    "nt_xent": nt_xent,
    "info_nce": info_nce,
    "nt_xent_views": lambda z1, z2, temperature=0.5: nt_xent_views([z1, z2], temperature),
    "supcon": lambda z1, z2, temperature=0.5: losses.supcon(z1, z2, torch.arange(3), temperature),
}


@pytest.mark.parametrize("loss", PAIRS)
@pytest.mark.parametrize("value", ["0.5", None, [0.5], True, 1e-40, 9e-31, torch.tensor(1e-35), 1j])
def test_a_temperature_that_is_none_is_refused_in_words(loss, value):
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InvalidOption, match=r"temperature( must be a positive number|=.* is too small)"):
        PAIRS[loss](z, z.flip(1), value)


@pytest.mark.parametrize("loss", PAIRS)
@pytest.mark.parametrize("value", [losses.LEAST_TEMPERATURE, 1e30, torch.tensor(0.5), 1])
def test_every_other_temperature_gives_a_number_and_a_gradient(loss, value):
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = PAIRS[loss](*z, value)
    found.backward()
    assert found.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("loss", PAIRS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, list])
def test_embeddings_that_are_no_real_numbers_are_refused(loss, dtype):
    z = [[1.0] * 4] * 3 if dtype is list else torch.ones(3, 4).to(dtype)
    with pytest.raises(BatchError, match=f"floating point, not {'a list' if dtype is list else dtype}"):
        PAIRS[loss](z, z)


def test_the_examples_of_the_docstrings_run():
    assert doctest.testmod(losses).failed == 0
