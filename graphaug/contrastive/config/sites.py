"""Sites as they are typed: a whole number is the paper's, and behind an equals sign stands a site's own rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphaug.errors import ConfigError


def site(at: str | int) -> str | int:
    """A site as typed on a command line: a whole number is a number, in the paper's numbering."""
    if isinstance(at, str):
        digits = at.removeprefix("-")
        return int(at) if digits.isascii() and digits.isdecimal() else at
    return at


def site_and_rate(typed: str) -> tuple[str | int, float | None]:
    """``layer3=0.5`` of a command line as the site and its rate; the rate is None where there is none.

    A regular expression may hold an equals sign, and has no rate.

    Raises:
        ConfigError: what follows the equals sign is no number in [0, 1].
    """
    name, equals, value = typed.rpartition("=")
    if not equals or typed.startswith("re:"):
        return site(typed), None
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not name or not 0 <= rate <= 1:
        raise ConfigError(
            f"at {typed!r}: behind the site stands its rate, a number in [0, 1], such as layer3=0.5."
        )
    return site(name), rate


def sites_and_rates(typed: Sequence[str]) -> tuple[list[str | int], list[float]]:
    """All sites of a command line and, if they have rates, these.

    Raises:
        ConfigError: some have a rate and some have none, one has two, or one is no rate.
    """
    pairs = [site_and_rate(text) for text in typed]
    without = [str(name) for name, rate in pairs if rate is None]
    if without and len(without) < len(pairs):
        raise ConfigError(
            f"some sites have a rate of their own, {', '.join(without)} has none: give each or none one."
        )
    rates: dict[str | int, float | None] = {}
    for name, rate in pairs:
        if rate is not None and rates.setdefault(name, rate) != rate:
            raise ConfigError(f"at= gives {str(name)!r} two rates: {rates[name]:g} and {rate:g}.")
    return [name for name, _ in pairs], [rate for _, rate in pairs if rate is not None]
