"""Example values of a graph's nodes: what is known of them, how they are spelled, and that a call relies on them."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from graphaug.errors import AssumptionViolated


class _Unknown:
    def __repr__(self) -> str:
        return "unknown"

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unknown:
        return self


UNKNOWN: Any = _Unknown()
"""The value of a node that depends on data."""


UNSEEN = "array …"
"""Stands for the numbers of an array of NumPy's in compiled code, which cannot look at them."""


def value_of(node: fx.Node) -> Any:
    """The example value that capture found for ``node``, or ``UNKNOWN``."""
    return node.meta.get("value", UNKNOWN)


def assume(value: Any, expected: Any, what: str, guessed: str = "", line: str = "") -> None:
    """Raise ``AssumptionViolated`` unless a call sees the value that the capture relied on.

    Args:
        value: what this call has.
        expected: what the example had.
        what: the question, as the plan spells it.
        guessed: where the example comes from, if the user did not give it.
        line: where the forward asks, as a word in brackets after a space.
    """
    if _differs(value, expected) and not (isinstance(value, str) and UNSEEN in value):
        advice = taken_from(guessed) or " Call rewrite again with example_inputs like these."
        if what.startswith("torch."):  # of how torch is set, and of no input
            advice = " Call it as it was captured, or choose a site outside of the module that asks for this."
        elif what.startswith("trunc("):
            advice = (
                " Of int(…) a graph keeps the number alone: write math.floor(…) in its place, or n // 2 for "
                f"int(n / 2), which hold for every size.{advice}"
            )
        elif _IS_A_SIZE.search(what):
            advice = (
                " What is computed of a size holds for every size while Python makes no number of its own of it, as "
                f"float(…), range(…), math.sqrt(…) and look-ups in a dict or a cache do.{advice}"
            )
        found = (
            f"in this call {spelled(what, value)}" if _compares(what, value) else f"this call has {value!r}"
        )
        raise AssumptionViolated(
            f"this model was captured for {spelled(what, expected)}{line}, but {found}.{advice}"
        )


_IS_A_SIZE = re.compile(r"\.shape\[-?\d+\]$")
"""What ends so is a size as it is, and no comparison."""


def extended(made: Any, entries: Mapping[str, Any]) -> Any:
    """A mapping that a graph just made, with further entries behind those that it has."""
    for name, value in entries.items():
        made[name] = value
    return made


def _differs(value: Any, expected: Any) -> bool:
    """Whether a value is another. What compiled code finds of sizes is no truth that compares: it is asked for one."""
    if isinstance(value, (bool, torch.SymBool)) and isinstance(expected, bool):
        return not value if expected else bool(value)
    return bool(value != expected)


def spelled(what: str, expected: Any) -> str:
    """A fact in words: a comparison as it is, or denied; of anything else its value."""
    if not _compares(what, expected):
        return f"{what} == {expected!r}"
    if expected:
        return what
    signs = [word for word in what.split(" ") if word in _DENIED]
    return what.replace(f" {signs[0]} ", f" {_DENIED[signs[0]]} ") if len(signs) == 1 else f"not ({what})"


_DENIED = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
"""What a comparison of sizes says when it does not hold."""


def _compares(what: str, expected: Any) -> bool:
    return isinstance(expected, bool) and any(f" {sign} " in what for sign in _DENIED)


def taken_from(guessed: str) -> str:
    """What to say of examples that the user did not give, in an error of a call that they do not cover."""
    if not guessed:
        return ""
    return (
        f" No example_inputs were given, and those it was captured with are a guess ({guessed}): pass "
        "example_inputs= like this call's to rewrite."
    )


def describe(node: Any, deep: int = 3) -> str:
    """Spell a node as the expression it stands for, ``x.shape[2]``; of an assignment, to what and in which line.

    Operations on tensors are followed ``deep`` levels, then named: in a residual network an expression would double in
    length with every block.
    """
    if isinstance(node, slice):
        bounds = [describe(b, deep) if b is not None else "" for b in (node.start, node.stop, node.step)]
        return ":".join(bounds[:2] if node.step is None else bounds)
    if not isinstance(node, fx.Node):
        return repr(node)
    if node.op in ("placeholder", "get_attr", "call_module"):
        return str(node.target)
    if "in_structure" in node.meta:  # the mark of a site
        return describe(node.args[0], deep)
    value = value_of(node)
    if isinstance(value, torch.Tensor) or (value is UNKNOWN and node.target not in _LOOKUPS):
        if deep == 0:
            return str(node.name)
        deep -= 1
    args = [describe(a, deep) for a in node.args]
    if node.op == "call_function":
        if node.target is getattr:
            return f"{_in_brackets(node.args[0], args[0])}.{node.args[1]}"
        if node.target is operator.getitem:
            return f"{_in_brackets(node.args[0], args[0])}[{args[1]}]"
        if node.target is setattr:
            assigned = node.meta.get("assigned", f"{args[0]}.{node.args[1]}")
            return f"the assignment to {assigned}{node.meta.get('line', '')}"
        symbol = _INFIX.get(node.target)  # type: ignore[arg-type]
        if symbol and len(args) == 2:
            # the right one in parentheses at the same rank, too: 4 - (a - b)
            places = zip(args, node.args, (0, 1), strict=True)
            args = [f"({text})" if _rank(arg) < _rank(node) + i else text for text, arg, i in places]
            return f"{args[0]} {symbol} {args[1]}"
        return f"{getattr(node.target, '__name__', node.target)}({', '.join(args)})"
    if node.op == "call_method":
        return f"{_in_brackets(node.args[0], args[0])}.{node.target}({', '.join(args[1:])})"
    return str(node.target)


def _in_brackets(node: Any, spelled: str) -> str:
    """What is spelled with an operator, in brackets in front of a dot."""
    return f"({spelled})" if _rank(node) < 3 else spelled


def _rank(node: Any) -> int:
    """How tightly the operator binds that a node is written with: 3 if there is none."""
    is_call = isinstance(node, fx.Node) and node.op == "call_function" and len(node.args) == 2
    return _RANKS.get(_INFIX[node.target], 0) if is_call and node.target in _INFIX else 3


_RANKS = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2}
"""Of operators; those that compare have 0."""
_LOOKUPS = (getattr, operator.getitem)

_INFIX = {
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.mod: "%",
    operator.floordiv: "//",
    operator.truediv: "/",
}
