"""The sites of a rewritten model by their spelling: what is set there, what they drew, and what they are given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from graphaug.augment.choices import check_probability
from graphaug.augment.site import Augmentation
from graphaug.augment.transform import PLAIN, Context
from graphaug.capture.target import Target
from graphaug.errors import InvalidOption, SiteNotFound, did_you_mean

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

    def __getitem__(self, site: str) -> T:
        return self._look_up(_at(self._sites, site))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        return f"<for each of: {', '.join(self._sites)}>"


def _at(sites: Mapping[str, Augmentation], site: str) -> Augmentation:
    if site not in sites:
        raise SiteNotFound(
            f"this model is not augmented at {site!r}.{did_you_mean(str(site), sites)} "
            f"Its sites: {', '.join(sites)}."
        )
    return sites[site]


def settings(
    sites: Mapping[str, Augmentation], name: str, value: float | Mapping[str, float]
) -> list[tuple[Augmentation, float]]:
    """What to set where, checked in full before anything is set.

    Args:
        sites: the augmentations by site.
        name: of the number.
        value: one for every site that has it, or one for each of the sites that are named.

    Raises:
        SiteNotFound: a named site is not augmented.
        InvalidOption: a site has no such number, or the value is outside its domain.
    """
    if isinstance(value, Mapping):
        chosen = {site: (_at(sites, site), number) for site, number in value.items()}
    else:
        having = {site: a for site, a in sites.items() if name in a.numbers()}
        if not having:
            known = {known: None for a in sites.values() for known in a.numbers()}
            raise InvalidOption(
                f"no site of this model has a number {name!r}.{did_you_mean(name, known)} "
                f"There are {', '.join(known)}."
            )
        chosen = {site: (a, value) for site, a in having.items()}
    for site, (augmentation, number) in chosen.items():
        if name not in augmentation.numbers():
            known = dict.fromkeys(augmentation.numbers())
            raise InvalidOption(
                f"'{site}' has no number {name!r}.{did_you_mean(name, known)} It has {', '.join(known)}."
            )
        if name in ("rate", "subset"):
            check_probability(f"{name} at {site!r}" if isinstance(value, Mapping) else name, number)
        augmentation.check(**{name: number})
    return list(chosen.values())


@contextlib.contextmanager
def given(sites: Mapping[str, Augmentation], entries: Mapping[str, Any]) -> Iterator[None]:
    """Give every site some context in this block.

    Raises:
        InvalidOption: an entry that is no context.
    """
    known = [name for name in Context._fields if name != "batch"]
    unknown = [name for name in entries if name not in known]
    if unknown:
        raise InvalidOption(
            f"{unknown[0]!r} cannot be given.{did_you_mean(unknown[0], known)} "
            f"What can be: {', '.join(known)}."
        )
    for augmentation in sites.values():
        augmentation.give(Context(**entries))
    try:
        yield
    finally:
        for augmentation in sites.values():
            augmentation.give(PLAIN)
