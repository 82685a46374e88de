"""Settings that are chosen on validation images, and what the test images say of the choice.

**Choosing without peeking.** For the run of each seed the candidate is taken that has the best accuracy on the
validation images, on the mean over the *other* seeds; its accuracy on the test images at this seed is what counts. The
choice has seen neither the test images nor the luck of this seed's training. The seeds' figures are compared with the
baseline's in pairs, as in `graphaug.recipes.claims`; there is one comparison for a choice, and no correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from graphaug.recipes.claims import Values, paired

CHOSEN_BY = "validation.linear"
"""The accuracy that is chosen by, by its name in an outcome."""


@dataclass(frozen=True)
class Choice:
    """A way to train that has something to choose: its name, the settings, and what it is compared with."""

    name: str
    among: tuple[str, ...]
    baseline: str


@dataclass(frozen=True)
class Chosen:
    """What came of a choice.

    ``settings``: by seed, the one that the others chose; ``accuracy``: its test accuracy at this seed; ``difference``:
    to the baseline at the same seed; ``ahead``: the one-sided p-value of the latter, 1 where it cannot be told.
    """

    choice: Choice
    settings: Mapping[int, str]
    accuracy: Mapping[int, float]
    difference: Mapping[int, float]
    ahead: float


def choose(choice: Choice, validation: Values, test: Values) -> Chosen | None:
    """Choose for every seed by the others; None where there are fewer than two, or a candidate has diverged in one.

    A mean over the seeds in which it did not diverge would be a choice of its own, so that such a candidate cannot be
    chosen; of a baseline that diverged there is no difference.
    """
    seeds = sorted(validation.get(choice.baseline, {}))
    whole = [
        name
        for name in choice.among
        if sorted(validation.get(name, {})) == seeds
        and all(values[name][seed] is not None for seed in seeds for values in (validation, test))
    ]
    if len(seeds) < 2 or not whole:
        return None
    settings = {seed: _best(whole, validation, [s for s in seeds if s != seed]) for seed in seeds}
    accuracy = {seed: _known(test, name, seed) for seed, name in settings.items()}
    base = test[choice.baseline]
    if any(base.get(seed) is None for seed in seeds):
        return Chosen(choice, settings, accuracy, {}, 1.0)
    difference = {seed: accuracy[seed] - _known(test, choice.baseline, seed) for seed in seeds}
    return Chosen(choice, settings, accuracy, difference, paired(list(difference.values()))[0])


def _best(names: Sequence[str], values: Values, seeds: Sequence[int]) -> str:
    """The name with the highest mean over some seeds; of equal ones the first."""
    return max(names, key=lambda name: mean(_known(values, name, seed) for seed in seeds))


def _known(values: Values, name: str, seed: int) -> float:
    found = values[name][seed]
    assert found is not None
    return found
