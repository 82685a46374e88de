"""What opened code is told of sizes, dtypes and devices: arithmetic is recorded, and what it asks for is relied on."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from torch import Size, fx

from graphaug.capture.recording.checks import assert_number
from graphaug.capture.recording.nodes import Nodes
from graphaug.capture.recording.session import Session
from graphaug.capture.recording.values.handles import Handle, Text
from graphaug.capture.recording.values.numbers import Float, Int
from graphaug.capture.recording.values.structures import plain
from graphaug.capture.recording.values.tracked import DATA, Tracked, doubtful, is_tracked, is_unknown
from graphaug.capture.user_checks import check_asked
from graphaug.capture.values import UNKNOWN


class RecordedAnswers:
    """Makes tracked values, and answers what opened code asks of them.

    Args:
        session: tells whether opened code asks, and refuses what depends on data.
        nodes: the graph.
        lower: what a node holds for a value of opened code.
    """

    def __init__(self, session: Session, nodes: Nodes, lower: Callable[[Any], Any]) -> None:
        self.session, self.nodes, self._lower = session, nodes, lower

    def tracked(self, value: Any, make: Callable[[], fx.Node]) -> Any:
        """A number, dtype, device or size as opened code gets it; ``make`` is called when its node is needed."""
        if type(value) is bool:
            self.nodes.assume(make(), value)
            return value
        if isinstance(value, Size):
            return self.sizes(value, make)
        if value is DATA or isinstance(value, float):
            return Float(self, value, make)
        if isinstance(value, int):
            return Int(self, value, make)
        return Text(self, value, make) if isinstance(value, str) else Handle(self, value, make)

    def sizes(self, shape: Size, make: Callable[[], fx.Node]) -> Size:
        """A shape whose sizes are tracked."""

        def read(i: int) -> fx.Node:
            return self.nodes.once(operator.getitem, make(), i)

        sizes: list[Any] = [Int(self, n, functools.partial(read, i)) for i, n in enumerate(shape)]
        return Size(sizes)

    def derived(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Arithmetic on numbers."""
        data = any(is_tracked(a) and a._value is DATA for a in args)
        value = DATA if data else function(*map(plain, args))
        found = self.tracked(value, functools.partial(self._compute, function, args, value))
        return doubtful(found) if any(map(is_unknown, args)) else found

    def _compute(self, function: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        known = UNKNOWN if value is DATA else value
        return self.nodes.once(function, *map(self._lower, args), value=known)

    def answer(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Answer a comparison, which the graph then relies on."""
        if self.session.aside:
            return bool(function(*map(plain, args)))
        if any(map(is_unknown, args)):
            return self._checked(function, args)
        value = function(*map(plain, args))
        if isinstance(value, bool):
            self.nodes.assume(self._compute(function, args, value), value)
        return bool(value)

    def _checked(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """What a comparison of data has to be where it only tells whether to raise: the graph asserts it in every call.

        Raises:
            CaptureError: it may decide anything else.
        """
        check = check_asked(function)
        if check is None:
            first = next(a for a in args if is_unknown(a))
            raise self.session.depends(first._fx_node(), "branches on")
        # of a number that may be a bool, for which compilers have no comparison with 0
        truth = function is operator.ne and type(args[1]) is int and args[1] == 0
        held = args[0]._fx_node() if truth else self._compute(function, args, DATA)
        self.nodes.create("call_function", assert_number, (held, check.wanted, check.said), {})
        return check.wanted

    def ask(self, tracked: Tracked, verb: str) -> Any:
        """The value behind something tracked, which the graph then relies on."""
        value = tracked._value
        if self.session.aside:
            return value
        if is_unknown(tracked):
            raise self.session.depends(tracked._fx_node(), verb)
        self.nodes.assume(tracked._fx_node(), value)
        return value

    def attribute(self, tracked: Handle, name: str) -> Any:
        """Read an attribute of a dtype, a device or ``finfo``."""
        value = getattr(tracked._value, name)

        def make() -> fx.Node:
            return self.nodes.once(getattr, tracked._fx_node(), name, value=value)

        if isinstance(value, str):
            return Text(self, value, make)
        if isinstance(value, (bool, int, float)):
            return self.tracked(value, make)
        self.ask(tracked, "asks about")
        return value

    def type_info(self, function: Callable[..., Any], dtype: Handle) -> Any:
        """What ``torch.finfo`` or ``torch.iinfo`` says of a dtype, read in every call."""
        value = function(dtype._value)
        return Handle(self, value, lambda: self.nodes.once(function, dtype._fx_node(), value=value))
