"""Comparisons by ``is``: which of them may be of tensors, by the source, and of what they are, while the code runs."""

from __future__ import annotations

import ast
import dis
import functools
import linecache
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Comparison:
    """One ``a is b``.

    Attributes:
        sides: the variables among what is compared, ``x``, ``d["x"]`` or ``self.a.weight``: names, with the keys of
            entries and the names of attributes.
        made: whether a call makes some of it, as in ``x.contiguous() is x``.
    """

    sides: tuple[tuple[str, tuple[Any, ...]], ...]
    made: bool


@functools.lru_cache(4096)
def comparisons_in(code: types.CodeType) -> dict[types.CodeType, dict[int, Comparison]]:
    """The comparisons in code, and in functions that are written inside of it, by their place; without constants."""
    found: dict[types.CodeType, dict[int, Comparison]] = {}
    for step in dis.get_instructions(code):
        compared = _operands(code, step) if step.opname == "IS_OP" else None
        if compared is not None:
            found.setdefault(code, {})[step.offset] = compared
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= comparisons_in(constant)
    return found


def _operands(code: types.CodeType, step: dis.Instruction) -> Comparison | None:
    """What is compared, as the source has it; None if a constant is, or no variable."""
    place = step.positions
    if place is None or place.lineno is None or place.end_lineno is None:
        return None
    lines = linecache.getlines(code.co_filename)[place.lineno - 1 : place.end_lineno]
    try:  # columns are of bytes
        text = [line.encode() for line in lines]
        text[-1] = text[-1][: place.end_col_offset]
        text[0] = text[0][place.col_offset :]
        tree = ast.parse(b"(" + b"".join(text) + b")", mode="eval").body
    except (SyntaxError, IndexError):
        return None
    if not isinstance(tree, ast.Compare):
        return None
    operands = [tree.left, *tree.comparators]
    sides = tuple(side for side in map(_variable, operands) if side is not None)
    made = any(isinstance(inner, ast.Call) for o in operands for inner in ast.walk(o))
    constant = any(isinstance(o, ast.Constant) for o in operands)
    # two variables, or one and what a call makes
    return None if constant or len(sides) + made < 2 or not sides else Comparison(sides, made)


@dataclass(frozen=True)
class _Attribute:
    """Stands among keys for the name of an attribute."""

    name: str


def _variable(operand: ast.expr) -> tuple[str, tuple[Any, ...]] | None:
    """The name of a variable and the keys of an entry of it; None of anything else."""
    if isinstance(operand, ast.Name):
        return operand.id, ()
    if isinstance(operand, ast.Attribute):
        held = _variable(operand.value)
        return held and (held[0], (*held[1], _Attribute(operand.attr)))
    if isinstance(operand, ast.Subscript) and isinstance(operand.slice, ast.Constant):
        held = _variable(operand.value)
        return held and (held[0], (*held[1], operand.slice.value))
    return None


def _held(frame: types.FrameType, name: str, keys: tuple[Any, ...]) -> Any:
    """What a variable, or an entry of it, holds, without any code of the user's.

    Of tuples, lists and dicts, and of modules their children and tensors.
    """
    found = frame.f_locals.get(name, frame.f_globals.get(name))
    for key in keys:
        if isinstance(key, _Attribute):
            found = _of_module(found, key.name) if isinstance(found, nn.Module) else None
            continue
        kind: Any = next((k for k in (tuple, list, dict) if isinstance(found, k)), None)
        try:
            found = None if kind is None else kind.__getitem__(found, key)
        except (LookupError, TypeError):
            return None
    return found


def _of_module(m: nn.Module, name: str) -> Any:
    held = (m._parameters, m._buffers, m._modules, vars(m))
    return next((registry[name] for registry in held if name in registry), None)


class Comparisons:
    """A context in which comparisons of variables that hold tensors are told, before they are made.

    Args:
        functions: those that may be run.
        seen: gets the tensors, and whether one of what is compared was made by a call.
    """

    def __init__(
        self, functions: Iterable[types.FunctionType], seen: Callable[[list[Tensor], bool], None]
    ) -> None:
        self.places: dict[types.CodeType, dict[int, Comparison]] = {}
        for function in functions:
            self.places |= comparisons_in(function.__code__)
        self.seen = seen

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        if self.places:
            sys.settrace(self._called)

    def __exit__(self, *_: Any) -> None:
        if self.places:
            sys.settrace(self._before)

    def _called(self, frame: types.FrameType, event: str, value: Any) -> Any:
        if frame.f_code not in self.places:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._stepped

    def _stepped(self, frame: types.FrameType, event: str, value: Any) -> Any:
        compared = self.places[frame.f_code].get(frame.f_lasti) if event == "opcode" else None
        if compared is not None:
            held = [_held(frame, *side) for side in compared.sides]
            tensors = [v for v in held if isinstance(v, Tensor)]
            if len(tensors) == len(held):  # a tensor is never anything else
                self.seen(tensors, compared.made)
        return self._stepped
