"""Claims, and how they are tested: written down before the runs, paired by seed, with Holm's correction over sites.

A claim is about **members**, usually the sites. A member is ahead if its setting is ahead of every setting that it is
compared with. Each comparison is a one-sided paired t-test over the seeds: runs of one seed begin with the same weights
and see the same images in the same views, so that their difference is of the setting. `LEVEL` is that of each side.

======== ===================================== =======================================
claim    holds                                 does not
======== ===================================== =======================================
some     a member is ahead, by Holm's          every member is behind, each by its
         correction over the members           own p-value
every    every member is ahead, each by its    a member is behind, by Holm's
         own p-value                           correction over the members
======== ===================================== =======================================

Everything else *cannot be told*; of it the members are counted that are ahead or behind beyond chance, which is by
Holm's correction on both sides. Where all members have to pass, the largest p-value is that of the whole, and needs no
correction (Berger's intersection-union test); where one of them is enough, it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

import numpy as np

HOLDS, DOES_NOT, CANNOT = "holds", "does not", "cannot be told"

LEVEL = 0.025
"""Of a one-sided test: 5 % for both sides together."""

Values = Mapping[str, Mapping[int, float | None]]
"""A measure by setting and seed; None where a run diverged."""


@dataclass(frozen=True)
class Member:
    """A setting, and the settings that it is said to be ahead of."""

    setting: str
    behind: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """A sentence about members, true of ``"some"`` or of ``"every"`` one, and where it is said."""

    text: str
    source: str
    kind: Literal["some", "every"]
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Tested:
    """A member's comparison.

    Attributes:
        setting: of the member.
        against: the setting that it is least ahead of, on the mean.
        difference: to that, mean over the seeds, in units of the measure; None where nothing could be compared.
        ahead, behind: p-values of the member, not corrected.
        ahead_holm, behind_holm: the same, corrected over the claim's members.
        seeds: pairs that were compared.
    """

    setting: str
    against: str
    difference: float | None
    ahead: float
    behind: float
    ahead_holm: float
    behind_holm: float
    seeds: int


@dataclass(frozen=True)
class Verdict:
    """What came of a claim: `HOLDS`, `DOES_NOT` or `CANNOT`, why in a sentence, and every member's comparison."""

    claim: Claim
    outcome: str
    why: str
    tests: tuple[Tested, ...]


def judge(claim: Claim, values: Values) -> Verdict:
    """Test a claim on a measure of which more is better."""
    raw = [_compare(member, values) for member in claim.members]
    ahead, behind = holm([t.ahead for t in raw]), holm([t.behind for t in raw])
    tests = tuple(
        Tested(t.setting, t.against, t.difference, t.ahead, t.behind, a, b, t.seeds)
        for t, a, b in zip(raw, ahead, behind, strict=True)
    )
    return Verdict(claim, *outcome_of(claim.kind, tests), tests)


def outcome_of(kind: str, tests: Sequence[Tested]) -> tuple[str, str]:
    """What comes of a claim's comparisons, and why in a sentence."""
    some = kind == "some"
    winners = [t for t in tests if (t.ahead_holm if some else t.ahead) < LEVEL]
    losers = [t for t in tests if (t.behind if some else t.behind_holm) < LEVEL]
    if winners and (some or len(winners) == len(tests)):
        which = ", ".join(t.setting for t in winners) if some else "all of them"
        return HOLDS, f"ahead: {which}"
    if losers and (not some or len(losers) == len(tests)):
        which = "all of them" if some else ", ".join(t.setting for t in losers)
        return DOES_NOT, f"behind: {which}"
    return CANNOT, _doubt(tests)


def _doubt(tests: Sequence[Tested]) -> str:
    """How many members are ahead and behind; those beyond chance are counted after the correction, on both sides."""
    if all(t.seeds < 2 for t in tests):
        return "fewer than two seeds to compare"
    winners, losers = sum(t.ahead_holm < LEVEL for t in tests), sum(t.behind_holm < LEVEL for t in tests)
    up = sum(t.difference is not None and t.difference > 0 for t in tests)
    said = f"ahead on the mean in {up} of {len(tests)}"
    told = ", ".join(f"{n} {word} beyond chance" for n, word in ((winners, "ahead"), (losers, "behind")) if n)
    return f"{said}; {told or 'none beyond chance'}"


def _compare(member: Member, values: Values) -> Tested:
    """A member against each of its settings: ahead of all, or behind one of them (Bonferroni's correction)."""
    found = []
    for other in member.behind:
        mine, theirs = values.get(member.setting, {}), values.get(other, {})
        seeds = sorted(set(mine) & set(theirs))
        a, b = [mine[s] for s in seeds], [theirs[s] for s in seeds]
        known = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
        differences = [x - y for x, y in known]
        # Those of which none diverged are a choice, and a mean over them is of nothing.
        whole = bool(seeds) and len(known) == len(seeds)
        p = paired(differences) if whole else (1.0, 1.0)
        found.append((mean(differences) if whole else None, other, *p, len(known) if whole else 0))
    least = min(found, key=lambda f: (f[0] is not None, f[0] or 0.0))
    ahead = max(f[2] for f in found)
    behind = min(1.0, len(found) * min(f[3] for f in found))
    return Tested(member.setting, least[1], least[0], ahead, behind, ahead, behind, min(f[4] for f in found))


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """One-sided p-values of the t-test that differences are not above, and not below, 0.

    Both are 1 where there are fewer than two, or where they do not vary: then there is no error to measure them by.

    Example:
        >>> paired([1.0, 2.0, 3.0])
        (0.0370..., 0.9629...)

    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return 1.0, 1.0
    error = values.std(ddof=1) / np.sqrt(len(values))
    # What rounding leaves of equal differences is no error either.
    if error <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return 1.0, 1.0
    from scipy.stats import t

    statistic, freedom = float(values.mean() / error), len(values) - 1
    return float(t.sf(statistic, freedom)), float(t.cdf(statistic, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of one false finding or more among all stays below the level.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
