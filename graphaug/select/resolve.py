"""The selection language: from what a user writes to the sites it names. Strings only, no torch.

A string is parsed to an immutable `Selector`; `resolve` finds what it names in a `Structure`, all that has to
be known of a model. In this order: the exact path of a module; ``"re:…"``; ``"input"``; a path with globs and
Python indexing; ``"module.op"``; the name of a class; the name of an operation of the model itself.

    layer4.1.relu@1           second call        layer4.*  **.relu         one segment, any number of them
    layer4.1.add              an operation       encoder.layer[8:11]       children, in definition order
    layer4.input              the input of it    BasicBlock  stage[2]      a class, a declared stage

Nothing is evaluated, and no regex or suffix is inferred. The model itself is no match of a pattern or class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

from graphaug.capture.target import Target
from graphaug.errors import AmbiguousSite, InvalidOption, SelectorError, SiteCountMismatch, SiteNotFound
from graphaug.select.find import Finder, Selectable
from graphaug.select.hints import listed, spell
from graphaug.select.structure import Structure

At: TypeAlias = Selectable | Sequence[Selectable]
T = TypeVar("T")
U = TypeVar("U")

_FOOTER = "\n    graphaug.sites(model) lists sites to choose from."


def _selectors(at: At) -> Sequence[Selectable]:
    if not isinstance(at, (list, tuple)):
        return [at]  # type: ignore[list-item]  # what it is, `find` checks
    if not at:
        raise SelectorError("an empty list selects nothing: name at least one site.")
    return at


def _each(look: Callable[[T], U], items: Iterable[T], misses: list[str], role: str = "") -> list[U]:
    """Look every item up; what is not found is noted, so that one error can name all of it."""
    found = []
    for item in items:
        try:
            found.append(look(item))
        except SiteNotFound as miss:
            misses.append(f"{role}{miss}")
    return found


def resolve(
    at: At,
    structure: Structure,
    *,
    side: str = "after",
    exclude: At | None = None,
    expect: int | None = None,
    every_call: bool = False,
) -> list[Target]:
    """Find the sites that a selector names.

    Args:
        at: a string, the number of a stage (-1: the input), a class, a predicate over sites, or a flat list.
        structure: what is known of the model.
        side: ``"before"`` takes the input of everything matched.
        exclude: what to leave out, in the same language; without ``@k`` every call of it, on either side.
        expect: how many sites there have to be.
        every_call: take a module that is called several times in all its calls, without ``@k`` or `expect`.

    Returns:
        The sites, each once: in definition order for one selector, in the order of the list for several.
        Modules that a pattern or class matches but that are never called are left out.

    Raises:
        SelectorError: a selector is malformed, or of a type that selects nothing.
        SiteNotFound: selectors, in `at` or `exclude`, match nothing. The message names every one of them.
        AmbiguousSite: a module is called several times, no ``@k`` says which is meant, and `expect` is not
            the number of all sites.
        SiteCountMismatch: `expect` is another number than that of the sites.
        InvalidOption: `side` or `expect` is outside its domain.

    Example:
        >>> block = StaticStructure("Block", {"": ("Block",), "relu": ("ReLU",)}, called={"relu": 2})
        >>> [str(target) for target in resolve("relu", block, exclude="relu@0")]
        ['relu@1']
    """
    if side not in ("after", "before"):
        raise InvalidOption(f"side={side!r} is neither 'after' nor 'before'.")
    if expect is not None and (not isinstance(expect, int) or isinstance(expect, bool) or expect < 1):
        raise InvalidOption(f"expect={expect!r} is no number of sites: use a positive integer.")
    finder, misses = Finder(structure), list[str]()
    wanted = _each(finder.find, _selectors(at), misses)
    unwanted = [] if exclude is None else _each(finder.find, _selectors(exclude), misses, "exclude: ")

    places = [target.path for match in [*wanted, *unwanted] for target in match.targets]
    paths = list(dict.fromkeys(filter(None, places)))
    counts = structure.calls(paths) if paths else {}
    matched = _each(lambda match: (match, finder.expand(match, counts)), wanted, misses)
    removed = _each(lambda match: finder.expand(match, counts), unwanted, misses, "exclude: ")
    if misses:
        raise SiteNotFound("\n".join(misses) + _FOOTER)

    gone = {(target.path, target.op, target.call) for targets in removed for target in targets}
    sites: dict[Target, None] = {}
    unsaid: dict[tuple[str, str | None], dict[Target, None]] = defaultdict(dict)
    for match, targets in matched:
        for target in targets:
            if (target.path, target.op, target.call) in gone:
                continue
            site = replace(target, side="before") if side == "before" else target
            sites[site] = None
            if match.call is None and not match.by_call:
                unsaid[site.path, site.op][replace(site, side="after")] = None
    if not sites:
        raise SiteNotFound(f"exclude={spell(exclude)} leaves nothing of {spell(at)}.{_FOOTER}")
    if expect == len(sites) or (every_call and expect is None):
        return list(sites)
    for (path, op), calls in unsaid.items():
        if len(calls) > 1:
            name, (first, *others) = str(Target(path, op)), calls
            last = f"'@{others[-1].call}'"
            choice = f"{str(first)!r} or {last}" if len(calls) == 2 else f"{str(first)!r} … {last}"
            every = (
                "both"
                if len(sites) == 2
                else "all"
                if len(sites) == len(calls)
                else f"all {len(sites)} sites"
            )
            raise AmbiguousSite(
                f"{name!r} is called {counts[path]} times: use {choice}, or expect={len(sites)} for {every}."
            )
    if expect is not None:
        raise SiteCountMismatch(
            f"{spell(at)} matches {len(sites)} site{'s'[: len(sites) > 1]}, not {expect}: {listed(list(sites))}."
        )
    return list(sites)
