"""The grammar of selectors: from a string to a `Selector`. Strings only, no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from graphaug.errors import SelectorError

_CALL = re.compile(r"(.*?)(?:@([0-9]{1,6})(\.input)?)?", re.DOTALL)

_STEP = re.compile(r"([^.\[\]]*)((?:\[[^\[\]]*\])*)(\.|\Z)")

REGEX_ONLY = set(r"\()|^$+?{}[*")

_PICK = re.compile(r"(-?[0-9]{1,6})?(?:(:)(-?[0-9]{1,6})?(?::(-?[0-9]{1,6})?)?)?")


@dataclass(frozen=True)
class Step:
    """One segment of a path: a name, a glob or ``**``, and the brackets behind it."""

    name: str
    brackets: str = ""
    picks: tuple[int | slice, ...] = ()

    def matches(self, name: str) -> bool:
        """Whether the name of a child is meant; ``*`` stands for any part of it."""
        if "*" not in self.name:
            return name == self.name
        return bool(re.fullmatch(".*".join(map(re.escape, self.name.split("*"))), name, re.DOTALL))


@dataclass(frozen=True)
class Selector:
    """A parsed string: the steps of a path, or a regex; then the call and, behind it, the side."""

    text: str
    steps: tuple[Step, ...] = ()
    regex: re.Pattern[str] | None = None
    call: int | None = None
    before: bool = False


def parse(text: str) -> Selector:
    """Parse one selector.

    Args:
        text: for example ``"layer4.*.relu@1"``, ``"encoder.layer[8:11].input"`` or ``"re:layer[34]"``.

    Returns:
        The selector. A last step ``input`` stays a step: whether it is a child, only a model can tell.

    Raises:
        SelectorError: the text is malformed; the message quotes it and gives the rule that it broke.
    """
    if not text.strip():
        raise SelectorError(f"{text!r} is empty: a selector names at least one module.")
    match = _CALL.fullmatch(text)
    assert match is not None  # any text is a head without a call
    head, number, behind = match.groups()
    call = None if number is None else int(number)
    if head.startswith("re:"):
        return Selector(text, (), _regex(text, head[3:]), call, behind is not None)
    if text != text.strip():
        raise _broken(text, "there is white space at an end of it")
    if "@" in head:
        raise _broken(text, "'@' and the number of a call, counted from 0, come last")
    return Selector(text, tuple(_steps(text, head)), None, call, behind is not None)


def _steps(text: str, head: str) -> Iterator[Step]:
    position, dot = 0, "."
    while dot:
        match = _STEP.match(head, position)
        if match is None:
            raise _broken(text, "brackets come in pairs behind a name, and nothing but '.' follows them")
        name, brackets, dot = match.groups()
        if not name and (position or not brackets):  # a leading "[0]" indexes the model itself
            raise _broken(text, "a path has no empty segment")
        if "**" in name and name != "**":
            raise _broken(text, "'**' is a segment of its own; inside of one write '*'")
        yield Step(
            name, brackets, tuple(_pick(text, part) for part in re.findall(r"\[(.*?)\]", brackets, re.S))
        )
        position = match.end()


def _pick(text: str, inside: str) -> int | slice:
    match = _PICK.fullmatch(inside)
    if not inside or match is None:
        raise _broken(text, f"brackets hold an integer or a slice, not {inside!r}")
    start, stop, step = (None if part is None else int(part) for part in match.group(1, 3, 4))
    if start is not None and match[2] is None:
        return start
    if step == 0:
        raise _broken(text, "the step of a slice cannot be 0")
    return slice(start, stop, step)


def _regex(text: str, source: str) -> re.Pattern[str]:
    if not source:
        raise _broken(text, "a regular expression follows 're:'")
    try:
        return re.compile(source)
    except (re.error, OverflowError, RecursionError) as error:
        raise _broken(text, f"it is no valid regular expression ({error})") from None


def _broken(text: str, rule: str) -> SelectorError:
    meant = not text.startswith("re:") and set(text) & REGEX_ONLY - {"*"}
    hint = " A regular expression starts with 're:'." if meant else ""
    return SelectorError(f"{text!r}: {rule}.{hint}")
