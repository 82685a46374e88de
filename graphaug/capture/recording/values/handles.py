"""Dtypes, devices and the types of devices, as opened code reads them off its tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from graphaug.capture.recording.values.tracked import Answers, Tracked


class Text(Tracked, str):
    """The type of a device, as a string whose comparisons are recorded."""

    def __new__(cls, answers: Answers, value: str, make: Callable[[], fx.Node]) -> Text:
        """Make one."""
        self = str.__new__(cls, value)
        self._set(answers, value, make)
        return self

    def __eq__(self, other: object) -> bool:
        return bool(isinstance(other, str) and self._answers.answer(operator.eq, (self, str.__str__(other))))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._ask())


def _of_the_value(name: str) -> Callable[..., Any]:
    def method(self: Text, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._ask(), name)(*args, **kwargs)

    return method


for _name in vars(str).keys() - vars(Text).keys() - {"__new__", "__doc__", "__getattribute__"}:
    setattr(Text, _name, _of_the_value(_name))


class Handle(Tracked):
    """A dtype, a device, or what ``torch.finfo`` says of a dtype."""

    def __init__(self, answers: Answers, value: Any, make: Callable[[], fx.Node]) -> None:
        self._set(answers, value, make)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._value)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What makes torch's argument parser accept it; the recorder's mode sees the call first."""
        return NotImplemented

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._answers.attribute(self, name)

    def __eq__(self, other: object) -> bool:
        return bool(self._answers.answer(operator.eq, (self, other)))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._ask("looks up"))

    def __repr__(self) -> str:
        return repr(self._ask("prints"))

    def __str__(self) -> str:
        return str(self._ask("prints"))

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self
