"""Conditions in the user's code that only lead to an error: ``assert x``, ``if x: raise``, ``torch._check(x)``."""

from __future__ import annotations

import ast
import dis
import functools
import linecache
import operator
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from graphaug.capture.user_code import ASSERTIONS, is_internal, statements_of, users_frame

_TESTS = ("POP_JUMP", "JUMP_IF", "TO_BOOL", "UNARY_NOT", "COMPARE_OP")
"""How the names of instructions begin that ask a value itself whether it is true; a call asks what it is given."""
_OPERATORS: dict[type[ast.cmpop], Callable[..., Any]] = {
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt},
    **{ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge},
}
_Place = tuple[int | None, int | None, int | None, int | None]
"""First and last line, first and last column, as code objects and syntax trees have them."""
_FORWARDS: set[types.CodeType] = set()
"""The code that calls a model's forward for a capture or a comparison: what is around it is none of the forward's."""
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Check:
    """A condition, or a part of one.

    Attributes:
        wanted: what it has to be for the code to go on.
        said: what the error says, as far as that is no data.
        compares: the comparisons that a number may be asked by it; None for any.
    """

    wanted: bool
    said: str
    compares: tuple[Callable[..., Any], ...] | None = None


def begins_a_forward(function: _Function) -> _Function:
    """Mark a function of ours that calls a model's forward."""
    _FORWARDS.add(function.__code__)
    return function


def only_checks() -> bool:
    """Whether what the user's code asks decides no more than whether it raises, on the line that runs."""
    frame = users_frame()
    if frame is None:
        return False
    return any(first <= frame.f_lineno <= last for first, last in _conditions(_source(frame)).lines)


def check_asked(comparison: Callable[..., Any] | None = None) -> Check | None:
    """The check whose condition the user's code asks right now; None if what it asks may decide anything else.

    The instruction that runs is the test of the condition itself, or of a part of it that alone tells whether to raise:
    of ``assert a and not b`` the ``a``, of which the check wants that it is true, or the ``b``, which must not be.
    No function of the forward that is running may catch the error.

    Args:
        comparison: of two numbers, if that is what is asked: that of two tuples asks others of their entries.
    """
    frame = users_frame()
    places = () if frame is None else _places_of_a_test(frame.f_code, frame.f_lasti)
    if frame is None or not places:
        return None
    known = _conditions(_source(frame)).by_place
    check = next((known[place] for place in places if place in known), None)
    if check is None or _is_caught(frame):
        return None
    if comparison is not None and check.compares is not None and comparison not in check.compares:
        return None
    where = f" ({frame.f_code.co_filename.rpartition('/')[2]} line {frame.f_lineno})"
    return Check(check.wanted, check.said + where)


def _is_caught(frame: types.FrameType | None) -> bool:
    """Whether one of the running functions, up to the forward of the model, may catch an error."""
    while frame is not None and frame.f_code not in _FORWARDS:
        name = frame.f_code.co_name
        if name.startswith("__") and name not in ("__call__", "__init__", "__post_init__"):
            return True  # Python asks: an iteration ends by StopIteration, a missing name by AttributeError
        if not is_internal(frame.f_code.co_filename):
            caught = _conditions(_source(frame)).caught
            if any(first <= frame.f_lineno <= last for first, last in caught):
                return True
        frame = frame.f_back
    return False


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
    """The checks of a file: the lines of their conditions, each part of one by its place, and lines that may catch."""

    lines: tuple[tuple[int, int], ...]
    by_place: dict[_Place, Check]
    caught: tuple[tuple[int, int], ...]


@functools.lru_cache(256)
def _conditions(source: str) -> _Conditions:
    lines, by_place = list[tuple[int, int]](), dict[_Place, Check]()
    statements = statements_of(source)
    for statement in statements:
        found = _check_of(statement)
        if found is None:
            continue
        test, wanted, said = found
        if not isinstance(statement, ast.Expr):
            lines.append((test.lineno, test.end_lineno or test.lineno))
        by_place |= {
            _place(part): Check(truth, said, _comparisons(part)) for part, truth in _parts(test, wanted)
        }
    return _Conditions(tuple(lines), by_place, tuple(_caught(statements)))


def _caught(statements: Sequence[ast.AST]) -> Iterator[tuple[int, int]]:
    """The lines whose errors something around them may catch: ``try``, and contexts that say so by their name."""
    for node in statements:
        body: list[ast.stmt] = []
        if isinstance(node, (ast.Try, ast.TryStar)) and (node.handlers or _leaves(node.finalbody)):
            body = node.body
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            told = " ".join(ast.unparse(item.context_expr) for item in node.items).lower()
            body = node.body if any(word in told for word in ("suppress", "raises", "ignore")) else []
        if body:
            yield body[0].lineno, body[-1].end_lineno or body[-1].lineno


def _leaves(body: list[ast.stmt]) -> bool:
    """Whether statements may leave before their end, but by an error."""
    return any(isinstance(n, (ast.Return, ast.Break, ast.Continue)) for s in body for n in ast.walk(s))


def _check_of(statement: ast.AST) -> tuple[ast.expr, bool, str] | None:
    """The condition of a check, whether it has to hold, and what its error says."""
    if isinstance(statement, ast.Assert):
        return statement.test, True, _said("AssertionError", statement.msg)
    if (
        isinstance(statement, ast.If)
        and isinstance(statement.body[-1], ast.Raise)
        and not _leaves(statement.body)
    ):
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
    elif wanted or not (
        isinstance(test, ast.Compare) and len(test.ops) > 1
    ):  # of a chain each holds, or one does not
        yield test, wanted


def _comparisons(part: ast.expr) -> tuple[Callable[..., Any], ...] | None:
    """The comparisons that a part of a condition asks of numbers; containers ask others of their entries."""
    if not isinstance(part, ast.Compare):
        return None
    if any(isinstance(side, (ast.Tuple, ast.List)) for side in (part.left, *part.comparators)):
        return ()
    if len(part.ops) > 1:
        return None
    return tuple(_OPERATORS[kind] for kind in map(type, part.ops) if kind in _OPERATORS)


def _place(node: ast.AST) -> _Place:
    at: ast.expr = node  # type: ignore[assignment]
    return at.lineno, at.end_lineno, at.col_offset, at.end_col_offset
