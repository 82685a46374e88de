"""What the paper does to Deep Augmentation beside its site: Stop*, freezing, pairs, and how it goes over training.

The numbers of these figures are not written down in this repository; their subjects are.

**Method.** As in figures 3 and 4 (`graphaug.recipes.methods.images`), at every site behind the input.

- *Stop\\**: Deep Augmentation begins with the weights of a SimCLR run of the same seed, and goes on for as many epochs.
  Against it stands SimCLR that goes on as long, and Deep Augmentation from the start over as many epochs together.
- *Freezing*: begun with the same weights; nothing up to and including the site is trained (``before``), or nothing
  behind it (``after``). From random weights either would say what random layers are worth.
- *Pairs*: rows of both views are augmented, or those of the first alone, so that every pair has one view from the lower
  layers as it is and one that was augmented higher up ("lower-to-higher").
- *Over training*: the encoder is probed up to nine times over a run, untrained and at its end among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from graphaug.recipes.claims import Claim, Member
from graphaug.recipes.methods.images import ABSTRACT, INPUT, PLAIN
from graphaug.recipes.methods.treatments import all_called, at_sites, behind, called, two_lines
from graphaug.recipes.plan import MEASURES, Plan, Setting, Site
from graphaug.vision.config import PretrainConfig

THEN = "SimCLR, then "
AGAIN = THEN + PLAIN
LONGER = ", from the start"
OURS = "the figure's subject; the sentence is ours"
PROBED = 8
"""Times at most that an encoder is probed over training, beside the untrained one."""


def begun_with_simclr(base: PretrainConfig, sites: Sequence[Site], data: Sequence[str]) -> Plan:
    """Stop*: Deep Augmentation that begins with a SimCLR run, with and without stop-gradient."""
    base, deep = replace(base, data=data[0]), behind(sites, INPUT)
    double = replace(base, epochs=2 * base.epochs)
    begun = [Setting(THEN + s.name, s.config, begins_with=PLAIN) for s in at_sites(base, deep, INPUT)]
    whole = [Setting(s.name + LONGER, s.config) for s in at_sites(double, deep, INPUT) if s.config.stop_grad]
    settings = (Setting(PLAIN, base), Setting(AGAIN, base, begins_with=PLAIN), *begun, *whole)
    claims = (
        Claim(
            "Begun with SimCLR's weights, Deep Augmentation at some site is ahead of SimCLR that goes on as long.",
            OURS,
            "some",
            tuple(Member(THEN + name, (AGAIN,)) for name in all_called(deep)),
        ),
        Claim(
            "With stop-gradient it is ahead of the same from the start, at every site.",
            OURS,
            "every",
            tuple(Member(THEN + called(s, True), (called(s, True) + LONGER,)) for s in deep),
        ),
    )
    lines = {
        "then without stop": {str(s): THEN + called(s, False) for s in deep},
        "then with stop": {str(s): THEN + called(s, True) for s in deep},
        "stopped from the start": {str(s): called(s, True) + LONGER for s in deep},
    }
    baseline = dict.fromkeys((s.name for s in settings if s.name not in (PLAIN, AGAIN)), AGAIN)
    return Plan(settings, claims, baseline, _marks(deep), lines, (PLAIN, AGAIN), MEASURES)


def freezing(base: PretrainConfig, sites: Sequence[Site], data: Sequence[str]) -> Plan:
    """Freezing before and after the site, begun with a SimCLR run."""
    base, deep = replace(base, data=data[0]), behind(sites, INPUT)
    settings = [Setting(PLAIN, base), Setting(AGAIN, base, begins_with=PLAIN)]
    lines: dict[str, dict[str, str]] = {"nothing frozen": {}, "frozen before": {}, "frozen after": {}}
    for site in deep:
        for line, side in zip(lines, (None, "before", "after"), strict=True):
            name = f"{THEN}site {site}" + (f", {line}" if side else "")
            settings.append(Setting(name, replace(base, at=(site,), freeze=side), begins_with=PLAIN))
            lines[line][str(site)] = name
    free, before, after = lines.values()
    claims = tuple(
        Claim(
            f"With Deep Augmentation, freezing what lies {word} the site is ahead of training all, at some site.",
            OURS,
            "some",
            tuple(Member(frozen[str(s)], (free[str(s)],)) for s in deep),
        )
        for word, frozen in (("before", before), ("after", after))
    )
    baseline = dict.fromkeys((s.name for s in settings[2:]), AGAIN)
    return Plan(tuple(settings), claims, baseline, _marks(deep), lines, (PLAIN, AGAIN), MEASURES)


def pairs(base: PretrainConfig, sites: Sequence[Site], data: Sequence[str]) -> Plan:
    """Rows of both views, or of the first alone: only lower-to-higher pairs."""
    base, deep = replace(base, data=data[0]), behind(sites, INPUT)
    both = list(at_sites(base, deep, INPUT))
    first = [Setting(_one(s.name), replace(s.config, pairing="one-sided")) for s in both]
    settings = (Setting(PLAIN, base), *both, *first)
    claims = (
        Claim(
            "With lower-to-higher pairs alone Deep Augmentation is ahead of SimCLR without it, at some site.",
            OURS,
            "some",
            tuple(Member(s.name, (PLAIN,)) for s in first),
        ),
        Claim(
            "Lower-to-higher pairs alone are ahead of all pairs, at every site, with and without stop-gradient.",
            OURS,
            "every",
            tuple(Member(_one(s.name), (s.name,)) for s in both),
        ),
    )
    lines = two_lines(deep, INPUT, label="all pairs, ") | two_lines(deep, INPUT, _one, "lower to higher, ")
    baseline = dict.fromkeys((s.name for s in settings[1:]), PLAIN)
    return Plan(settings, claims, baseline, _marks(deep), lines, (PLAIN,), MEASURES)


def over_training(base: PretrainConfig, sites: Sequence[Site], data: Sequence[str]) -> Plan:
    """The linear probe at epochs of a run, of SimCLR and of every site with and without stop-gradient."""
    every = math.ceil(base.epochs / PROBED)
    base, deep = replace(base, data=data[0], snapshot_every=every), behind(sites, INPUT)
    settings = tuple(
        replace(s, looks="snapshots") for s in (Setting(PLAIN, base), *at_sites(base, deep, INPUT))
    )
    marks = tuple(map(str, (*range(0, base.epochs, every), base.epochs)))
    drawn = {mark: f"snapshots.{mark}.linear" for mark in marks[:-1]}
    middle = marks[(len(marks) - 1) // 2]
    claims = (
        Claim(
            "Deep Augmentation at some site is ahead of SimCLR at the end of training.",
            ABSTRACT,
            "some",
            tuple(Member(name, (PLAIN,)) for name in all_called(deep)),
        ),
    )
    return Plan(
        settings,
        claims,
        dict.fromkeys((s.name for s in settings[1:]), PLAIN),
        marks,
        {s.name: dict.fromkeys(marks, s.name) for s in settings},
        (),
        {
            "linear": "linear probe",
            drawn["0"]: "untrained",
            drawn[middle]: f"after {middle} epochs",
            "knn": "nearest neighbours",
        },
        read="at every snapshot; nothing was chosen among them",
        drawn=drawn,
        axis="epochs",
    )


def _marks(sites: Sequence[Site]) -> tuple[str, ...]:
    return tuple(map(str, sites))


def _one(name: str) -> str:
    return f"{name}, lower to higher"
