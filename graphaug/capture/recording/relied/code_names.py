"""The names that code reads, as its instructions have them."""

from __future__ import annotations

import dis
import types


def names_in(code: types.CodeType) -> set[str]:
    """The names that code, and functions that are written inside of it, read."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= names_in(constant)
    return found


def attributes_in(code: types.CodeType) -> set[tuple[str, str]]:
    """The attributes that code reads, each with the name of what it is read off: ("config", "dtype")."""
    found, owner = set(), ""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            found.add((owner, str(instruction.argval)))
        owner = str(instruction.argval) if instruction.opname.startswith("LOAD_") else ""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= attributes_in(constant)
    return found


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
