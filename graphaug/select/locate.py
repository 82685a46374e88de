"""What a string names in a model, in the order of precedence: paths, operations, classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from graphaug.capture.target import Target
from graphaug.errors import CaptureError, SiteNotFound
from graphaug.select.hints import last_segment, listed
from graphaug.select.language import Step, parse
from graphaug.select.structure import Structure


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


class Locator:
    """Looks strings up in one structure."""

    def __init__(self, structure: Structure) -> None:
        self.structure, self.name, self.modules = structure, structure.name, structure.modules
        self.order = {path: i for i, path in enumerate(self.modules)}
        self.children: dict[str, list[str]] = defaultdict(list)
        for path in filter(None, self.modules):
            self.children[path.rpartition(".")[0]].append(path)
        self.classes = {name for path, names in self.modules.items() if path for name in names}
        self.known_ops: dict[str, Sequence[str]] = {}
        self.notes = ""  # why the operations of some module could not be listed

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

    def menu(self) -> str:
        """What there is to name at the top of the model."""
        stages = [f"stage[{i}]" for i in range(len(self.structure.declared))]
        return f"Name one: {listed(['input', *stages, *self.children['']], 20)}."
