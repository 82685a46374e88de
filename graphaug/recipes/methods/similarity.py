"""Maps of similarity between layers, and whether Deep Augmentation makes layers less alike.

**Method.** Encoders as in figures 3 and 4, by SimCLR and with Deep Augmentation at every site. The blocks and stages of
each are compared by CKA on training images, by the biased estimator with an RBF kernel of the median bandwidth, the
authors' as it is said, and by the unbiased one, with controls (`graphaug.recipes.runs.looks`). The abstract says
that Deep Augmentation alleviates co-adaptation between layers: the claim is tested on 1 less the mean unbiased CKA of
different sites. The table has the controls beside it: where *shuffled* differs from 100 %, that is bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphaug.recipes.claims import Claim, Member
from graphaug.recipes.methods.images import ABSTRACT, INPUT, PLAIN
from graphaug.recipes.methods.treatments import all_called, at_sites, behind, two_lines
from graphaug.recipes.plan import Plan, Setting, Site
from graphaug.vision.config import PretrainConfig

OURS, AUTHORS = "unbiased.linear", "biased.rbf"

MEASURES = {
    f"layers.images.{OURS}.unlike": "1 - CKA, unbiased",
    f"layers.images.{AUTHORS}.unlike": "1 - CKA, biased, RBF",
    f"layers.shuffled.{OURS}.unlike": "shuffled, unbiased",
    f"layers.shuffled.{AUTHORS}.unlike": "shuffled, biased, RBF",
    f"layers.images.{OURS}.in_stretches": "sites in stretches, unbiased",
    f"layers.images.{AUTHORS}.in_stretches": "sites in stretches, biased, RBF",
    f"layers.noise.{OURS}.unlike": "of noise, unbiased",
    f"layers.noise.{AUTHORS}.unlike": "of noise, biased, RBF",
    f"layers.untrained.{OURS}.unlike": "untrained, unbiased",
    f"layers.untrained.{AUTHORS}.unlike": "untrained, biased, RBF",
    "linear": "linear probe",
}


def maps(base: PretrainConfig, sites: Sequence[Site], data: Sequence[str]) -> Plan:
    """CKA between layers, of SimCLR and of every site with and without stop-gradient."""
    base = replace(base, data=data[0])
    deep = behind(sites, INPUT)
    settings = tuple(replace(s, looks="layers") for s in (Setting(PLAIN, base), *at_sites(base, deep, INPUT)))
    claims = (
        Claim(
            "With Deep Augmentation at some site layers are less alike than with SimCLR.",
            f"{ABSTRACT}, which says that it alleviates co-adaptation between layers; the measure is ours",
            "some",
            tuple(Member(name, (PLAIN,)) for name in all_called(deep)),
        ),
    )
    return Plan(
        settings,
        claims,
        dict.fromkeys((s.name for s in settings[1:]), PLAIN),
        tuple(map(str, deep)),
        two_lines(deep, INPUT),
        (PLAIN,),
        MEASURES,
        scores="shares in %",
        tested_on="test images, of the linear probe,",
        maps=(PLAIN, *(s.name for s in settings[1:] if s.config.stop_grad)),
    )
