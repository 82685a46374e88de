"""The names that code reads, as its instructions have them."""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import itertools
import re
import sys
import types
import warnings
from collections.abc import Sequence

_NO_STEPS = {"EXTENDED_ARG", "CACHE", "NOP", "PUSH_NULL"}
GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_OFF = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
"""Reads of an attribute; from Python 3.12 on one is of ``super().name``."""
COUNTS = "+="
"""Stands for the owner of an attribute that is read to be raised: ``Net.calls += 1``."""
_NAMED = GLOBAL | {
    *("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"),
    *("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF", "IMPORT_FROM"),
}
_BINDING = {f"{verb}_{what}" for verb in ("STORE", "DELETE") for what in ("ATTR", "GLOBAL", "NAME", "DEREF")}
_NULL_BEHIND = sys.version_info >= (3, 13)
"""Whether what is called is loaded in front of the NULL of its call, as from Python 3.13 on, or behind it."""
_HALVES = re.compile("(?:LOAD|STORE)_FAST(?:_BORROW)?")
_FILLING = {"__setitem__", "append", "appendleft", "extend", "insert", "add", "update", "clear"}
"""Methods that fill a container and return nothing of it."""
_FILLING_DICTS = _FILLING | {"setdefault", "pop", "popitem"}
_OF_A_WHOLE = {
    "len",
    "list",
    "tuple",
    "sorted",
    "dict",
    "iter",
    "enumerate",
    "any",
    "all",
    "sum",
    "max",
    "min",
    "set",
}


@functools.lru_cache(4096)  # every capture of a model asks for its code again
def names_in(code: types.CodeType) -> frozenset[str]:
    """The names that code, and functions that are written inside of it, read.

    A list that it only appends to, or a dict in which it only sets entries, is not read.
    """
    return _read_by(code, _NAMED)


@functools.lru_cache(4096)
def globals_in(code: types.CodeType) -> frozenset[str]:
    """Those of `names_in` that are looked up among the globals: in ``self.loss``, ``loss`` is none of them."""
    return _read_by(code, GLOBAL)


def _read_by(code: types.CodeType, instructions: frozenset[str]) -> frozenset[str]:
    """The names that these instructions read in code, and in functions that are written inside of it."""
    steps = [s for s in dis.get_instructions(code) if s.opname not in _NO_STEPS]
    found = {
        str(step.argval)
        for i, step in enumerate(steps)
        if step.opname in instructions and not _is_written(steps[i + 1 : i + 6])
    }
    return frozenset(found).union(*(_read_by(c, instructions) for c in codes_in(code)))


@functools.lru_cache(4096)
def codes_in(code: types.CodeType) -> tuple[types.CodeType, ...]:
    """The code that is written inside of code: its functions, and what it says in strings where it evaluates some."""
    found = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    if any(s.opname in GLOBAL and s.argval in ("eval", "exec") for s in dis.get_instructions(code)):
        for text in (constant for constant in code.co_consts if isinstance(constant, str)):
            # most strings are a text, and no code
            with contextlib.suppress(SyntaxError, ValueError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append(compile(text.strip(), "<evaluated>", "exec"))
    return tuple(found)


@functools.lru_cache(4096)
def variables_in(code: types.CodeType) -> frozenset[str]:
    """The names of the variables of code itself, and of functions that are written inside of it."""
    return frozenset((*code.co_varnames, *code.co_cellvars)).union(*map(variables_in, codes_in(code)))


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


def single_steps(code: types.CodeType) -> list[dis.Instruction]:
    """Instructions, of Python 3.13's for two variables each of its halves: STORE_FAST_LOAD_FAST."""
    found = []
    for step in dis.get_instructions(code):
        halves = _HALVES.findall(step.opname)
        if len(halves) == 2:
            found += [step._replace(opname=h, argval=v) for h, v in zip(halves, step.argval, strict=True)]
        elif step.opname not in {*_NO_STEPS, "PRECALL"}:
            found.append(step)
    return found


@functools.lru_cache(4096)
def methods_in(code: types.CodeType) -> frozenset[str]:
    """The names of methods that code, and functions that are written inside of it, call."""
    found = {
        str(step.argval)
        for step in dis.get_instructions(code)
        if step.opname == "LOAD_METHOD" or (step.opname == "LOAD_ATTR" and "NULL" in step.argrepr)
    }
    return frozenset(found).union(*(methods_in(c) for c in codes_in(code)))


@functools.lru_cache(4096)
def gone_through_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names of containers that code goes through or counts as a whole, and of those that it fills.

    A local variable that a container is given to counts for it.
    """
    steps = single_steps(code)
    through, filled, known_as = set(), set(), dict[str, str]()
    for i, step in enumerate(steps[:-1]):
        if not step.opname.startswith("LOAD_") or not isinstance(step.argval, str):
            continue
        name, after = known_as.get(step.argval, step.argval), steps[i + 1]
        if after.opname == "STORE_FAST" and step.opname in _NAMED:
            known_as[str(after.argval)] = name
        method = after.argval if after.opname in ("LOAD_ATTR", "LOAD_METHOD") else ""
        before = steps[i - 1 - (step.opname == "LOAD_ATTR")].argval if i > 1 else ""
        if (
            after.opname in ("GET_ITER", "DICT_UPDATE", "DICT_MERGE")
            or method in ("keys", "values", "items")
            or (after.opname == "CALL" and before in _OF_A_WHOLE)
        ):
            through.add(name)
        if method in _FILLING_DICTS or _is_written(steps[i + 1 : i + 6]):
            filled.add(name)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = gone_through_in(constant)
            through, filled = through | inner[0], filled | inner[1]
    return frozenset(through), frozenset(filled)


@functools.lru_cache(4096)
def written_in(code: types.CodeType) -> frozenset[str]:
    """The names that code, and functions that are written inside of it, bind or fill; its own variables are none."""
    found = {str(i.argval) for i in dis.get_instructions(code) if i.opname in _BINDING}
    inner = (written_in(c) for c in codes_in(code))
    return frozenset(found | gone_through_in(code)[1]).union(*inner)


@functools.lru_cache(4096)
def attributes_in(code: types.CodeType) -> frozenset[tuple[str, str]]:
    """The attributes that code reads, each with the name of what it is read off: ("config", "dtype").

    What is read off a variable is read off what the variable was given too: ``from settings import cfg as c``.
    """
    steps = [s for s in single_steps(code) if s.opname != "PUSH_NULL"]
    known_as, found, owner, module = known_as_in(steps), set[tuple[str, str]](), "", ""
    for i, step in enumerate(steps):
        name = str(step.argval)
        if step.opname in _OFF:
            off = "" if step.opname == "LOAD_SUPER_ATTR" else COUNTS if _is_raised(steps, i) else owner
            found |= {(off, name), (known_as.get(off, off), name)}
        elif step.opname == "IMPORT_FROM":
            found.add((module, name))
        elif step.opname == "IMPORT_NAME":
            module = name.rpartition(".")[2]
        owner = name if step.opname.startswith("LOAD_") else ""
    return frozenset(found).union(*(attributes_in(c) for c in codes_in(code)))


def known_as_in(steps: Sequence[dis.Instruction]) -> dict[str, str]:
    """The local variables that are given something with a name, each with that name."""
    found: dict[str, str] = {}
    for step, after in itertools.pairwise(steps):
        if after.opname in ("STORE_FAST", "STORE_DEREF") and step.opname in {*_NAMED, "IMPORT_NAME"}:
            name = str(step.argval).rpartition(".")[2]
            found[str(after.argval)] = found.get(name, name)
    return found


def _is_raised(steps: Sequence[dis.Instruction], i: int) -> bool:
    """Whether an attribute is read for the value that is set next: its owner is copied for that."""
    copied = i > 0 and steps[i - 1].opname == "COPY"
    return copied and any(s.opname == "STORE_ATTR" and s.argval == steps[i].argval for s in steps[i + 1 :])


@functools.lru_cache(4096)
def calls_in(code: types.CodeType) -> frozenset[str]:
    """The names of what code, and functions that are written inside of it, call: ``f(x)``, ``a.f(x)``."""
    steps = [s for s in dis.get_instructions(code) if s.opname not in _NO_STEPS - {"PUSH_NULL"}]
    known_as, found = known_as_in([s for s in steps if s.opname != "PUSH_NULL"]), set(methods_in(code))
    for i, step in enumerate(steps):
        if step.opname != "PUSH_NULL" and not (step.opname == "LOAD_GLOBAL" and "NULL" in step.argrepr):
            continue
        near = i if step.opname != "PUSH_NULL" else i - 1 if _NULL_BEHIND else i + 1
        while not _NULL_BEHIND and steps[near + 1].opname == "LOAD_ATTR":  # a.f(*x)
            near += 1
        called = steps[near].argval
        found.add(str(called[-1] if isinstance(called, tuple) else called))
    found |= {known_as[name] for name in found & known_as.keys()}
    return frozenset(found).union(*(calls_in(c) for c in codes_in(code)))


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


def stored_names(cls: type) -> frozenset[str]:
    """The names of attributes that a class's forward sets; of torch's own classes none."""
    function = inspect.unwrap(getattr(cls, "forward", None) or object)
    own = isinstance(function, types.FunctionType) and cls.__module__.partition(".")[0] != "torch"
    return _stored_in(function.__code__) if own else frozenset()


@functools.lru_cache(4096)
def _stored_in(code: types.CodeType) -> frozenset[str]:
    return frozenset(i.argval for i in dis.get_instructions(code) if i.opname == "STORE_ATTR")


def asks_for_type(code: types.CodeType) -> bool:
    """Whether code says ``type(x)``, or calls a method of ``dict`` past the object's own."""
    return "type" in globals_in(code) or any(owner == "dict" for owner, _ in attributes_in(code))
