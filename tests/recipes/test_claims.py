"""Verdicts against scipy's own test, a published example of Holm's, and simulated seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from graphaug.recipes.claims import CANNOT, DOES_NOT, HOLDS, Claim, Member, holm, judge, paired


def claim(kind, *members):
    return Claim("said", "somewhere", kind, tuple(Member(a, tuple(b)) for a, b in members))


def values(**settings):
    return {name: dict(enumerate(numbers)) for name, numbers in settings.items()}


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_compared_as_scipy_does(seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 6))
    ahead, behind = paired((a - b).tolist())
    assert ahead == pytest.approx(ttest_rel(a, b, alternative="greater").pvalue)
    assert behind == pytest.approx(ttest_rel(a, b, alternative="less").pvalue)


def test_no_spread_and_no_pair_tell_nothing():
    for differences in ([], [0.3], [0.0, 0.0, 0.0], [0.1, 0.1, 0.1], [0.3 - 0.1, 0.4 - 0.2, 0.5 - 0.3]):
        assert paired(differences) == (1.0, 1.0)


def test_holm_is_that_of_the_closed_test():
    """Holm's adjusted p-value is the largest Bonferroni p over all subsets that an element is in (closure)."""
    from itertools import combinations

    p = np.random.default_rng(1).uniform(0, 0.2, 5)
    for i, corrected in enumerate(holm(p.tolist())):
        subsets = [s for n in range(1, 6) for s in combinations(range(5), n) if i in s]
        assert corrected == pytest.approx(max(min(1, len(s) * min(p[list(s)])) for s in subsets))


# five seeds that differ by little noise beside the effect
BASE = [0.70, 0.71, 0.69, 0.72, 0.70]
UP = [0.752, 0.758, 0.741, 0.771, 0.749]
DOWN = [0.648, 0.662, 0.639, 0.672, 0.651]
SAME = [0.703, 0.705, 0.694, 0.718, 0.701]


@pytest.mark.parametrize(
    ("kind", "one", "two", "outcome"),
    [
        ("some", UP, DOWN, HOLDS),
        ("some", UP, UP, HOLDS),
        ("some", SAME, DOWN, CANNOT),
        ("some", DOWN, DOWN, DOES_NOT),
        ("every", UP, UP, HOLDS),
        ("every", UP, SAME, CANNOT),
        ("every", UP, DOWN, DOES_NOT),
        ("every", SAME, SAME, CANNOT),
    ],
)
def test_verdicts(kind, one, two, outcome):
    found = judge(claim(kind, ("a", ["base"]), ("b", ["base"])), values(base=BASE, a=one, b=two))
    assert found.outcome == outcome
    assert [t.seeds for t in found.tests] == [5, 5]
    assert found.tests[0].difference == pytest.approx(np.mean(np.subtract(one, BASE)))


def test_a_member_has_to_be_ahead_of_all_that_it_is_compared_with():
    table = values(base=BASE, best=[v + 0.2 for v in UP], a=UP)
    assert judge(claim("some", ("a", ["base"])), table).outcome == HOLDS
    both = judge(claim("some", ("a", ["base", "best"])), table)
    assert both.outcome != HOLDS
    assert both.tests[0].against == "best"


def test_one_seed_tells_nothing():
    found = judge(claim("some", ("a", ["base"])), values(base=BASE[:1], a=UP[:1]))
    assert (found.outcome, found.why) == (CANNOT, "fewer than two seeds to compare")


def test_a_diverged_run_is_not_left_out_of_a_mean():
    table = values(base=BASE, a=[*UP[:4], None], b=UP)
    found = judge(claim("some", ("a", ["base"]), ("b", ["base"])), table)
    assert found.tests[0].difference is None
    assert found.tests[0].seeds == 0
    assert found.outcome == HOLDS
    assert "a" not in found.why.split(": ")[1].split(", ")
    assert judge(claim("every", ("a", ["base"]), ("b", ["base"])), table).outcome == CANNOT


def test_chance_seldom_holds():
    """Eight sites that do nothing, five seeds: something is told of them in less than 5 %, both sides together."""
    generator = np.random.default_rng(0)
    members = [(f"s{i}", ["base"]) for i in range(8)]
    told = 0
    for _ in range(400):
        draws = generator.normal(0, 0.01, (9, 5))
        table = values(base=draws[8], **{f"s{i}": draws[i] for i in range(8)})
        told += judge(claim("some", *members), table).outcome != CANNOT
    assert told <= 400 * 0.05
