"""Python modules that code names, also one within another, and what it reads off them."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

from graphaug.capture.recording.patches import behind
from graphaug.capture.recording.relied.classes import is_foreign
from graphaug.capture.recording.relied.code_names import (
    attributes_in,
    globals_in,
    imports_in,
    names_in,
    strings_in,
)
from graphaug.capture.recording.relied.reached import GONE

_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
Named = tuple[str, types.ModuleType, frozenset[str]]
"""How code spells a module, the module, and what it may read off it."""


def global_names(function: types.FunctionType) -> frozenset[str]:
    """The global variables that a function reads, those of ``globals()["name"]`` among them."""
    names = globals_in(function.__code__)
    return names | strings_in(function.__code__) if "globals" in names else names


def modules_of(function: types.FunctionType) -> list[Named]:
    """The modules of the user's, and of packages, that a function names, or imports while it runs."""
    return [named for named in _named(function) if not is_foreign(named[1].__name__)]


def of_torch(function: types.FunctionType) -> Iterator[tuple[str, dict[str, Any], str, Any]]:
    """The functions of torch that a function names by a module, ``F.gelu``: spelled, module's dict, name, function."""
    for spelled, module, _ in _named(function):
        if module.__name__.partition(".")[0] != "torch":
            continue
        held = vars(module)
        for name in sorted(_read_off(function, spelled) & held.keys()):
            if isinstance(there := behind(held[name]), _FUNCTIONS):
                yield f"{spelled}.{name}", held, name, there


def _named(function: types.FunctionType) -> list[Named]:
    """All modules that a function names by a variable or imports, and those that it reads off these."""
    code, scope = function.__code__, function.__globals__
    found: dict[str, Any] = {name: scope.get(name) for name in sorted(globals_in(code))}
    for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        found[variable] = content(cell)
    for name in sorted(imports_in(code)):
        inside = f"{scope.get('__package__') or ''}.{name}".strip(".")
        found[name] = sys.modules.get(name, sys.modules.get(inside))
        found.setdefault(name.partition(".")[0], sys.modules.get(name.partition(".")[0]))
    names = names_in(code) | strings_in(code)
    named = [(name, m, names) for name, m in found.items() if _is_followed(m)]
    seen = {id(m) for _, m, _ in named}
    for spelled, module, _ in named:  # grows on the way: ``torch.nn.functional``
        for name in sorted(_read_off(function, spelled) & vars(module).keys()):
            inner = vars(module)[name]
            if _is_followed(inner) and id(inner) not in seen:
                seen.add(id(inner))
                inner_spelled = f"{spelled}.{name}"
                named.append((inner_spelled, inner, _read_off(function, inner_spelled)))
    return named


def _is_followed(module: Any) -> bool:
    """Whether it is a module, and none of Python's own."""
    if not isinstance(module, types.ModuleType):
        return False
    return not is_foreign(module.__name__) or module.__name__.partition(".")[0] == "torch"


def _read_off(function: types.FunctionType, spelled: str) -> frozenset[str]:
    variable = spelled.rpartition(".")[2]
    return frozenset(name for owner, name in attributes_in(function.__code__) if owner == variable)


def content(cell: types.CellType) -> Any:
    """What a variable of a closure holds."""
    try:
        return cell.cell_contents
    except ValueError:
        return GONE
