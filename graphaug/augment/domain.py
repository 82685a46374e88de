"""Where the numbers of a transform may lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from graphaug.augment.choices import as_number
from graphaug.errors import InvalidOption


@dataclass(frozen=True)
class Domain:
    """Where a number may lie: from ``low`` to ``high``, ``low`` itself excluded if ``above``."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __str__(self) -> str:
        left = "(" if self.above or self.low == -math.inf else "["
        return f"{left}{self.low:g}, {self.high:g}{')' if self.high == math.inf else ']'}"

    def check(self, name: str, value: object) -> float:
        """Return the value as a float.

        Raises:
            InvalidOption: it is no number, not finite, or outside the domain.
        """
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InvalidOption(f"{name}={value!r} is no number: give one in {self}{as_number(value)}.")
        number = float(value)
        inside = self.low < number if self.above else self.low <= number
        if not (math.isfinite(number) and inside and number <= self.high):
            raise InvalidOption(f"{name}={value!r} is outside {self}.")
        return number


SHARE = Domain(0, 1)
