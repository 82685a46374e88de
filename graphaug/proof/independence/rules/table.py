"""The table of rules, to be read line by line in the files that it is joined of."""

from __future__ import annotations

import torch

from graphaug.proof.independence.call import Call, Rule
from graphaug.proof.independence.rules.dimensions import DIMENSIONS
from graphaug.proof.independence.rules.indices import INDICES
from graphaug.proof.independence.rules.layers import LAYERS
from graphaug.proof.independence.rules.parts import PARTS
from graphaug.proof.independence.rules.pointwise import POINTWISE, pointwise
from graphaug.proof.independence.rules.products import PRODUCTS
from graphaug.proof.independence.rules.views import VIEWS

TABLE: dict[str, Rule] = {**POINTWISE, **DIMENSIONS, **VIEWS, **PRODUCTS, **LAYERS, **PARTS, **INDICES}
"""Operation -> rule. Operations that torch tags as pointwise need no entry."""


def rule_for(call: Call) -> Rule | None:
    """The rule of an operation, or None."""
    if call.func._overloadname.endswith("out"):
        return None
    found = TABLE.get(call.name)
    if found is None and torch.Tag.pointwise in call.func.tags:
        return pointwise
    return found
