"""Figures 3, 4 and 5, and of the later versions PCA and supervised training: images.

**Method.** SimCLR with a ResNet-18. Every run of a seed begins with the same weights and sees the same images in the
same views. Deep Augmentation acts at one site: dropout (rate 0.5) on half of the rows, drawn anew in every step, with
and without stopping the gradient of these rows at the site. Against it stand SimCLR without it, and dropout everywhere:
on all rows, at every numbered site, at each of three rates. The encoder is the network without its head. It is probed
after the last epoch, frozen: the linear probe with all labels is what claims are tested on.

**No choice by test images.** No setting is chosen by a test accuracy: all of them are shown, and all sites enter the
tests. Each run reads the test images once. With validation images, which are held out of the training set, a site and a
rate are chosen by these (`graphaug.recipes.choice`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphaug.recipes.choice import Choice
from graphaug.recipes.claims import Claim, Member
from graphaug.recipes.methods.treatments import all_called, at_sites, behind, called, two_lines
from graphaug.recipes.plan import MEASURES, Plan, Setting, Site
from graphaug.vision.config import PretrainConfig

PLAIN = "SimCLR"
LABELLED = "supervised"
INPUT: Site = -1

EVERYWHERE = (0.125, 0.25, 0.5)
"""Rates of dropout everywhere: those that this library's documentation names as the paper's best somewhere."""

ABSTRACT = "the paper's abstract"
LATER = "the abstract of the version of 2025 (arXiv:2303.14537)"

TRANSFERRED = {"transfer.linear": "linear probe on the other data", "transfer.fine-tuned": "fine-tuned on it"}


def sites_and_stops(base: PretrainConfig, sites: Sequence[Site], data: Sequence[str]) -> Plan:
    """Figures 3 and 4: every site with and without stop-gradient, dropout everywhere, SimCLR."""
    base = replace(base, data=data[0])
    settings = [Setting(PLAIN, base), *at_sites(base, sites, INPUT)]
    deep = behind(sites, INPUT)
    # a model of the user's own may have no numbers: everywhere is where he names
    named = {"at": tuple(deep)} if ".py:" in base.model and deep else {"everywhere": True}
    everywhere = [
        Setting(f"everywhere, {rate:g}", replace(base, rate=rate, subset=1.0, **named)) for rate in EVERYWHERE
    ]
    all_deep = all_called(deep)
    claims = [
        Claim(
            "Deep Augmentation at some site is ahead of SimCLR without it.",
            ABSTRACT,
            "some",
            tuple(Member(name, (PLAIN,)) for name in all_deep),
        ),
        Claim(
            "At some site it is ahead of dropout everywhere, at each of its rates.",
            f"{LATER}: dropout across all layers does not consistently improve performance",
            "some",
            tuple(Member(name, tuple(s.name for s in everywhere)) for name in all_deep),
        ),
        Claim(
            "Stopping the gradient is ahead of not stopping it, at every site.",
            f"{LATER}, which calls stop-gradient critical; of every site it is only asked",
            "every",
            tuple(Member(called(site, True), (called(site, False),)) for site in deep),
        ),
    ]
    if INPUT in sites:
        later = all_called(deep[len(deep) // 2 :])
        claims.insert(
            1,
            Claim(
                "At some site of the deeper half it is ahead of the same at the input.",
                ABSTRACT,
                "some",
                tuple(Member(name, (called(INPUT, False),)) for name in later),
            ),
        )
    return Plan(
        (*settings, *everywhere),
        tuple(claims),
        dict.fromkeys((s.name for s in (*settings, *everywhere) if s.name != PLAIN), PLAIN),
        tuple(map(str, sites)),
        two_lines(sites, INPUT),
        (PLAIN, *(s.name for s in everywhere)),
        MEASURES,
        (
            Choice("Deep Augmentation, its site chosen", tuple(all_deep), PLAIN),
            Choice("dropout everywhere, its rate chosen", tuple(s.name for s in everywhere), PLAIN),
        ),
    )


def by_pca(base: PretrainConfig, sites: Sequence[Site], data: Sequence[str]) -> Plan:
    """Of later versions: PCA in the place of dropout, at every site with and without stop-gradient."""
    base = replace(base, data=data[0])
    pca = [Setting(_pca(s.name), replace(s.config, transform="pca")) for s in at_sites(base, sites, INPUT)]
    dropout = list(at_sites(base, sites, INPUT))
    deep = behind(sites, INPUT)
    claims = (
        Claim(
            "With PCA, Deep Augmentation at some site is ahead of SimCLR without it.",
            ABSTRACT,
            "some",
            tuple(Member(_pca(name), (PLAIN,)) for name in all_called(deep)),
        ),
        Claim(
            "PCA is ahead of dropout, at every site.",
            f"nowhere: {LATER} says that dropout can be matched, by PCA for one; it is only asked",
            "every",
            tuple(Member(_pca(name), (name,)) for name in all_called(deep)),
        ),
    )
    lines: dict[str, dict[str, str]] = {}
    for word, spelled in (("dropout", str), ("PCA", _pca)):
        lines |= two_lines(sites, INPUT, spelled, f"{word}, ")
    settings = (Setting(PLAIN, base), *dropout, *pca)
    baseline = dict.fromkeys((s.name for s in settings[1:]), PLAIN)
    choices = (
        Choice("dropout, its site chosen", tuple(all_called(deep)), PLAIN),
        Choice("PCA, its site chosen", tuple(map(_pca, all_called(deep))), PLAIN),
    )
    return Plan(settings, claims, baseline, tuple(map(str, sites)), lines, (PLAIN,), MEASURES, choices)


def supervised(base: PretrainConfig, sites: Sequence[Site], data: Sequence[str]) -> Plan:
    """Of later versions: every site with and without stop-gradient, with labels beside without."""
    base = replace(base, data=data[0])
    contrastive = [Setting(PLAIN, base), *at_sites(base, sites, INPUT)]
    own = base.of_method("supervised")
    labelled = [Setting(LABELLED, own), *at_sites(own, sites, INPUT, f"{LABELLED}: ")]
    deep = behind(sites, INPUT)
    theirs = f"{LABELLED}: "
    source = f"{LATER}: performance trends invert in supervised tasks; the sentence is ours"
    claims = (
        Claim(
            "Without labels, Deep Augmentation at some site is ahead of SimCLR without it.",
            ABSTRACT,
            "some",
            tuple(Member(name, (PLAIN,)) for name in all_called(deep)),
        ),
        Claim(
            "With labels it is the other way round: training without it is ahead of it at every site.",
            source,
            "every",
            (Member(LABELLED, tuple(theirs + name for name in all_called(deep))),),
        ),
        Claim(
            "With labels, not stopping the gradient is ahead of stopping it, at every site.",
            source,
            "every",
            tuple(Member(theirs + called(s, False), (theirs + called(s, True),)) for s in deep),
        ),
    )
    lines: dict[str, dict[str, str]] = {}
    for word, prefix in ((PLAIN, ""), (LABELLED, theirs)):
        lines |= two_lines(sites, INPUT, prefix.__add__, f"{word}, ")
    baseline = dict.fromkeys((s.name for s in contrastive[1:]), PLAIN)
    baseline |= dict.fromkeys((s.name for s in labelled[1:]), LABELLED)
    settings = (*contrastive, *labelled)
    choices = (
        Choice("without labels, the site chosen", tuple(all_called(deep)), PLAIN),
        Choice("with labels, the site chosen", tuple(theirs + name for name in all_called(deep)), LABELLED),
    )
    marks, level = tuple(map(str, sites)), (PLAIN, LABELLED)
    return Plan(settings, claims, baseline, marks, lines, level, MEASURES, choices)


def transfer(base: PretrainConfig, sites: Sequence[Site], data: Sequence[str]) -> Plan:
    """Figure 5: encoders of one data set on another, both ways, frozen and fine-tuned."""
    settings: list[Setting] = []
    claims: list[Claim] = []
    baseline: dict[str, str] = {}
    lines: dict[str, dict[str, str]] = {}
    deep = behind(sites, INPUT)
    short = [_short(d) for d in data]
    names = dict(zip(data, short if len({*short}) == len(data) else data, strict=True))
    for source, target in (data, tuple(reversed(data))):
        way = f"{names[source]} to {names[target]}"
        own = replace(base, data=source)
        plain = f"{way}: {PLAIN}"
        group = [
            Setting(f"{way}: {s.name}", s.config, target)
            for s in (Setting(PLAIN, own), *at_sites(own, deep, INPUT))
        ]
        settings += group
        baseline |= {s.name: plain for s in group[1:]}
        lines |= two_lines(deep, INPUT, f"{way}: ".__add__, f"{way}, ")
        claims.append(
            Claim(
                f"{way}: with Deep Augmentation at some site the encoder serves the other data better.",
                "the figure's subject, transfer both ways; the sentence is ours",
                "some",
                tuple(Member(s.name, (plain,)) for s in group[1:]),
            )
        )
    level = tuple(dict.fromkeys(baseline.values()))
    shown = {**TRANSFERRED, "linear": "linear probe on its own data"}
    choices = tuple(
        Choice(
            f"{plain.removesuffix(PLAIN)}the site chosen",
            tuple(n for n, b in baseline.items() if b == plain),
            plain,
        )
        for plain in level
    )
    return Plan(tuple(settings), tuple(claims), baseline, tuple(map(str, deep)), lines, level, shown, choices)


def _pca(name: str) -> str:
    return f"{name}, PCA"


def _short(data: str) -> str:
    """A data set's name without the way to it."""
    return data.rstrip("/").rpartition("/")[2].rpartition(":")[2]
