"""Python modules that code names, also one within another, and what it reads off them."""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from graphaug.capture.recording.relied.asked_names import (
    asked_attributes_in,
    asked_modules_in,
    imports_in,
    strings_in,
)
from graphaug.capture.recording.relied.classes import is_foreign
from graphaug.capture.recording.relied.code_names import attributes_in, globals_in, names_in
from graphaug.capture.recording.relied.reached import GONE

FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, np.ufunc, type(np.concatenate))
_TELLS = {"print"}
"""Builtin functions that compute nothing, and that loops of several processes exchange for silent ones."""
Named = tuple[str, types.ModuleType, frozenset[str]]
"""How code spells a module, the module, and what it may read off it."""


def global_names(function: types.FunctionType) -> frozenset[str]:
    """The global variables that a function reads, those of ``globals()["name"]`` among them."""
    names = globals_in(function.__code__)
    return names | strings_in(function.__code__) if "globals" in names else names


def named_by(function: types.FunctionType) -> list[Named]:
    """All modules that a function names by a variable or imports while it runs, and those that it reads off these."""
    code, scope = function.__code__, function.__globals__
    found: dict[str, Any] = {name: scope.get(name) for name in sorted(globals_in(code))}
    for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        found[variable] = content(cell)
    for name in sorted(imports_in(code)):
        inside = f"{scope.get('__package__') or ''}.{name}".strip(".")
        found[name] = sys.modules.get(name, sys.modules.get(inside))
        found.setdefault(name.partition(".")[0], sys.modules.get(name.partition(".")[0]))
    names = names_in(code) | strings_in(code)
    named = [(name, m, names) for name, m in found.items() if isinstance(m, types.ModuleType)]
    seen = {id(m) for _, m, _ in named}
    for spelled, module, _ in named:  # grows on the way: ``torch.nn.functional``
        for name in sorted(_read_off(function, spelled) & vars(module).keys()):
            inner = vars(module)[name]
            if isinstance(inner, types.ModuleType) and id(inner) not in seen:
                seen.add(id(inner))
                inner_spelled = f"{spelled}.{name}"
                named.append((inner_spelled, inner, _read_off(function, inner_spelled)))
    return named


def of_users(named: Iterable[Named]) -> Iterator[Named]:
    """Those of the user's, and of packages."""
    return (one for one in named if not is_foreign(one[1].__name__))


def read_off_others(
    function: types.FunctionType, named: Iterable[Named]
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """What a function reads off modules of torch, NumPy and Python, ``F.gelu``, and of what is built in.

    Each with how it is spelled, the dict of its module, and its name there.
    """
    for spelled, module, _ in named:
        held = vars(module)
        for name in sorted(_read_off(function, spelled) & held.keys()) if is_foreign(module.__name__) else ():
            yield f"{spelled}.{name}", held, name
    held = vars(builtins)
    for name in sorted(global_names(function) & held.keys() - function.__globals__.keys() - _TELLS):
        yield f"the builtin {name!r}", held, name


def missing_on(
    function: types.FunctionType, named: Iterable[Named]
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """What a function asks modules for by a string, and what is not there: ``getattr(settings, "gain", 1.0)``."""
    asked = asked_attributes_in(function.__code__)
    for spelled, module, _ in named if asked else ():
        for owner, name in sorted(asked):
            if owner == spelled.rpartition(".")[2] and getattr(module, name, GONE) is GONE:
                yield f"{spelled}.{name}", vars(module), name


def asked_modules(function: types.FunctionType) -> set[str | None]:
    """The modules that a function asks ``sys.modules`` for, there or not; None if it computes a name."""
    scope = function.__globals__
    return {
        name
        for owner, name in asked_modules_in(function.__code__)
        if owner == "sys" or scope.get(owner) is sys or (not owner and scope.get("modules") is sys.modules)
    }


def _read_off(function: types.FunctionType, spelled: str) -> frozenset[str]:
    variable, code = spelled.rpartition(".")[2], function.__code__
    pairs = attributes_in(code) | asked_attributes_in(code)
    return frozenset(name for owner, name in pairs if owner == variable)


def content(cell: types.CellType) -> Any:
    """What a variable of a closure holds."""
    try:
        return cell.cell_contents
    except ValueError:
        return GONE
