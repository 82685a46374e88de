"""What running something costs in FLOPs: torch's counter, with formulas for products that it takes as free."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from graphaug.torch_private import flop_counter_type

Shape = tuple[int, ...]


class FlopCounter:
    """Counts the FLOPs of the operations in its context, two for a multiplication with its addition.

    Torch's counter takes an operation that it has no formula for as free. Those of torch that multiply matrices get one
    here, so that a model costs the same whichever of them its device picks; operators of others are named.

    Attributes:
        unknown: names of the operators whose FLOPs nothing says; ``torch.utils.flop_counter`` takes formulas for them.
    """

    def __init__(self) -> None:
        self.unknown: set[str] = set()
        self._counter = flop_counter_type()(display=False, custom_mapping=formulas())
        self._counter.without_formula = self._note

    def __enter__(self) -> FlopCounter:
        self._counter.__enter__()
        self.begin_again()
        return self

    def __exit__(self, *error: Any) -> None:
        self._counter.__exit__(*error)

    @property
    def total(self) -> int:
        """FLOPs since the context was entered, or begun again."""
        return int(self._counter.get_total_flops())

    def begin_again(self) -> None:
        """Forget what was counted: what was run failed, and is run in another way."""
        self.unknown.clear()
        self._counter.flop_counts.clear()

    def _note(self, operator: Any) -> None:
        name = str(getattr(operator, "_qualified_op_name", getattr(operator, "__name__", operator)))
        if not name.startswith(("aten::", "prim::", "prims::")):
            self.unknown.add(name)


@functools.cache
def formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs by operation, from the shapes of its arguments, as `torch.utils.flop_counter` wants them."""
    named: dict[str, Callable[..., int]] = {
        "mkldnn_rnn_layer": _layer_of_recurrence,
        "_cudnn_rnn": _recurrence,
        "miopen_rnn": _recurrence,
        "_lstm_mps": _recurrence_of_list,
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_scaled_dot_product_fused_attention_overrideable": _attention,
        "_scaled_dot_product_attention_math_for_mps": _attention,
        "mv": lambda a, b, **_: 2 * math.prod(a),
        "addmv": lambda bias, a, b, **_: 2 * math.prod(a),
        "dot": lambda a, b, **_: 2 * math.prod(a),
        "vdot": lambda a, b, **_: 2 * math.prod(a),
        "addbmm": lambda bias, a, b, **_: 2 * math.prod(a) * b[-1],
        "_addmm_activation": lambda bias, a, b, **_: 2 * math.prod(a) * b[-1],
        "_int_mm": lambda a, b, **_: 2 * math.prod(a) * b[-1],
        "_cdist_forward": lambda a, b, *_, **__: 2 * math.prod(a) * b[-2],
        "_grouped_mm": _grouped,
        "_scaled_grouped_mm": _grouped,
        "_trilinear": _trilinear,
        "conv_tbc": lambda x, weight, *_, out_shape, **__: 2 * math.prod(out_shape) * math.prod(weight[:2]),
    }
    return {getattr(torch.ops.aten, k): f for k, f in named.items() if hasattr(torch.ops.aten, k)}


def _layer_of_recurrence(x: Shape, of_input: Shape, of_state: Shape, *_: Any, **__: Any) -> int:
    """One layer, one direction; x is of [steps, rows, features]."""
    return 2 * math.prod(x[:-1]) * (math.prod(of_input) + math.prod(of_state))


def _recurrence(x: Shape, weights: list[Shape], *_: Any, **__: Any) -> int:
    """All layers in one call: every step of every row goes through each matrix once."""
    return 2 * math.prod(x[:-1]) * sum(math.prod(w) for w in weights if len(w) == 2)


def _recurrence_of_list(x: Shape, state: Any, weights: list[Shape], *_: Any, **__: Any) -> int:
    return _recurrence(x, weights)


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Query [..., queries, features] by key [..., keys, features], the weights by value."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _grouped(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Each row meets the matrix of its group; groups share a dimension unless both have one of their own."""
    groups = a[0] if len(a) == len(b) == 3 else 1
    return 2 * groups * a[-2] * a[-1] * b[-1]


def _trilinear(a: Shape, b: Shape, c: Shape, *expanded: Any, **_: Any) -> int:
    """Three tensors multiplied over their common shape: as much as the larger of its two products."""
    shapes = [list(shape) for shape in (a, b, c)]
    for shape, places in zip(shapes, expanded[:3], strict=True):
        for place in places:
            shape.insert(place, 1)
    common: list[int] = [max(sizes) for sizes in zip(*shapes, strict=True)]
    return 2 * math.prod(common)
