"""Of later versions: contrastive learning on graphs.

**Method.** A GIN on graphs, trained by GraphCL (two views of each graph) and by SimGRACE (one view, and weights that
are moved). Every run of a seed begins with the same weights, and has the same split, order and views. Deep Augmentation
acts at one site, behind a layer or on the nodes' features: dropout on half of the graphs, drawn anew in every step,
with and without stopping the gradient of these graphs at the site. Against it stands each method without it. A probe on
frozen embeddings (logistic regression of classes, ridge regression of values) is what claims are tested on.

**No choice by test graphs.** As of images: every setting is shown, and the test graphs are read once by each run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from graphaug.graphs.config import METHODS, GraphsConfig
from graphaug.graphs.data.graphs import load
from graphaug.recipes.choice import Choice
from graphaug.recipes.claims import Claim, Member
from graphaug.recipes.methods.images import LATER
from graphaug.recipes.methods.treatments import all_called, at_sites, behind, two_lines
from graphaug.recipes.plan import Plan, Setting, Site

INPUT: Site = 0
NAMES = {"graphcl": "GraphCL", "simgrace": "SimGRACE"}
SOURCE = f"{LATER}: notable gains, in graph learning too; the sentence is ours"

CLASSES: Mapping[str, str] = {"linear": "linear probe"}
VALUES: Mapping[str, str] = {"r2": "R² of a ridge probe"}


def on_graphs(base: GraphsConfig, sites: Sequence[Site], data: Sequence[str]) -> Plan:
    """Every site with and without stop-gradient, with both methods, and both without Deep Augmentation."""
    base = replace(base, data=data[0])
    measures = CLASSES if load(base).classes else VALUES
    deep = behind(sites, INPUT)
    settings: list[Setting] = []
    claims: list[Claim] = []
    baseline: dict[str, str] = {}
    lines: dict[str, dict[str, str]] = {}
    choices: list[Choice] = []
    for method in METHODS:
        plain, prefix = NAMES[method], f"{NAMES[method]}: "
        own = replace(base, method=method)
        group = [Setting(plain, own), *at_sites(own, sites, INPUT, prefix)]
        all_deep = tuple(prefix + name for name in all_called(deep))
        settings += group
        baseline |= {s.name: plain for s in group[1:]}
        lines |= two_lines(sites, INPUT, prefix.__add__, f"{plain}, ")
        choices.append(Choice(f"{plain}, its site chosen", all_deep, plain))
        claims.append(
            Claim(
                f"{plain} with Deep Augmentation at some layer is ahead of {plain} without it.",
                SOURCE,
                "some",
                tuple(Member(name, (plain,)) for name in all_deep),
            )
        )
    level = tuple(NAMES[method] for method in METHODS)
    chosen_by = f"validation.{next(iter(measures))}"
    marks = tuple(map(str, sites))
    return Plan(
        tuple(settings), tuple(claims), baseline, marks, lines, level, measures, tuple(choices), chosen_by
    )
