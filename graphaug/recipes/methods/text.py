"""Figure 8: SimCSE on the seven STS tasks.

**Method.** A BERT, trained by unsupervised SimCSE, with and without masked language beside it. Every run of a seed of
either begins with the same weights, and sees the same sentences in the same order. Deep Augmentation acts behind one
block: dropout on half of the rows, drawn anew in every step, with and without stopping the gradient of these rows at
the site, at the rate that was published as the best for each of these four ways (`graphaug.text.presets`). Against it
stands the same training without it. The encoder of the last step is scored; the average of the seven tasks is what
claims are tested on.

**No choice by a labelled set.** Every setting is shown, and the encoder that STS-B's development set preferred on the
way is not looked at: an unsupervised method should do without labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphaug.recipes.claims import Claim, Member
from graphaug.recipes.methods.treatments import all_called, at_sites, called
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
        lines[f"{plain}, gradient kept"] = {str(s): prefix + called(s, False) for s in sites}
        lines[f"{plain}, gradient stopped"] = {str(s): prefix + called(s, True) for s in sites}
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
