"""The names that code reads, as its instructions have them."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator, Sequence

_NO_STEPS = {"EXTENDED_ARG", "CACHE", "NOP", "PUSH_NULL"}
_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_NAMED = _GLOBAL | {
    *("LOAD_ATTR", "LOAD_METHOD"),
    *("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF", "IMPORT_FROM"),
}
_BY_STRING = {"getattr", "hasattr", "attrgetter", "globals", "vars", "__dict__", "__getattribute__"}
"""What reads a name that is a string."""
_FILLING = {"__setitem__", "append", "appendleft", "extend", "insert", "add", "update", "clear"}
"""Methods that fill a container and return nothing of it."""


@functools.lru_cache(4096)  # every capture of a model asks for its code again
def names_in(code: types.CodeType) -> frozenset[str]:
    """The names that code, and functions that are written inside of it, read.

    A list that it only appends to, or a dict in which it only sets entries, is not read.
    """
    return _read_by(code, _NAMED)


@functools.lru_cache(4096)
def globals_in(code: types.CodeType) -> frozenset[str]:
    """Those of `names_in` that are looked up among the globals: in ``self.loss``, ``loss`` is none of them."""
    return _read_by(code, _GLOBAL)


def _read_by(code: types.CodeType, instructions: frozenset[str]) -> frozenset[str]:
    """The names that these instructions read in code, and in functions that are written inside of it."""
    steps = [s for s in dis.get_instructions(code) if s.opname not in _NO_STEPS]
    found = {
        str(step.argval)
        for i, step in enumerate(steps)
        if step.opname in instructions and not _is_written(steps[i + 1 : i + 6])
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _read_by(constant, instructions)
    return frozenset(found)


def _is_written(following: Sequence[dis.Instruction]) -> bool:
    """Whether what was loaded is filled: by a method, or at a key that is loaded next."""
    if following and following[0].opname in ("LOAD_ATTR", "LOAD_METHOD"):
        return following[0].argval in _FILLING
    for step in following:
        if step.opname == "STORE_SUBSCR":
            return True
        if not step.opname.startswith(("LOAD_", "FORMAT_", "BUILD_STRING", "CONVERT_")):
            return False
    return False


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
def imports_in(code: types.CodeType) -> frozenset[str]:
    """The modules that code imports while it runs."""
    found = {str(s.argval) for s in dis.get_instructions(code) if s.opname == "IMPORT_NAME"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= imports_in(constant)
    return frozenset(found)


@functools.lru_cache(4096)
def attributes_in(code: types.CodeType) -> frozenset[tuple[str, str]]:
    """The attributes that code reads, each with the name of what it is read off: ("config", "dtype")."""
    found, owner = set(), ""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            found.add((owner, str(instruction.argval)))
        owner = str(instruction.argval) if instruction.opname.startswith("LOAD_") else ""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= attributes_in(constant)
    return frozenset(found)


def read_names(cls: type) -> frozenset[str]:
    """The names of attributes that the functions of a class read, its constructor's apart."""
    found: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "torch" or base is object:
            continue
        for name, value in vars(base).items():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(function, types.FunctionType) and name != "__init__":
                found |= {attribute for _, attribute in attributes_in(function.__code__)}
    return frozenset(found)
