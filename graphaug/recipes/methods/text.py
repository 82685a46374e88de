"""Figure 8: SimCSE on the seven STS tasks; and what else augments there: crops of the sentence, deep views.

**Method.** A BERT, trained by unsupervised SimCSE, with and without masked language beside it. Every run of a seed of
either begins with the same weights, and sees the same sentences in the same order. Deep Augmentation acts behind one
block: dropout on half of the rows, drawn anew in every step, with and without stopping the gradient of these rows at
the site, at the rate that was published as the best for each of these four ways (`graphaug.text.presets`). Against it
stands the same training without it. The encoder of the last step is scored; the average of the seven tasks is what
claims are tested on.

Beside it stand crops of the sentence, where each pass reads a span of its own, and deep views: one reading of the
sentence, of which two rows are made at the site, with dropout in all rows at the rate without stop-gradient.

**No choice by a labelled set.** Every setting is shown, and the encoder that STS-B's development set preferred on the
way is not looked at: an unsupervised method should do without labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphaug.recipes.claims import Claim, Member
from graphaug.recipes.methods.treatments import all_called, at_sites, called, two_lines
from graphaug.recipes.plan import Plan, Setting, Site
from graphaug.text.config import SimCSEConfig
from graphaug.text.presets import RATES
from graphaug.text.sts.tasks import TASKS

NAMES = {False: "SimCSE", True: "SimCSE + MLM"}
"""By masked language."""

INPUT: Site = -1
"""Token ids have no gradient and are no site: below every one that there is, the embeddings are trained."""

AHEAD = {
    False: "the paper's abstract",
    True: "the paper's abstract says it without masked language; with it, it is only asked",
}
STOPPED = "docs/text.md, which says it of every block of the paper's encoders"

CROPS = (0.9, 0.5)
"""Shares of a sentence that a pass reads: of SimCSE's Table 1 the one that loses least, and half."""

OURS = "a comparison of ours; so is the sentence"

MEASURES = {"sts.average": "STS average", **{f"sts.{task}": task for task in TASKS}}


def on_sentences(base: SimCSEConfig, sites: Sequence[Site], data: Sequence[str]) -> Plan:
    """Figure 8: every site with and without stop-gradient, both with and without masked language, and SimCSE."""
    text, sts = data
    settings: list[Setting] = []
    claims: list[Claim] = []
    baseline: dict[str, str] = {}
    lines: dict[str, dict[str, str]] = {}
    for mlm, plain in NAMES.items():
        own, prefix = replace(base, text=text, sts=sts, mlm=mlm), f"{plain}: "
        deep = [_at_its_rate(s) for s in at_sites(own, sites, INPUT, prefix)]
        settings += [Setting(plain, own), *deep]
        baseline |= {s.name: plain for s in deep}
        lines |= two_lines(sites, INPUT, prefix.__add__, f"{plain}, ")
        claims += _claims(plain, mlm, sites)
    return Plan(
        tuple(settings),
        tuple(claims),
        baseline,
        tuple(map(str, sites)),
        lines,
        tuple(NAMES.values()),
        MEASURES,
        scores="Spearman correlations ×100",
        unit="×100",
        tested_on="STS tasks",
    )


def beside_crops(base: SimCSEConfig, sites: Sequence[Site], data: Sequence[str]) -> Plan:
    """SimCSE, Deep Augmentation at every site, crops of the sentence, and deep views against two passes."""
    text, sts = data
    plain = NAMES[False]
    own = replace(base, text=text, sts=sts)
    deep = [_at_its_rate(s) for s in at_sites(own, sites, INPUT)]
    crops = [Setting(f"crops of {share:.0%}", replace(own, crop=share)) for share in CROPS]
    rate = RATES[False, False]
    views = [
        Setting(_views(site), replace(own, at=(site,), deep_views=True, rate=rate, subset=1.0))
        for site in sites
    ]
    settings = (Setting(plain, own), *crops, *deep, *views)
    claims = (
        Claim(
            "Deep Augmentation at some site is ahead of crops of the sentence, of each share.",
            OURS,
            "some",
            tuple(Member(s.name, tuple(c.name for c in crops)) for s in deep),
        ),
        Claim(
            f"Crops of the sentence are ahead of {plain}, of each share.",
            OURS,
            "every",
            tuple(Member(c.name, (plain,)) for c in crops),
        ),
        Claim(
            f"Deep views are ahead of two passes of {plain}, at every site.",
            OURS,
            "every",
            tuple(Member(s.name, (plain,)) for s in views),
        ),
    )
    lines = {
        **two_lines(sites, INPUT),
        "deep views": {str(s): _views(s) for s in sites},
    }
    return Plan(
        settings,
        claims,
        dict.fromkeys((s.name for s in settings[1:]), plain),
        tuple(map(str, sites)),
        lines,
        (plain, *(c.name for c in crops)),
        MEASURES,
        scores="Spearman correlations ×100",
        unit="×100",
        tested_on="STS tasks",
    )


def _views(site: Site) -> str:
    return f"site {site}, deep views"


def _at_its_rate(setting: Setting) -> Setting:
    config = setting.config
    return replace(setting, config=replace(config, rate=RATES[config.stop_grad, config.mlm]))


def _claims(plain: str, mlm: bool, sites: Sequence[Site]) -> list[Claim]:
    prefix = f"{plain}: "
    return [
        Claim(
            f"{plain} with Deep Augmentation at some site is ahead of {plain} without it.",
            AHEAD[mlm],
            "some",
            tuple(Member(prefix + name, (plain,)) for name in all_called(sites)),
        ),
        Claim(
            f"{plain}: with stop-gradient it is ahead of without, at every site.",
            STOPPED,
            "every",
            tuple(Member(prefix + called(s, True), (prefix + called(s, False),)) for s in sites),
        ),
    ]
