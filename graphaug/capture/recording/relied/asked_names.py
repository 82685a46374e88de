"""The names that code asks for by strings: attributes, globals and modules, which may be missing."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator

from graphaug.capture.recording.relied.code_names import GLOBAL, codes_in, known_as_in, names_in, single_steps

_BY_STRING = {"getattr", "hasattr", "attrgetter", "globals", "vars", "__dict__", "__getattribute__"}
"""What reads a name that is a string."""
_IMPORTING = ("import_module", "__import__", "modules")
"""What is called with the name of a module, or holds it by that."""


@functools.lru_cache(4096)
def strings_in(code: types.CodeType) -> frozenset[str]:
    """The strings in code that asks for names by strings: ``getattr(self, "gain", 1.0)``."""
    if not names_in(code) & _BY_STRING:
        return frozenset()
    return frozenset(text for text in _constants(code) if text.isidentifier() and not text.startswith("__"))


def _constants(code: types.CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _constants(constant)
        elif isinstance(constant, str):
            yield constant


@functools.lru_cache(4096)
def asked_attributes_in(code: types.CodeType) -> frozenset[tuple[str, str]]:
    """Attributes that code asks for by a string, each with the name of what it asks: ("torch", "gain").

    Of ``getattr(torch, "gain", 1.0)``, ``hasattr(torch, "gain")``; these may be missing.
    """
    steps = _loads(code)
    known_as, found = known_as_in(steps), set[tuple[str, str]]()
    for i, step in enumerate(steps):
        if step.opname not in GLOBAL or step.argval not in ("getattr", "hasattr"):
            continue
        owner, j = "", i + 1
        while j < len(steps) and steps[j].opname.startswith("LOAD_") and steps[j].opname != "LOAD_CONST":
            owner, j = str(steps[j].argval), j + 1
        if j < len(steps) and (name := _string(steps[j])) is not None:
            found.add((known_as.get(owner, owner), name))
    return frozenset(found).union(*map(asked_attributes_in, codes_in(code)))


@functools.lru_cache(4096)
def asked_globals_in(code: types.CodeType) -> frozenset[str]:
    """Names that code asks for and that may be missing: ``"X" in globals()``, ``globals().get("X")``."""
    steps = single_steps(code)
    found = set()
    for i, step in enumerate(steps):
        if step.opname in GLOBAL and step.argval == "globals":
            near = [steps[i - 1]] if steps[i + 2].opname == "CONTAINS_OP" else steps[i + 3 : i + 4]
            found |= {name for name in map(_string, near) if name is not None}
    return frozenset(found).union(*map(asked_globals_in, codes_in(code)))


@functools.lru_cache(4096)
def asked_modules_in(code: types.CodeType) -> frozenset[tuple[str, str | None]]:
    """Modules that code asks for in ``sys.modules``, each with the name of what has that: ("sys", "apex").

    Of ``"apex" in sys.modules``, ``sys.modules.get("apex")``; None stands for a name that the code computes. What has
    it is "" where it is a variable by itself.
    """
    steps = _loads(code)
    known_as, found = known_as_in(steps), set[tuple[str, str | None]]()
    for i, step in enumerate(steps[:-1]):
        of_a_module = step.opname == "LOAD_ATTR" and i > 0
        if step.argval != "modules" or not (of_a_module or step.opname in GLOBAL):
            continue
        owner = str(steps[i - 1].argval) if of_a_module else ""
        first = i - of_a_module
        near = steps[i + 1 + (steps[i + 1].argval == "get") :][:1]
        if steps[i + 1].opname == "CONTAINS_OP":
            near = steps[first - 1 : first] if first else []
        found.add((known_as.get(owner, owner), next(map(_string, near), None)))
    return frozenset(found).union(*map(asked_modules_in, codes_in(code)))


@functools.lru_cache(4096)
def imports_in(code: types.CodeType) -> frozenset[str]:
    """The modules that code imports while it runs, or takes by a string: ``sys.modules["settings"]``."""
    steps = single_steps(code)
    found = {str(s.argval) for s in steps if s.opname == "IMPORT_NAME"}
    of = ""
    for step in steps:
        if (name := _string(step)) is not None and of in _IMPORTING:
            found.add(name)
        of = of if step.argval == "get" else str(step.argval)
    return frozenset(found).union(*map(imports_in, codes_in(code)))


def _loads(code: types.CodeType) -> list[dis.Instruction]:
    return [step for step in single_steps(code) if step.opname != "PUSH_NULL"]


def _string(step: dis.Instruction) -> str | None:
    """The string that an instruction loads; None of any other."""
    return step.argval if step.opname == "LOAD_CONST" and isinstance(step.argval, str) else None
