"""The values of a graph at two numbers of tokens: which dimensions, and which plain numbers, follow them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from graphaug.capture.values import UNKNOWN, describe, value_of
from graphaug.errors import GraphaugError, SparseBackwardError
from graphaug.sparse.choose import Surgery

WHERE = "passes around the cut"
"""What the values do that are asked about, for messages."""


@dataclass(frozen=True)
class Lengths:
    """The values of a graph at two numbers of tokens.

    Attributes:
        tokens: the two numbers, at the site.
        other: the values at the second one.
    """

    tokens: tuple[int, int]
    other: Mapping[fx.Node, Any]


def two_lengths(surgery: Surgery, tokens: int) -> Lengths | None:
    """The values with another number of tokens, if the forward takes one and goes the same way."""
    cut = next(c for c, r in zip(surgery.cuts, surgery.requests, strict=True) if r.resizes)
    count = value_of(cut).shape[tokens]
    for examples in _others(surgery, count):
        try:
            values = surgery.values_for(examples)
        except GraphaugError:  # it does not take them, or does not come by the site
            continue
        if values is not None and values[cut].shape[tokens] != count:
            return Lengths((count, values[cut].shape[tokens]), values)
    return None


def _others(surgery: Surgery, count: int) -> Iterator[dict[str, Any]]:
    """Examples that may have other numbers of tokens: one fewer where there are so many, or larger images."""
    examples, dims = dict(surgery.structure.signature.examples), surgery.samples.dims

    def fewer(value: Any) -> Any:
        if isinstance(value, Tensor):
            for d, size in enumerate(value.shape):
                if size == count and d != dims.get(id(value)) and count > 2:
                    value = value.narrow(d, 0, count - 1)
        return value

    def larger(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
            return value.repeat(1, 1, 2, 2)
        return value

    yield torch.utils._pytree.tree_map(fewer, examples)
    yield torch.utils._pytree.tree_map(larger, examples)


def may_follow(value: Any, tokens: int, rows: int) -> bool:
    """Whether a value has a size, or is a number, that could be one of tokens, as far as one example tells."""
    if value is UNKNOWN:
        return True
    found: list[int] = []
    for leaf in torch.utils._pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found += leaf.shape
        elif isinstance(leaf, int) and not isinstance(leaf, bool):
            found.append(leaf)
    # some are without the tokens of the prefix (a class token), or hold several entries for each
    return any(n > 1 and n != rows and (n % tokens == 0 or abs(n - tokens) <= 8) for n in found)


def along(node: fx.Node, back: Mapping[fx.Node, fx.Node], lengths: Lengths) -> Any:
    """The dimensions of a tensor that follow the tokens; of a plain value which of its numbers do."""
    origin = back.get(node)
    first, second = value_of(node), _second(node, back, lengths) if origin is None else lengths.other[origin]
    if first is UNKNOWN or second is UNKNOWN:
        raise SparseBackwardError(f"{describe(node)} {WHERE}, and its value is not known")
    if isinstance(first, Tensor):
        if not isinstance(second, Tensor) or first.dim() != second.dim():
            raise SparseBackwardError(f"{describe(node)} {WHERE}, and has another rank with other tokens")
        moving = [d for d in range(first.dim()) if first.shape[d] != second.shape[d]]
        for d in moving:
            if (first.shape[d], second.shape[d]) != lengths.tokens:
                raise SparseBackwardError(
                    f"{describe(node)} {WHERE}, and has {first.shape[d]} and {second.shape[d]} entries for "
                    f"{lengths.tokens[0]} and {lengths.tokens[1]} tokens, not one for each"
                )
        return tuple(moving)
    return _numbers(node, first, second, lengths.tokens)


def _second(node: fx.Node, back: Mapping[fx.Node, fx.Node], lengths: Lengths) -> Any:
    """The second value of an entry that was taken out of a tuple."""
    whole, index = node.args
    return lengths.other[back[whole]][index]  # type: ignore[index]


def _numbers(node: fx.Node, first: Any, second: Any, tokens: tuple[int, int]) -> Any:
    if isinstance(first, (tuple, list)) and type(first) is type(second) and len(first) == len(second):
        return tuple(_numbers(node, a, b, tokens) for a, b in zip(first, second, strict=True))
    if any(isinstance(v, Tensor) for v in torch.utils._pytree.tree_leaves(first)):
        raise SparseBackwardError(f"{describe(node)} {WHERE} in a structure")
    if first == second:
        return "same"
    if type(first) is int and (first, second) == tokens:
        return "tokens"
    raise SparseBackwardError(
        f"{describe(node)} {WHERE}, and is {first} and {second} for {tokens[0]} and {tokens[1]} tokens"
    )


def counts(kinds: Any) -> bool:
    """Whether one of a plain value's numbers counts tokens."""
    return any(map(counts, kinds)) if isinstance(kinds, (tuple, list)) else kinds == "tokens"
