"""What is said of a string that matches nothing: what is at that place, and what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

from graphaug.errors import SelectorError, SiteNotFound, nearest
from graphaug.select.hints import last_segment
from graphaug.select.language import REGEX_ONLY, Selector, Step
from graphaug.select.locate import Locator

THE_MODEL_ITSELF = " That is the model itself, whose input is 'input'."

_FEW = 3
"""So many sites are named one by one; more are named by a pattern."""


def missed(at: Locator, selector: Selector) -> str:
    """The message about a string that matches nothing."""
    text = f"{selector.text!r} matches nothing in {at.name}"
    return f"{text}{_held(at, selector.text, _path(selector))}.{hint(at, selector)}{at.notes}"


def hint(at: Locator, selector: Selector) -> str:
    """What was probably meant by it."""
    text, paths = selector.text, [path for path in at.modules if path]
    if selector.regex is not None:
        part = next(filter(selector.regex.search, paths), None)
        return f" It matches a part of {part!r}; the whole path has to match." if part else ""
    names = _similar(at, _path(selector))
    found = THE_MODEL_ITSELF if text in at.modules.get("", ()) else ""
    found += f" Did you mean {', '.join(map(repr, names))}?" if names else ""
    with suppress(re.error, OverflowError, RecursionError):
        if set(text) & REGEX_ONLY and any(re.fullmatch(text, path) for path in paths):
            found += f" If it is a regular expression, write {'re:' + text!r}."
    return found


def _path(selector: Selector) -> Sequence[Step]:
    """The segments of a path, without an ``input`` that means its side."""
    steps = selector.steps
    return steps[:-1] if len(steps) > 1 and steps[-1] == Step("input") else steps


def _spelled(steps: Sequence[Step]) -> list[str]:
    return [step.name + step.brackets for step in steps]


def _leads_nowhere(at: Locator, steps: Sequence[Step]) -> int:
    """The place of the first segment that leads nowhere; if none does, of the last."""
    whole = ".".join(_spelled(steps))
    nowhere = (i for i in range(len(steps)) if not at.walk(whole, steps[: i + 1]))
    return next(nowhere, len(steps) - 1)


def _held(at: Locator, text: str, steps: Sequence[Step]) -> str:
    """What the model has at the place where a path ends, if that is no module: None, a parameter, a number."""
    wrong = _leads_nowhere(at, steps) if steps else 0
    if not steps or not steps[wrong].name or "*" in steps[wrong].name:
        return ""
    parents = at.walk(".".join(_spelled(steps)), steps[:wrong])
    found = {path: at.structure.held(path, steps[wrong].name) for path in parents}
    what = {said for said in found.values() if said}
    if len(what) != 1 or not all(found.values()):
        return ""
    place = ".".join([*_spelled(steps[:wrong]), steps[wrong].name])
    which = "it" if place == text else repr(place)
    return f": {which} is {what.pop()} in this model, and no module"


def _similar(at: Locator, steps: Sequence[Step]) -> list[str]:
    """Up to three selectors that are like this one and match something."""
    spelled = _spelled(steps)
    whole, wrong = ".".join(spelled), _leads_nowhere(at, steps) if steps else 0
    if further := _further_down(at, steps):
        return further
    names = [steps[-1].name] if len(steps) > 1 and steps[-1].name in at.classes else []
    # Mend the first segment that leads nowhere, with what there is in its place.
    parents = at.walk(whole, steps[:wrong])
    if any(at.structure.held(path, steps[wrong].name) for path in parents):  # it is spelled as it should be
        rest = "." + ".".join(spelled[wrong:])
        return nearest(whole, [path for path in at.modules if path.endswith(rest)]) or names[:_FEW]
    here = [last_segment(kid) for path in parents for kid in at.children[path]]
    if wrong == len(steps) - 1:
        here += [op for path in parents for op in at.known_ops.get(path, ())]
    if len(steps) == 1:
        here += ["input", *sorted(at.classes)]
    same = [steps[wrong].name] if steps[wrong].name in here else []  # it is its call that is not there
    for near in (*same, *nearest(steps[wrong].name, here)):
        mended = ".".join([*spelled[:wrong], near + steps[wrong].brackets, *spelled[wrong + 1 :]])
        with suppress(SiteNotFound, SelectorError):  # the rest of the path may not fit
            names += [mended] if at.locate(mended).targets else []
    return list(dict.fromkeys(names))[:_FEW] or nearest(whole, filter(None, at.modules))


def _further_down(at: Locator, steps: Sequence[Step]) -> list[str]:
    """The same path below a module that the user did not name: each place if they are few, else a pattern."""
    if not steps or not steps[0].name:
        return []
    whole, below = ".".join(_spelled(steps)), (Step("**"), *steps)
    with suppress(SiteNotFound):  # a bracket may be out of range
        found = at.below_root(at.walk(whole, below))
        if not found and len(steps) > 1 and len(at.walk(whole, below[:-1])) <= _FEW:
            found = at.named(whole, below)  # looks for operations in so few modules only: each is captured
        return [str(target) for target in found] if len(found) <= _FEW else [f"**.{whole}"]
    return []
