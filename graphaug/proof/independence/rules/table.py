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
from graphaug.torch_private import OpOverload

TABLE: dict[str, Rule] = {**POINTWISE, **DIMENSIONS, **VIEWS, **PRODUCTS, **LAYERS, **PARTS, **INDICES}
"""Operation -> rule. Operations that torch tags as pointwise need no entry."""


def rule_for(call: Call) -> Rule | None:
    """The rule of an operation, or None."""
    if call.func._overloadname.endswith("out"):
        return None
    found = TABLE.get(call.name)
    return pointwise if found is None and _is_pointwise(call.func) else found


def _is_pointwise(func: OpOverload) -> bool:
    """Whether torch tags it so; an operation in place may lack the tag that its other form has."""
    if torch.Tag.pointwise in func.tags:
        return True
    namespace, _, name = func._schema.name.partition("::")
    if not name.endswith("_"):
        return False
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    form = getattr(packet, func._overloadname, None)
    return form is not None and torch.Tag.pointwise in form.tags
