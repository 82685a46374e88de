"""Transforms as plain values, for plans that are files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from graphaug.augment.transform import Transform
from graphaug.augment.transforms.drop import Dropout
from graphaug.augment.transforms.mix import Mix
from graphaug.augment.transforms.noise import Noise
from graphaug.augment.transforms.pca import PCA
from graphaug.augment.transforms.policy import Policy
from graphaug.augment.transforms.statistics import Statistics
from graphaug.augment.transforms.steer import Add, Replace
from graphaug.augment.transforms.tokens import Tokens
from graphaug.errors import InvalidOption, an, did_you_mean

BUILT_IN: tuple[type[Transform], ...] = (Dropout, Noise, Mix, Statistics, PCA, Policy, Tokens, Add, Replace)


def to_plain(transform: Transform) -> dict[str, Any]:
    """A transform as its name and the arguments that make it, of plain values.

    Raises:
        InvalidOption: it holds a module, a function or another thing that a file cannot hold.
    """
    options = {name: _plain(transform, name, value) for name, value in transform.spelled().items()}
    return {"transform": type(transform).__name__, "options": options}


def from_plain(plain: Mapping[str, Any], more: Iterable[type[Transform]] = ()) -> Transform:
    """The transform that `to_plain` made a mapping of.

    Args:
        plain: its name and arguments.
        more: classes besides the built-in ones that may be meant.

    Raises:
        InvalidOption: the name is of none of them, or the arguments do not fit.
    """
    known = {cls.__name__: cls for cls in (*BUILT_IN, *more)}
    name, options = plain.get("transform"), plain.get("options", {})
    if name not in known:
        raise InvalidOption(
            f"the plan has a transform {name!r}.{did_you_mean(str(name), known)} Known: {', '.join(known)}. "
            "One of your own: Plan.from_json(text, transforms=[YourTransform])."
        )
    try:
        return known[name](**{key: _value(value, more) for key, value in options.items()})
    except TypeError as error:
        raise InvalidOption(f"the plan gives {name} options that it has not: {error}.") from error


def _plain(transform: Transform, name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": value.detach().cpu().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Transform):
        return to_plain(value)
    if isinstance(value, (list, tuple)):
        return [_plain(transform, name, entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InvalidOption(
        f"{type(transform).__name__} cannot be written to a file: its {name} is {an(value)}. "
        "Make it a transform of its own, whose arguments are plain values."
    )


def _value(plain: Any, more: Iterable[type[Transform]]) -> Any:
    if isinstance(plain, Mapping) and "transform" in plain:
        return from_plain(plain, more)
    if isinstance(plain, Mapping):
        return torch.tensor(plain["tensor"], dtype=getattr(torch, plain["dtype"]))
    return [_value(entry, more) for entry in plain] if isinstance(plain, list) else plain
