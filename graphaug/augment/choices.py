"""What options may be: one of several spellings, a share, a count, a flag."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import Literal

from graphaug.errors import InvalidOption, did_you_mean

Sampling = Literal["exact", "bernoulli"]
Granularity = Literal["element", "channel", "position"]
Pairing = Literal["any", "one-sided", "together"]

CHOICES: dict[str, tuple[str | None, ...]] = {
    "sampling": ("exact", "bernoulli"),
    "granularity": ("element", "channel", "position"),
    "pairing": ("any", "one-sided", "together"),
    "freeze": (None, "before", "after"),
    "backward": ("auto", "dense", "sparse", "proved"),
}


def check_probability(name: str, value: object) -> float:
    """Return ``value`` as a float in [0, 1].

    Raises:
        InvalidOption: it is no number, NaN, or outside [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidOption(f"{name}={value!r} is no number: give a float between 0 and 1{as_number(value)}.")
    if not 0.0 <= float(value) <= 1.0:  # false for NaN too
        raise InvalidOption(f"{name}={value!r} is outside [0, 1].")
    return float(value)


def check_rate(value: object) -> float:
    """Return the one rate of all sites, as `check_probability`; of several it says where each one's is given."""
    if isinstance(value, (list, tuple)):
        raise InvalidOption(
            f"rate={value!r} is no number: a rate for each site is given as at={{site: rate}}."
        )
    return check_probability("rate", value)


def as_number(value: object) -> str:
    """How to make a number of what holds a single one, as a tensor; or nothing."""
    return ", as its .item() is" if getattr(value, "shape", None) == () and hasattr(value, "item") else ""


def check_choice(name: str, value: object, known: Iterable[str | None] | None = None) -> str:
    """Return ``value`` if it is one of the option's spellings, by default of those of `graphaug.rewrite`.

    Raises:
        InvalidOption: it is not; the message names the nearest one.
    """
    names = CHOICES[name] if known is None else tuple(known)
    if not (value is None or isinstance(value, str)) or value not in names:
        hint = did_you_mean(str(value), filter(None, names))
        raise InvalidOption(f"{name}={value!r} is unknown.{hint} Known: {', '.join(map(repr, names))}.")
    return str(value)


def check_count(name: str, value: object, least: int) -> int:
    """Return ``value`` if it is a whole number of at least ``least``.

    Raises:
        InvalidOption: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"{name}={value!r}: give a whole number of at least {least}.")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False.

    Raises:
        InvalidOption: it is neither.
    """
    if not isinstance(value, bool):
        raise InvalidOption(f"{name}={value!r} is neither True nor False.")
    return value
