"""Every site with and without stop-gradient: what most figures compare, and how its settings are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from graphaug.recipes.plan import Setting, Site


def at_sites(base: Any, sites: Sequence[Site], entry: Site, prefix: str = "") -> Iterator[Setting]:
    """The settings of every site; at ``entry``, below which nothing is trained, the gradient is not stopped."""
    for site in sites:
        yield Setting(prefix + called(site, False), replace(base, at=(site,)))
        if site != entry:
            yield Setting(prefix + called(site, True), replace(base, at=(site,), stop_grad=True))


def called(site: Site, stopped: bool) -> str:
    """The name of a site's setting."""
    return f"site {site}{', stopped' if stopped else ''}"


def all_called(sites: Sequence[Site]) -> list[str]:
    """The names of the settings of sites, with and without stop-gradient."""
    return [called(site, stopped) for site in sites for stopped in (False, True)]


def behind(sites: Sequence[Site], entry: Site) -> list[Site]:
    """The sites without ``entry``, below which nothing is trained."""
    return [site for site in sites if site != entry]


def two_lines(
    sites: Sequence[Site], entry: Site, spelled: Callable[[str], str] = str, label: str = ""
) -> dict[str, dict[str, str]]:
    """Of a picture, the line of settings that keep the gradient and the line of those that stop it.

    Args:
        sites: the marks.
        entry: where the gradient is not stopped.
        spelled: makes the name of a setting of that of its site.
        label: stands before what the lines are called.
    """
    return {
        f"{label}gradient kept": {str(s): spelled(called(s, False)) for s in sites},
        f"{label}gradient stopped": {str(s): spelled(called(s, True)) for s in behind(sites, entry)},
    }
