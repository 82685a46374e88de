"""The sites of a rewritten model by their spelling: what is set there, what they drew, and what they are given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from torch import Generator, Tensor

from graphaug.augment.choices import check_probability
from graphaug.augment.site import Augmentation
from graphaug.augment.transform import Context
from graphaug.capture.target import Target
from graphaug.errors import GraphaugError, InvalidOption, SiteNotFound, did_you_mean

T = TypeVar("T")


class Augmentations(dict[Target, Augmentation]):
    """Site → its augmentation; a key is a `Target`, or its text as in the plan: ``aug.augmentations["blocks.5"]``."""

    def __getitem__(self, key: Target | str) -> Augmentation:
        if isinstance(key, Target) and super().__contains__(key):
            return super().__getitem__(key)
        return _at(self.spelled(), str(key))

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and key in self.spelled())

    def get(self, key: Any, default: Any = None) -> Any:
        """The augmentation at a site, or ``default`` if there is none."""
        try:
            return self[key]
        except SiteNotFound:
            return default

    def spelled(self) -> dict[str, Augmentation]:
        """The same by the text of each site."""
        return {str(target): augmentation for target, augmentation in self.items()}


class BySite(Mapping[str, T], Generic[T]):
    """Something of every site, looked up when it is asked for."""

    def __init__(self, sites: Mapping[str, Augmentation], look_up: Callable[[Augmentation], T]) -> None:
        self._sites, self._look_up = sites, look_up

    def __getitem__(self, site: Target | str) -> T:
        return self._look_up(_at(self._sites, site))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{site!r}: {self._said(site)}" for site in self) + "}"

    def _said(self, site: str) -> str:
        try:
            return repr(self[site])
        except GraphaugError as error:  # nothing has been drawn yet
            return f"<{error}>"


def _at(sites: Mapping[str, Augmentation], site: Target | str) -> Augmentation:
    """The augmentation at a site: a `Target`, as the keys of ``aug.augmentations`` are, or its text."""
    spelled = str(site)
    if spelled not in sites:
        raise SiteNotFound(
            f"this model is not augmented at {spelled!r}.{did_you_mean(spelled, sites)} "
            + (f"Its sites: {', '.join(sites)}." if sites else "It is augmented nowhere.")
        )
    return sites[spelled]


def set_numbers(
    sites: Mapping[str, Augmentation], numbers: Mapping[str, float | Mapping[Any, float]]
) -> None:
    """Set numbers of sites; what is set together is checked together, and in full before anything is set.

    Args:
        sites: the augmentations by site.
        numbers: name → a value for every site that has such a number, or one for each of the sites that are named.

    Raises:
        SiteNotFound: a named site is not augmented.
        InvalidOption: a site has no such number, or the value is outside its domain.
    """
    changes: dict[str, dict[str, float]] = {}
    for name, value in numbers.items():
        for site, number in _values_by_site(sites, name, value).items():
            changes.setdefault(site, {})[name] = number
    for site, several in changes.items():
        sites[site].check(**several)
    for site, several in changes.items():
        sites[site].set(**several)


def at_site(site: Target | str, numbers: Mapping[str, float]) -> dict[str, Mapping[Any, float]]:
    """Numbers for one of the sites, as `set_numbers` takes them.

    Raises:
        InvalidOption: no site is spelled so.
    """
    if not isinstance(site, (str, Target)):
        raise InvalidOption(f"set({site!r}, ...): a site is a string or a Target, spelled as in aug.plan.")
    return {name: {site: value} for name, value in numbers.items()}


def _values_by_site(
    sites: Mapping[str, Augmentation], name: str, value: float | Mapping[Any, float]
) -> dict[str, float]:
    """The value of a number at every site that it is for."""
    if isinstance(value, Mapping):
        for site in value:
            _at(sites, site)
        chosen = {str(site): number for site, number in value.items()}
    else:
        having = [site for site, a in sites.items() if name in a.numbers()]
        if not having:
            known = {known: None for a in sites.values() for known in a.numbers()}
            raise InvalidOption(
                f"no site of this model has a number {name!r}.{did_you_mean(name, known)} "
                f"There are {', '.join(known) or 'none'}."
            )
        chosen = dict.fromkeys(having, value)
    for site, number in chosen.items():
        known = dict.fromkeys(sites[site].numbers())
        if name not in known:
            raise InvalidOption(
                f"'{site}' has no number {name!r}.{did_you_mean(name, known)} It has {', '.join(known)}."
            )
        if name in ("rate", "subset"):
            check_probability(f"{name} at {site!r}" if isinstance(value, Mapping) else name, number)
    return chosen


@contextlib.contextmanager
def given(sites: Mapping[str, Augmentation], entries: Mapping[str, Any]) -> Iterator[None]:
    """Give every site some context in this block, beside what an outer one gives.

    Raises:
        InvalidOption: an entry that is no context, or no tensor.
    """
    known = [name for name in Context._fields if name != "batch"]
    unknown = [name for name in entries if name not in known]
    if unknown:
        raise InvalidOption(
            f"{unknown[0]!r} cannot be given.{did_you_mean(unknown[0], known)} "
            f"What can be: {', '.join(known)}."
        )
    for name, entry in entries.items():
        kind = Generator if name == "generator" else Tensor
        if entry is not None and not isinstance(entry, kind):
            raise InvalidOption(
                f"aug.given({name}=…) takes a torch.{kind.__name__}, not a value of type {type(entry).__name__}."
            )
        if isinstance(entry, Tensor) and entry.dim() < 1:
            raise InvalidOption(
                f"aug.given({name}=…) takes one entry for each row of the batch, not a single number."
            )
    before = {site: augmentation.context for site, augmentation in sites.items()}
    for site, augmentation in sites.items():
        augmentation.give(before[site]._replace(**entries))
    try:
        yield
    finally:
        for site, augmentation in sites.items():
            augmentation.give(before[site])
