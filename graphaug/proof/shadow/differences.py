"""The first difference between the records of a model and of its graph, in words."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.capture.state import is_configuration
from graphaug.errors import CaptureError
from graphaug.proof.shadow.records import Entry, Record, Result, live, renumbered


@dataclass(frozen=True)
class Difference:
    """What differs, and where in the user's code; ``attribute`` names what was left changed, if that is it."""

    what: str
    line: str = ""
    attribute: str = ""


def first_difference(
    expected: Sequence[Record], found: Sequence[Record], model: nn.Module, closed: Iterable[str] = ()
) -> Difference | None:
    """Compare the records of consecutive calls: of a model, and of its graph; ``closed`` are paths of modules."""
    inside = tuple(f"{path}." for path in closed)
    holders = _with_notes(model)
    for number, (a, b) in enumerate(zip(expected, found, strict=True)):
        plain = {name for name in _settled(expected, number) if not name.startswith(inside)}
        settled = {name for name in plain if _may_stay_unset(name, a.left[name], holders)}
        difference = _operations(a, b) or _left(a, b, settled) or _values(a, b)
        if difference is not None:
            return difference
    return None


def _operations(a: Record, b: Record) -> Difference | None:
    mine, theirs = live(a), live(b)
    left = {number: place for place, number in enumerate(mine)}
    right = {number: place for place, number in enumerate(theirs)}
    for i, j in zip(mine, theirs, strict=False):
        first, second = a.entries[i], b.entries[j]
        if first.name != second.name:
            return Difference(f"{_name(first)} in the model is {_name(second)} in the graph", first.line)
        if first.modes != second.modes:
            return Difference(f"{_name(first)} runs {_modes(first, second)}", first.line)
        if renumbered(first.args, left) != renumbered(second.args, right):
            what = _argument(a, renumbered(first.args, left), renumbered(second.args, right), mine)
            return Difference(f"{_name(first)} takes {what}", first.line)
    if len(mine) > len(theirs):
        entry = a.entries[mine[len(theirs)]]
        return Difference(f"{_name(entry)} is missing from the graph", entry.line)
    if len(theirs) > len(mine):
        entry = b.entries[theirs[len(mine)]]
        return Difference(f"{_name(entry)} is in the graph, and not in the model", entry.line)
    if renumbered(a.output, left) != renumbered(b.output, right):
        what = _argument(a, renumbered(a.output, left), renumbered(b.output, right), mine)
        return Difference(f"the output is {what}")
    return None


def _left(a: Record, b: Record, settled: set[str]) -> Difference | None:
    """What only one of them leaves changed, or to another value."""
    mine = {number: place for place, number in enumerate(live(a))}
    theirs = {number: place for place, number in enumerate(live(b))}
    for name in dict.fromkeys([*a.left, *b.left]):
        if name in settled and name not in b.left:
            continue
        if name not in a.left:
            return Difference(f"the graph changes {name}, and the model does not", attribute=name)
        if name not in b.left:
            return Difference(f"the model changes '{name}', and the graph does not", attribute=name)
        if renumbered(a.left[name], mine) != renumbered(b.left[name], theirs):
            return Difference(
                f"'{name}' has another value after a call of the graph than of the model", attribute=name
            )
    return None


def _may_stay_unset(name: str, token: Any, holders: set[str]) -> bool:
    """Whether what every call sets to the same is a note of a module's, or a table that is made once and kept anywhere.

    What else the forward reaches, an object, a dict, a class, a global, is shared with the user.
    """
    is_table = isinstance(token, tuple) and token[:1] == ("value",)
    holder, _, key = name.rpartition(".")
    return is_table or (holder in holders and key.isidentifier())


def _with_notes(model: nn.Module) -> set[str]:
    """Paths of the modules and of their configurations, on which opened code may leave notes."""
    found = set()
    for path, module in model.named_modules():
        found.add(path)
        found |= {f"{path}.{k}".removeprefix(".") for k, v in vars(module).items() if is_configuration(v)}
    return found


def _settled(records: Sequence[Record], number: int) -> set[str]:
    """Plain attributes that every call sets to the same: a note of the last size, no state that goes on.

    Those of closed modules are none: their code may read what is set.
    """
    now = records[number].left
    return {
        name
        for name, value in now.items()
        if "generator" not in name
        and "caller" not in name
        and "deleted" not in name
        and _is_plain(value)
        and all(record.left.get(name, value) == value for record in records)
    }


def _is_plain(token: Any) -> bool:
    if isinstance(token, tuple):
        return all(map(_is_plain, token))
    return token is None or isinstance(token, (str, int, torch.dtype, torch.device))


def _values(a: Record, b: Record) -> Difference | None:
    for first, second in zip(a.values, b.values, strict=True):
        if not _equal(first, second):
            return Difference("an output has another value")
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.layout is not torch.strided or a.is_meta:
        return True
    return bool(
        torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) if a.is_floating_point() else torch.equal(a, b)
    )


def _name(entry: Entry) -> str:
    return entry.name if " " in entry.name else f"'{entry.name.removeprefix('aten.').partition('.')[0]}'"


def _modes(first: Entry, second: Entry) -> str:
    for (kind, *mine), (_, *theirs) in zip(first.modes, second.modes, strict=True):
        if mine != theirs:
            if any(mine) and any(theirs):
                return f"in one kind of {kind} in the model, and in another in the graph"
            on, off = ("with", "without") if any(mine) else ("without", "with")
            return f"{on} {kind} in the model, and {off} in the graph"
    return ""


def _argument(record: Record, first: Any, second: Any, order: Sequence[int]) -> str:
    """The first argument that differs, of the model and of the graph."""
    inside = [isinstance(t, tuple) and not _is_origin(t) for t in (first, second)]
    if all(inside):
        for mine, theirs in zip(first, second, strict=False):
            if mine != theirs and len(first) == len(second):
                return _argument(record, mine, theirs, order)
        return "other arguments in the model than in the graph"
    mine, theirs = _spelled(record, first, order), _spelled(record, second, order)
    return f"{mine} in the model, and {'another' if mine == theirs else theirs} in the graph"


def _is_origin(token: tuple[Any, ...]) -> bool:
    return bool(token) and token[0] in (
        "named",
        "value",
        "view",
        "number",
        "training",
        "int",
        "float",
        "bool",
        "complex",
    )


def _spelled(record: Record, token: Any, order: Sequence[int]) -> str:
    if isinstance(token, Result):
        known = 0 <= token.entry < len(order)
        return f"the result of {_name(record.entries[order[token.entry]])}" if known else "another result"
    if isinstance(token, tuple) and token:
        if token[0] == "named":
            return f"'{token[1]}'"
        if token[0] in ("value", "number"):
            return (
                f"a tensor of plain numbers of shape {tuple(token[2])}" if token[0] == "value" else "a tensor"
            )
        if token[0] in ("int", "float", "bool", "complex"):
            return str(token[1])
        if token[0] == "training":
            return f"training={token[1]}"
    return str(token)[:80]


def refusal_of(model: nn.Module, name: str, where: str, difference: Difference) -> CaptureError:
    """The refusal of a graph that differs from its model, with the line and a way on.

    Args:
        model: the original.
        name: its class, for the message.
        where: what both ran on, or in which mode: "on the example", "in eval mode".
        difference: what they differ in.
    """
    line, way = difference.line, "Choose a site that opens fewer modules, and please report the model."
    if difference.attribute:
        line = _line_that_sets(model, difference.attribute)
        way = (
            "If it makes it once, run the model once before; else keep it in a buffer (register_buffer), or choose a "
            "site that opens fewer modules."
        )
    elif _calls_otherwise(model):
        way = (
            f"{name} has a __call__ of its own, and a graph has only what forward does: move the rest into forward, or "
            "rewrite a module that holds this one."
        )
    return CaptureError(
        f"the captured {name} differs from the original {where}: {difference.what}{line}. Its forward does something "
        f"that a graph does not keep. {way}"
    )


def _calls_otherwise(model: nn.Module) -> bool:
    """Whether a call of a model is more than `nn.Module` makes of it; a GraphModule's only tells where it failed."""
    return type(model).__call__ is not nn.Module.__call__ and not isinstance(model, fx.GraphModule)


def _line_that_sets(model: nn.Module, attribute: str) -> str:
    """Where the code of a model sets an attribute, as far as its source tells."""
    path, _, name = attribute.partition(" ")[0].rpartition(".")
    owners = [m for p, m in model.named_modules() if p == path] or [model]
    for owner in owners:
        for cls in type(owner).__mro__:
            for function in vars(cls).values():
                if cls is nn.Module or not inspect.isfunction(function) or function.__name__ == "__init__":
                    continue
                with contextlib.suppress(OSError, TypeError):
                    lines, first = inspect.getsourcelines(function)
                    for i, line in enumerate(lines):
                        if (f".{name}" in line and "=" in line) or f".{name}." in line or f"'{name}'" in line:
                            file = function.__code__.co_filename.rpartition("/")[2]
                            return f" ({file} line {first + i})"
    return ""
