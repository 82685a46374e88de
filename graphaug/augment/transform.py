"""What is done to the augmented rows: the protocol of a transform, and what every transform shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from graphaug.errors import BatchError, InvalidOption, did_you_mean


@dataclass(frozen=True)
class Needs:
    """What a transform needs besides the row that it changes; whoever calls it has to provide for it.

    A transform that needs none of it changes each row by itself, so it may as well be given all rows of a batch and its
    result used for some. One whose ``rows_meet`` has to be given the augmented rows and no others.

    Attributes:
        partners: a row's result holds values of other rows.
        statistics: a row's result depends on what was measured over several rows.
        gradient: the gradient of a row's result reaches other rows.
        labels: ``Context.labels`` must be given.
        source: ``Context.source`` must be given.
        new_tokens: the result has another number of tokens, so all rows of a batch have to go through it, and what
            belongs to the tokens (masks, positions) has to follow.
    """

    partners: bool = False
    statistics: bool = False
    gradient: bool = False
    labels: bool = False
    source: bool = False
    new_tokens: bool = False

    @property
    def rows_meet(self) -> bool:
        """Whether a row's result depends on other rows."""
        return self.partners or self.statistics


class Context(NamedTuple):
    """What is known around the rows when a transform draws.

    Attributes:
        generator: of the random numbers; torch's own of the rows' device if None.
        labels: the class of each row, integers of shape (n,).
        mask: which tokens of each row are real, not padding: booleans or 0 and 1, of shape (n, T).
        source: the activation of another input, with as many rows, or one row.
        batch: the whole batch at the site, of which the rows are a part; what is measured is measured on it.
    """

    generator: Generator | None = None
    labels: Tensor | None = None
    mask: Tensor | None = None
    source: Tensor | None = None
    batch: Tensor | None = None


PLAIN = Context()


@dataclass(frozen=True)
class Domain:
    """Where a number may lie: from ``low`` to ``high``, ``low`` itself excluded if ``above``."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __str__(self) -> str:
        left = "(" if self.above or self.low == -math.inf else "["
        return f"{left}{self.low:g}, {self.high:g}{')' if self.high == math.inf else ']'}"

    def check(self, name: str, value: object) -> float:
        """Return the value as a float.

        Raises:
            InvalidOption: it is no number, not finite, or outside the domain.
        """
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidOption(f"{name}={value!r} is no number: give one in {self}.")
        inside = self.low < value if self.above else self.low <= value
        if not (math.isfinite(value) and inside and value <= self.high):
            raise InvalidOption(f"{name}={value!r} is outside {self}.")
        return float(value)


SHARE = Domain(0, 1)


class Transform(nn.Module):
    """A change of the augmented rows, its random numbers drawn apart from it.

    A subclass has two methods, and says in ``needs`` what it asks of the rest:

    - ``draw(rows, context)`` returns all that is random in one forward, or that was measured or handed in: a
      tensor or a tuple of tensors, or None. The loss can read it after the forward.
    - ``forward(rows, draws)`` computes the result, of the same shape, from nothing else. Rows have shape (n, …), of a
      floating-point type; ``draws`` is what ``draw`` returned for them.

    Numbers that may change while training are added by ``add_number``. They live in non-persistent buffers:
    changing them recompiles nothing, and the state_dict of a model around stays as it was. A transform is always
    active: that a model in eval mode is left alone is for the site to see to.

    Example:
        >>> class Shift(Transform):
        ...     def __init__(self, width: float = 1.0) -> None:
        ...         super().__init__()
        ...         self.add_number("width", width, Domain(low=0))
        ...     def draw(self, rows, context=PLAIN):
        ...         return torch.rand(len(rows), 1, generator=context.generator)
        ...     def forward(self, rows, draws):
        ...         return rows + draws * self.width.to(rows.dtype)
        >>> shift, rows = Shift(), torch.zeros(2, 3)
        >>> shift.set(width=0.0)
        >>> shift(rows, shift.draw(rows))
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """

    needs: Needs = Needs()
    shown: tuple[str, ...] = ()
    """Names of the options that the repr shows beside the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._domains: dict[str, Domain] = {}
        self._numbers: dict[str, float] = {}

    def add_number(self, name: str, value: float, domain: Domain) -> None:
        """Keep a number as the buffer ``name``, float64 of shape (1,), to be changed by ``set``.

        Raises:
            InvalidOption: it is outside its domain.
        """
        self._numbers[name] = domain.check(name, value)
        self._domains[name] = domain
        # one entry, not none: Dynamo takes a float64 scalar on the CPU for a Python number
        self.register_buffer(name, torch.tensor([self._numbers[name]], dtype=torch.float64), persistent=False)

    def set(self, **numbers: float) -> None:
        """Change numbers in place; nothing is recompiled. All are checked before one is changed.

        Raises:
            InvalidOption: a name that the transform has not, or a value outside its domain.
        """
        for name in numbers:
            if name not in self._domains:
                raise InvalidOption(
                    f"{type(self).__name__} has no number {name!r}.{did_you_mean(name, self._domains)} "
                    f"It has {', '.join(self._domains) or 'none'}."
                )
        checked = {name: self._domains[name].check(name, value) for name, value in numbers.items()}
        for name, value in checked.items():
            self._numbers[name] = value
            self.get_buffer(name).fill_(value)

    def draw(self, rows: Tensor, context: Context = PLAIN) -> Any:
        """Draw what one forward of these rows needs; here nothing."""
        return None

    def forward(self, rows: Tensor, draws: Any) -> Tensor:
        """Change rows of shape (n, …) by what was drawn for them."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(rows, draws).")

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Transform:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # .half() and .to(bfloat16) round every floating buffer, to_empty() forgets it
        for name, value in self._numbers.items():
            device = self.get_buffer(name).device
            setattr(self, name, torch.tensor([value], dtype=finest(device), device=device))
        return self

    def extra_repr(self) -> str:
        """Show the numbers and options."""
        options = [f"{name}={getattr(self, name)!r}" for name in self.shown]
        return ", ".join([*(f"{name}={value:g}" for name, value in self._numbers.items()), *options])


class Call(Transform):
    """Any module or callable ``fn(rows) -> rows`` as a transform.

    Nothing is known of it, so it is taken to let rows meet, with their gradients. What it draws it draws inside.

    Raises:
        InvalidOption: it cannot be called.
        BatchError: in a forward, if it returns something else than a tensor of the rows' shape and type.

    Example:
        >>> double = Call(lambda rows: rows * 2)
        >>> double(torch.ones(2, 2), double.draw(torch.ones(2, 2)))
        tensor([[2., 2.],
                [2., 2.]])
    """

    needs = Needs(partners=True, statistics=True, gradient=True)
    shown = ("fn",)

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(fn):
            raise InvalidOption(f"{fn!r} is no transform: give a module or a function of the rows.")
        self.fn = fn

    def forward(self, rows: Tensor, draws: Any = None) -> Tensor:
        """Call it on the rows."""
        out = self.fn(rows)
        if not isinstance(out, Tensor) or out.shape != rows.shape or out.dtype != rows.dtype:
            given = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise BatchError(
                f"{self.fn!r} made {given} of rows {rows.dtype} {tuple(rows.shape)}: keep shape and type."
            )
        return out


def check_choice(name: str, value: object, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of the option's spellings.

    Raises:
        InvalidOption: it is not; the message names the nearest one.
    """
    names = list(known)
    if not isinstance(value, str) or value not in names:
        hint = did_you_mean(str(value), names)
        raise InvalidOption(f"{name}={value!r} is unknown.{hint} Known: {', '.join(map(repr, names))}.")
    return value


def check_count(name: str, value: object, least: int) -> int:
    """Return ``value`` if it is a whole number of at least ``least``.

    Raises:
        InvalidOption: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"{name}={value!r}: give a whole number of at least {least}.")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False.

    Raises:
        InvalidOption: it is neither.
    """
    if not isinstance(value, bool):
        raise InvalidOption(f"{name}={value!r} is neither True nor False.")
    return value


def check_rows(rows: Tensor) -> None:
    """Raise ``BatchError`` unless these are rows of activations: floating-point, of rank 2 or more."""
    if rows.dim() < 2 or not rows.is_floating_point():
        raise BatchError(
            f"A transform needs floating-point rows of shape (n, features, …), "
            f"not {rows.dtype} of shape {tuple(rows.shape)}: choose another site."
        )


def channel_dim(rank: int) -> int:
    """The channels of rows of that rank: dimension 1 of N×C×H×W and above, the last of N×T×D and N×D."""
    return 1 if rank > 3 else rank - 1


def position_dims(rank: int) -> list[int]:
    """The dimensions of places or tokens: those that are neither rows nor channels."""
    return [i for i in range(1, rank) if i != channel_dim(rank)]


def along_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Values of shape (n,) so that they broadcast against rows of shape (n, …)."""
    return values.view(-1, *[1] * (rows.dim() - 1))


def precise(value: Tensor) -> Tensor:
    """The value in float32 if its type is shorter, in which sums and differences would lose what they measure."""
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def draw_dtype(rows: Tensor) -> torch.dtype:
    """The type that random numbers for these rows are drawn in: float64 for float64, else float32."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def finest(device: torch.device) -> torch.dtype:
    """The longest type that the device has."""
    return torch.float32 if device.type == "mps" else torch.float64
