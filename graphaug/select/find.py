"""What one selector of any kind names in a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from graphaug.capture.target import Target
from graphaug.errors import SelectorError, SiteNotFound, an, did_you_mean
from graphaug.select.hints import last_segment, spell
from graphaug.select.language import parse
from graphaug.select.locate import INPUT, Locator, Match
from graphaug.select.misses import THE_MODEL_ITSELF, missed

Selectable: TypeAlias = str | int | type | Callable[[Any], object]


class Finder(Locator):
    """Finds selectors in one structure. The SiteNotFound it raises are collected by `resolve`."""

    def find(self, at: Selectable) -> Match:
        """Find what one selector of any kind names."""
        if isinstance(at, str):
            return self.text(at)
        if isinstance(at, int) and not isinstance(at, bool):
            return self.number(at)
        if isinstance(at, type):
            return self.instances(at)
        if hasattr(at, "named_modules"):
            raise SelectorError(self._object(at))
        if callable(at):
            return self.predicate(at)
        if hasattr(at, "requires_grad"):
            raise SelectorError(f"{an(at)} is no selector: inputs are given by name, example_inputs=….")
        raise SelectorError(
            f"{an(at)} is no selector{'' if at is None else f' ({at!r:.40})'}: use a string, the number of a "
            "stage, a class, a predicate over sites, or a flat list of these."
        )

    def text(self, text: str) -> Match:
        """Find what a string names, which has to be something."""
        found = self.locate(text)
        if found.targets:
            return found
        raise SiteNotFound(missed(self, parse(text)))

    def number(self, number: int) -> Match:
        """Find the site of a stage by the paper's number."""
        stages = self.structure.stages
        if number == -1:
            return Match("-1", [INPUT])
        if number < 0:
            raise SelectorError(f"{number} is no stage: they are numbered from 0, and -1 is the model input.")
        if not stages:
            why = f": {self.structure.unnumbered}" if self.structure.unnumbered else ""
            child = str(number) in self.children[""]
            meant = (
                f" The child of that name is 're:^{number}$', in Python also at='{number}'." if child else ""
            )
            raise SiteNotFound(
                f"{number}: the stages of {self.name} have no known numbers{why}.{meant} {self.menu()}"
            )
        if number not in stages:
            span = f"0 to {max(stages)}, and -1 for the input"
            raise SiteNotFound(f"{number} is out of range: {self.name} has the stages {span}.")
        return self.text(stages[number])

    def _object(self, module: object) -> str:
        """Why a module is no selector, and which one names it."""
        paths = self.structure.paths_of(module)
        if not paths:
            return f"{an(module)} object is no selector, and {self.name} has no such module: use a path or a class."
        spelled = " or ".join(map(repr, filter(None, paths)))
        where = f" Its path in {self.name} is {spelled}: use it." if spelled else THE_MODEL_ITSELF
        return f"{an(module)} object is no selector.{where}"

    def instances(self, cls: type) -> Match:
        """Find the modules of a class."""
        paths = self.structure.instances(cls)
        sites = self.below_root(paths)
        if not sites:
            hint = THE_MODEL_ITSELF if paths else did_you_mean(cls.__name__, self.classes)
            raise SiteNotFound(f"no module in {self.name} is {an(cls)}.{hint}")
        return Match(cls.__name__, sites)

    def predicate(self, accepts: Callable[[Any], object]) -> Match:
        """Find the sites that a function of the user accepts."""
        label, sites = spell(accepts), self.structure.candidates()
        found = []
        for site in sites:
            try:
                found += [site.target] if accepts(site) else []
            except Exception as error:  # the user's own code
                where, what = str(site.target), f"{type(error).__name__}: {error}"
                raise SelectorError(f"predicate {label} fails at {where!r} with {what}. Guard it.") from error
        if not found:
            raise SiteNotFound(f"predicate {label} accepts none of the {len(sites)} sites of {self.name}.")
        return Match(label, found, by_call=True)

    def expand(self, match: Match, counts: Mapping[str, int]) -> list[Target]:
        """Apply the call: every target once per call, or in the one call that was named."""
        targets = []
        for target in match.targets:
            count = counts.get(target.path, 0) if target.path else 1
            wanted = target.call if match.call is None else match.call
            calls = [call for call in range(count) if wanted in (None, call)]
            targets += [replace(target, call=call if count > 1 else None) for call in calls]
        if targets:
            return targets
        best = max(match.targets, key=lambda target: counts.get(target.path, 1))
        count, name = counts.get(best.path, 1), str(replace(best, side="after"))
        if count == 1:
            raise SiteNotFound(f"{match.text!r}: {name!r} is called once, so it takes no '@{match.call}'.")
        if count:
            raise SiteNotFound(f"{match.text!r}: {name!r} is called {count} times, '@0' to '@{count - 1}'.")
        which = f"{name!r} exists, but it" if len(match.targets) == 1 else f"all that {match.text!r} matches"
        inside = self.children[best.path] if best.op is None else []
        first = f"{name}[0]" if inside and last_segment(inside[0]) == "0" else "".join(inside[:1])
        hint = f" Name what is inside: {first!r} or {name + '.*'!r}." if inside else ""
        raise SiteNotFound(f"{which} is never called in the forward of {self.name}.{hint}")
