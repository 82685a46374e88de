"""Conditions in the user's code that only lead to an error: ``assert x``, ``if x: raise``, ``torch._check(x)``."""

from __future__ import annotations

import ast
import dis
import functools
import linecache
import types
from collections.abc import Iterator
from dataclasses import dataclass

from graphaug.capture.user_code import ASSERTIONS, statements_of, users_frame

_TESTS = ("POP_JUMP", "JUMP_IF", "TO_BOOL", "UNARY_NOT", "COMPARE_OP")
"""How the names of instructions begin that ask a value itself whether it is true; a call asks what it is given."""
_Place = tuple[int | None, int | None, int | None, int | None]
"""First and last line, first and last column, as code objects and syntax trees have them."""


@dataclass(frozen=True)
class Check:
    """A condition, or a part of one.

    Attributes:
        wanted: what it has to be for the code to go on.
        said: what the error says, as far as that is no data.
    """

    wanted: bool
    said: str


def only_checks() -> bool:
    """Whether what the user's code asks decides no more than whether it raises, on the line that runs."""
    frame = users_frame()
    if frame is None:
        return False
    return any(first <= frame.f_lineno <= last for first, last in _conditions(_source(frame)).lines)


def check_asked() -> Check | None:
    """The check whose condition the user's code asks right now; None if what it asks may decide anything else.

    The instruction that runs is the test of the condition itself, or of a part of it that alone tells whether to raise:
    of ``assert a and not b`` the ``a``, of which the check wants that it is true, or the ``b``, which must not be.
    """
    frame = users_frame()
    places = () if frame is None else _places_of_a_test(frame.f_code, frame.f_lasti)
    if frame is None or not places:
        return None
    known = _conditions(_source(frame)).by_place
    check = next((known[place] for place in places if place in known), None)
    if check is None:
        return None
    where = f" ({frame.f_code.co_filename.rpartition('/')[2]} line {frame.f_lineno})"
    return Check(check.wanted, check.said + where)


@functools.lru_cache(4096)
def _places_of_a_test(code: types.CodeType, offset: int) -> tuple[_Place, ...]:
    """Where an instruction stands that asks whether a value is true, and the one that made the value; else nothing.

    Python 3.11 has jumps at the place of the whole statement, of which they ask one part alone.
    """
    steps = list(dis.get_instructions(code))
    index = next((i for i, step in enumerate(steps) if step.offset == offset), 0)
    if not steps[index].opname.startswith(_TESTS):
        return ()
    found = (step.positions for step in (steps[index - 1], steps[index]))
    return tuple(
        (at.lineno, at.end_lineno, at.col_offset, at.end_col_offset) for at in found if at is not None
    )


def _source(frame: types.FrameType) -> str:
    return "".join(linecache.getlines(frame.f_code.co_filename))


@dataclass(frozen=True)
class _Conditions:
    """The checks of a file: the lines of their conditions, and each part of one by its place."""

    lines: tuple[tuple[int, int], ...]
    by_place: dict[_Place, Check]


@functools.lru_cache(256)
def _conditions(source: str) -> _Conditions:
    lines, by_place = list[tuple[int, int]](), dict[_Place, Check]()
    caught = _caught_in(source)
    for statement in statements_of(source):
        found = _check_of(statement)
        if found is None:
            continue
        test, wanted, said = found
        if not isinstance(statement, ast.Expr):
            lines.append((test.lineno, test.end_lineno or test.lineno))
        if id(statement) in caught:  # its error is no end
            continue
        by_place |= {_place(part): Check(truth, said) for part, truth in _parts(test, wanted)}
    return _Conditions(tuple(lines), by_place)


def _caught_in(source: str) -> set[int]:
    """The statements whose errors the same function may catch."""
    tried = (node for node in statements_of(source) if isinstance(node, ast.Try) and node.handlers)
    return {id(inner) for node in tried for statement in node.body for inner in ast.walk(statement)}


def _check_of(statement: ast.AST) -> tuple[ast.expr, bool, str] | None:
    """The condition of a check, whether it has to hold, and what its error says."""
    if isinstance(statement, ast.Assert):
        return statement.test, True, _said("AssertionError", statement.msg)
    if isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Raise):
        error = statement.body[-1].exc
        if isinstance(error, ast.Call):
            return statement.test, False, _said(ast.unparse(error.func), *error.args[:1])
        return statement.test, False, _said("an error" if error is None else ast.unparse(error))
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and statement.value.args:
        call = statement.value
        if ast.unparse(call.func) in ASSERTIONS:
            return call.args[0], True, _said(ast.unparse(call.func), *call.args[1:2])
    return None


def _said(kind: str, text: ast.expr | None = None) -> str:
    plain = isinstance(text, ast.Constant) and isinstance(text.value, str)
    return f"{kind}: {text.value if plain else 'a check of the data failed'}"  # type: ignore[union-attr]


def _parts(test: ast.expr, wanted: bool) -> Iterator[tuple[ast.expr, bool]]:
    """The parts of a condition that tell whether to raise once they are asked, and what each has to be."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _parts(test.operand, not wanted)
    elif isinstance(test, ast.BoolOp):
        together = (
            isinstance(test.op, ast.And) is wanted
        )  # all have to be what the whole has to be, else one of them
        for part in (
            test.values if together else test.values[-1:]
        ):  # which is the last, if those before were not
            yield from _parts(part, wanted)
    else:
        yield test, wanted


def _place(node: ast.AST) -> _Place:
    at: ast.expr = node  # type: ignore[assignment]
    return at.lineno, at.end_lineno, at.col_offset, at.end_col_offset
