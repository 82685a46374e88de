"""What one selector names in a model, in the order of precedence, and what an error about it says."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from graphaug.capture.target import Target
from graphaug.errors import CaptureError, SelectorError, SiteNotFound, an, did_you_mean, nearest
from graphaug.select.hints import last_segment, listed, spell
from graphaug.select.language import REGEX_ONLY, Selector, Step, parse
from graphaug.select.structure import Structure

Selectable: TypeAlias = str | int | type | Callable[[Any], object]


@dataclass(frozen=True)
class Match:
    """What one selector found; `call` (None: every call) is still to be applied.

    A predicate has seen each call: `by_call`, the targets have calls of their own and are never ambiguous.
    """

    text: str
    targets: Sequence[Target]
    call: int | None = None
    by_call: bool = False


INPUT = Target("", side="before")

_ITSELF = " That is the model itself, whose input is 'input'."


class Finder:
    """Finds selectors in one structure. The SiteNotFound it raises are collected by `resolve`."""

    def __init__(self, structure: Structure) -> None:
        self.structure, self.name, self.modules = structure, structure.name, structure.modules
        self.order = {path: i for i, path in enumerate(self.modules)}
        self.children: dict[str, list[str]] = defaultdict(list)
        for path in filter(None, self.modules):
            self.children[path.rpartition(".")[0]].append(path)
        self.classes = {name for path, names in self.modules.items() if path for name in names}
        self.known_ops: dict[str, Sequence[str]] = {}
        self.notes = ""  # why the operations of some module could not be listed

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
        raise SiteNotFound(f"{text!r} matches nothing in {self.name}.{self.hint(parse(text))}{self.notes}")

    def number(self, number: int) -> Match:
        """Find the site of a stage by the paper's number."""
        stages = self.structure.stages
        if number == -1:
            return Match("-1", [INPUT])
        if number < 0:
            raise SelectorError(f"{number} is no stage: they are numbered from 0, and -1 is the model input.")
        if not stages:
            why = f": {self.structure.unnumbered}" if self.structure.unnumbered else ""
            raise SiteNotFound(
                f"{number}: the stages of {self.name} have no known numbers{why}. {self.menu()}"
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
        where = f" Its path in {self.name} is {spelled}: use it." if spelled else _ITSELF
        return f"{an(module)} object is no selector.{where}"

    def instances(self, cls: type) -> Match:
        """Find the modules of a class."""
        paths = self.structure.instances(cls)
        sites = self.below_root(paths)
        if not sites:
            hint = _ITSELF if paths else did_you_mean(cls.__name__, self.classes)
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

    def locate(self, text: str) -> Match:
        """What a string names, in the order of precedence; maybe nothing."""
        if text and text in self.modules:
            return Match(text, [Target(text)])
        if text == "input":
            return Match(text, [INPUT])
        selector = parse(text)
        regex, steps, before = selector.regex, selector.steps, selector.before
        if regex is not None:
            targets = self.below_root(path for path in self.modules if regex.fullmatch(path))
        elif len(steps) > 1 and steps[-1] == Step("input"):  # a child of that name, or else the side
            targets = self.below_root(self.walk(text, steps))
            before = before or not targets
            targets = targets or self.named(text, steps[:-1])
        else:
            targets = self.named(text, steps)
        if before:
            targets = [replace(target, side="before") for target in targets]
        return Match(text, targets, selector.call)

    def named(self, text: str, steps: Sequence[Step]) -> list[Target]:
        """Modules; else a class; else what the last segment names among the operations in all before it."""
        targets = self.below_root(self.walk(text, steps))
        *head, last = steps
        if targets or last.picks or "*" in last.name:
            return targets
        if not head:
            targets = self.below_root(path for path, names in self.modules.items() if last.name in names)
        return targets or [
            Target(path, last.name) for path in self.walk(text, head) if last.name in self.ops(path)
        ]

    def walk(self, text: str, steps: Sequence[Step]) -> list[str]:
        """Follow the steps down from the root, in definition order. ``**`` may stay at the root."""
        paths = [""]
        for i, step in enumerate(steps):
            picks = step.picks
            if i == 0 and step.name == "stage" and picks and "stage" not in self.children[""]:
                if not self.structure.declared:
                    raise SiteNotFound(f"{text!r}: {self.name} declares no stages. {self.menu()}")
                paths = self.pick(text, {self.name: self.structure.declared}, picks[0], "declared stages")
                picks = picks[1:]
            elif step.name == "**":
                paths = self.subtree(paths)
            elif step.name:
                paths = [
                    kid for path in paths for kid in self.children[path] if step.matches(last_segment(kid))
                ]
            for pick in picks:
                paths = self.pick(text, {path: self.children[path] for path in paths}, pick, "children")
        return sorted(dict.fromkeys(paths), key=lambda path: self.order.get(path, -1))

    def pick(self, text: str, lists: Mapping[str, Sequence[str]], pick: int | slice, what: str) -> list[str]:
        """Take what a bracket picks out of each list, as Python's indexing does."""
        found: list[str] = []
        for items in lists.values():
            if isinstance(pick, slice):
                found += items[pick]
            elif -len(items) <= pick < len(items):
                found.append(items[pick])
        if lists and not found:
            owner = max(lists, key=lambda path: len(lists[path]))
            size = len(lists[owner])
            span = f"{size} {what}, [0] to [{size - 1}]" if size else f"no {what}"
            raise SiteNotFound(f"{text!r} is out of range: {owner or self.name!r} has {span}.")
        return found

    def subtree(self, paths: Iterable[str]) -> list[str]:
        """The modules and all that is below them."""
        found = dict.fromkeys(paths)
        queue = list(found)
        for path in queue:  # it grows while it is read
            new = [kid for kid in self.children[path] if kid not in found]
            found.update(dict.fromkeys(new))
            queue += new
        return queue

    def below_root(self, paths: Iterable[str]) -> list[Target]:
        """Targets in definition order, without the model itself."""
        return [
            Target(path) for path in sorted(filter(None, paths), key=lambda path: self.order.get(path, -1))
        ]

    def ops(self, path: str) -> Sequence[str]:
        """The operations of a module; none where its forward cannot be looked into."""
        if path not in self.known_ops:
            try:
                self.known_ops[path] = self.structure.ops(path)
            except CaptureError as error:
                self.known_ops[path] = ()
                self.notes = f"\n    The operations inside {path or self.name!r} are not known: {error}"
        return self.known_ops[path]

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

    def menu(self) -> str:
        """What there is to name at the top of the model."""
        stages = [f"stage[{i}]" for i in range(len(self.structure.declared))]
        return f"Name one: {listed(['input', *stages, *self.children['']], 20)}."

    def hint(self, selector: Selector) -> str:
        """What was probably meant by a string that matches nothing."""
        text, steps = selector.text, selector.steps
        paths = [path for path in self.modules if path]
        if selector.regex is not None:
            part = next(filter(selector.regex.search, paths), None)
            return f" It matches a part of {part!r}; the whole path has to match." if part else ""
        if len(steps) > 1 and steps[-1] == Step("input"):
            steps = steps[:-1]
        names = self.similar(steps)
        found = _ITSELF if text in self.modules.get("", ()) else ""
        found += f" Did you mean {', '.join(map(repr, names))}?" if names else ""
        with suppress(re.error, OverflowError, RecursionError):
            if set(text) & REGEX_ONLY and any(re.fullmatch(text, path) for path in paths):
                found += f" If it is a regular expression, write {'re:' + text!r}."
        return found

    def similar(self, steps: Sequence[Step]) -> list[str]:
        """Up to three selectors that are like this one and match something."""
        spelled = [step.name + step.brackets for step in steps]
        whole = ".".join(spelled)
        names = [f"**.{whole}"] if any(path.endswith(f".{whole}") for path in self.modules) else []
        names += [steps[-1].name] if len(steps) > 1 and steps[-1].name in self.classes else []
        # Mend the first segment that leads nowhere, with what there is in its place.
        wrong = next((i for i in range(len(steps)) if not self.walk(whole, steps[: i + 1])), len(steps) - 1)
        parents = self.walk(whole, steps[:wrong])
        here = [last_segment(kid) for path in parents for kid in self.children[path]]
        if wrong == len(steps) - 1:
            here += [op for path in parents for op in self.known_ops.get(path, ())]
        if len(steps) == 1:
            here += ["input", *sorted(self.classes)]
        same = [steps[wrong].name] if steps[wrong].name in here else []  # it is its call that is not there
        for near in (*same, *nearest(steps[wrong].name, here)):
            mended = ".".join([*spelled[:wrong], near + steps[wrong].brackets, *spelled[wrong + 1 :]])
            with suppress(SiteNotFound, SelectorError):  # the rest of the path may not fit
                names += [mended] if self.locate(mended).targets else []
        return list(dict.fromkeys(names))[:3] or nearest(whole, filter(None, self.modules))
