"""The number of rows as a symbol: fake tensors carry it in their sizes, and whoever asks for its value is noted."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import sympy
import torch

from graphaug.capture.user_code import is_internal
from graphaug.torch_private import ConstantSource, DimDynamic, ShapeEnv

PRIME = 1009
"""The number of rows that answers stand for; it divides no other size of a model."""


class RowCount(ShapeEnv):
    """An environment with one symbol. Answers are those for `PRIME` rows and bind nothing, so that none hides another.

    Attributes:
        symbol: the symbol.
        rows: the number of rows, as a size.
        asked: the first question of the user's own code whose answer depends on it, with the line.
        least: 2 if code asks whether there is more than one row, which the answers are for, else 1.
        fixed: whether a torch function took its value for a plain number.
        function: the function of torch that the code called and that runs, or an empty string.
    """

    def __init__(self) -> None:
        super().__init__(specialize_zero_one=False)
        self.asked = self.fixed = self.function = ""
        self.least = 1
        self._inside = self._kernels = 0
        self.symbol: sympy.Symbol | None = None
        source = ConstantSource("rows")
        symbol = self.create_symbol(PRIME, source, DimDynamic.DYNAMIC, do_not_specialize_zero_one=True)
        self.rows: Any = self.create_symintnode(symbol, hint=PRIME, source=source)
        self.symbol = symbol

    def evaluate_expr(self, orig_expr: Any, *args: Any, **kwargs: Any) -> Any:
        """Answer a question, and note who asks it."""
        answer = super().evaluate_expr(orig_expr, *args, **kwargs)
        depends = self.symbol is not None and self.symbol in getattr(orig_expr, "free_symbols", ())
        if depends and not self._kernels:
            asks = isinstance(answer, (bool, sympy.logic.boolalg.BooleanAtom))
            if not self._inside and self._is_about_one(orig_expr):
                self.least = 2
            elif not self._inside and not self.asked:
                question = str(orig_expr).replace(str(self.symbol), "rows")
                what = f"whether {question}" if asks else "for the number of rows"
                self.asked = f"{what}{_user_line()}"
            elif self._inside and not asks:
                self.fixed = self.fixed or _user_line() or " "
        return answer

    def _is_about_one(self, question: Any) -> bool:
        """Whether a question is whether there is more than one row."""
        one, two = sympy.Integer(1), sympy.Integer(2)
        kinds = (sympy.Eq(self.symbol, one), sympy.Ne(self.symbol, one), self.symbol > one, self.symbol < two)
        return question in kinds or question in (self.symbol <= one, self.symbol >= two)

    @contextlib.contextmanager
    def torch_function(self, name: str = "") -> Iterator[None]:
        """Within a function of torch: its questions are its own, but it may not fix the number."""
        outer, self.function = self.function, self.function or name
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self.function = outer

    @contextlib.contextmanager
    def kernel(self) -> Iterator[None]:
        """Within a kernel: its rule holds for every number of rows."""
        self._kernels += 1
        try:
            yield
        finally:
            self._kernels -= 1

    def depends(self, value: Any) -> bool:
        """Whether a number depends on the number of rows."""
        symbolic = isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
        return symbolic and self.symbol in value.node.expr.free_symbols


def _user_line() -> str:
    """The innermost line outside of torch and this library."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if frame.f_code.co_name == "__call__" and "samples" in name:
            return ""  # of opened code there is the graph; what lies further out is no model's
        if not is_internal(name):
            return f" ({name.rpartition('/')[2]} line {frame.f_lineno})"
        frame = frame.f_back
    return ""
