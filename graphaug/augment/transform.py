"""What is done to the augmented rows: the protocol of a transform, and what every transform shares."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypedDict, Unpack

import torch
from torch import Generator, Tensor, nn

from graphaug.augment.domain import SHARE as SHARE
from graphaug.augment.domain import Domain as Domain
from graphaug.augment.shapes import finest
from graphaug.errors import InvalidOption, UnknownOption, did_you_mean


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

    Example:
        >>> import graphaug as ga
        >>> ga.Mix().needs.rows_meet, ga.Noise(relative="class").needs.labels, ga.Noise().needs.apart
        (True, True, True)
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

    @property
    def apart(self) -> bool:
        """Whether each row may be changed among others that are then not used."""
        return not (self.rows_meet or self.new_tokens)


class SiteOptions(TypedDict, total=False):
    """What a transform can be told about its site, where several have options of their own; see `graphaug.rewrite`."""

    subset: float
    stop_grad: bool
    sampling: str
    pairing: str


class Context(NamedTuple):
    """What is known around the rows when a transform draws.

    Attributes:
        generator: of the random numbers; torch's own of the rows' device if None.
        labels: the class of each row, integers of shape (n,).
        mask: which tokens of each row are real, not padding: booleans or 0 and 1, of shape (n, T).
        source: the activation of another input, with as many rows, or one row.
        batch: the whole batch at the site, of which the rows are a part; what is measured is measured on it.

    Example:
        >>> import torch, graphaug as ga
        >>> rows, labels = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([0, 1, 0, 1])
        >>> drawn = ga.Mix(lam=0.5, within_class=True).draw(rows, ga.Context(labels=labels))
        >>> torch.equal(labels[drawn.partners], labels)
        True
    """

    generator: Generator | None = None
    labels: Tensor | None = None
    mask: Tensor | None = None
    source: Tensor | None = None
    batch: Tensor | None = None

    @property
    def random(self) -> dict[str, Any]:
        """The generator as a keyword argument of torch's random functions; nothing, if there is none.

        Compiled for batches of any size, these functions refuse the very name ``generator``, were it None.
        """
        return random_of(self.generator)


def random_of(generator: Generator | None) -> dict[str, Any]:
    """A generator as a keyword argument of torch's random functions; nothing for None."""
    return {} if generator is None else {"generator": generator}


PLAIN = Context()


class Transform(nn.Module):
    """A change of the augmented rows, its random numbers drawn apart from it.

    A subclass has two methods, and says in ``needs`` what it asks of the rest:

    - ``draw(rows, context)`` returns all that is random in one forward, or that was measured or handed in: a
      tensor or a tuple of tensors, or None. The loss can read it after the forward.
    - ``forward(rows, draws)`` computes the result, of the same shape, from nothing else. Rows have shape (n, …), of a
      floating-point type; ``draws`` is what ``draw`` returned for them.

    A third, ``told(draws)``, says what of the draws is kept for the loss; where they are as large as the rows, nothing.
    A fourth, ``kept(draws)``, tells the tokens that each row keeps, (n, k), where it makes fewer of them.

    Numbers that may change while training are added by ``add_number``. They live in non-persistent buffers:
    changing them recompiles nothing, and the state_dict of a model around stays as it was. A transform is always
    active: that a model in eval mode is left alone is for the site to see to.

    Args:
        site: options of the site that it is put at, before those of `graphaug.rewrite`: ``subset``, ``stop_grad``,
            ``sampling``, ``pairing``.

    Raises:
        InvalidOption: another option.

    Example:
        >>> import torch, graphaug as ga
        >>> from graphaug.augment.transform import PLAIN, Domain
        >>> class Shift(ga.Transform):
        ...     def __init__(self, width: float = 1.0) -> None:
        ...         super().__init__()
        ...         self.add_number("width", width, Domain(low=0))
        ...     def draw(self, rows, context=PLAIN):
        ...         return torch.rand(len(rows), 1, **context.random)
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

    def __init__(self, **site: Unpack[SiteOptions]) -> None:
        super().__init__()
        unknown = [name for name in site if name not in SiteOptions.__annotations__]
        if unknown:
            known = SiteOptions.__annotations__
            own = [p for p in inspect.signature(type(self)).parameters if p != "site"]
            has = f"It has {', '.join(own)}. " if own else ""
            raise UnknownOption(
                f"{type(self).__name__} has no option {unknown[0]!r}."
                f"{did_you_mean(unknown[0], [*own, *known])} "
                f"{has}Those of every site are {', '.join(known)}."
            )
        self.site_options: SiteOptions = site
        self._domains: dict[str, Domain] = {}
        self._numbers: dict[str, float] = {}

    def add_number(self, name: str, value: float, domain: Domain) -> None:
        """Keep a number as the buffer ``name``, float64 of shape (1,), to be changed by ``set``.

        Raises:
            InvalidOption: it is outside its domain, or cannot have that name.
        """
        if "_domains" not in self.__dict__:
            raise InvalidOption(
                f"{type(self).__name__} has no place for {name!r}: call super().__init__(**site) before add_number."
            )
        if name == "subset" or not name.isidentifier() or (hasattr(self, name) and name not in self._buffers):
            raise InvalidOption(
                f"{type(self).__name__} cannot have a number {name!r}: a site or a module has something of that name "
                "already. Call it otherwise."
            )
        self._numbers[name] = domain.check(name, value)
        self._domains[name] = domain
        # one entry, not none: Dynamo takes a float64 scalar on the CPU for a Python number
        self.register_buffer(name, torch.tensor([self._numbers[name]], dtype=torch.float64), persistent=False)

    def numbers(self) -> dict[str, float]:
        """What `set` can change, with its present values."""
        return dict(self._numbers)

    def check(self, **numbers: float) -> None:
        """Raise ``InvalidOption`` if `set` would."""
        for name, value in numbers.items():
            if name not in self._domains:
                raise InvalidOption(
                    f"{type(self).__name__} has no number {name!r}.{did_you_mean(name, self._domains)} "
                    f"It has {', '.join(self._domains) or 'none'}."
                )
            self._domains[name].check(name, value)

    def set(self, **numbers: float) -> None:
        """Change numbers in place; nothing is recompiled. All are checked before one is changed.

        Raises:
            InvalidOption: a name that the transform has not, or a value outside its domain.
        """
        self.check(**numbers)
        for name, value in numbers.items():
            self._numbers[name] = float(value)
            self.get_buffer(name).fill_(value)

    def draw(self, rows: Tensor, context: Context = PLAIN) -> Any:
        """Draw what one forward of these rows needs; here nothing."""
        return None

    def told(self, draws: Any) -> Any:
        """What of the draws is kept for the loss after the forward: all of them, unless a subclass says otherwise."""
        return draws

    def kept(self, draws: Any) -> Tensor | None:
        """Of a transform with new tokens, the indices (n, k) of those that each row keeps, so that masks can follow."""
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

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep what it is made with, so that a plan can be written to a file."""
        made = super().__new__(cls)
        # a copy is made without arguments, and gets those of the original with all else
        with contextlib.suppress(TypeError):
            signature = inspect.signature(cls.__init__)
            made.__dict__["_spelled"] = dict(
                list(signature.bind(made, *args, **kwargs).arguments.items())[1:]
            )
        return made

    def spelled(self) -> dict[str, Any]:
        """The arguments that would make it, with its present numbers, without the options of its site."""
        parameters = inspect.signature(type(self).__init__).parameters
        made_with: dict[str, Any] = self.__dict__.get("_spelled", {})
        numbers = {name: value for name, value in self._numbers.items() if name in parameters}
        # what a signature gathers under one name, as **site, is no argument
        plain = {
            n: v for n, v in made_with.items() if parameters[n].kind is not inspect.Parameter.VAR_KEYWORD
        }
        found = {**plain, **numbers}
        return {name: found[name] for name in parameters if name in found}

    def in_words(self) -> str:
        """The transform in one line, as plans print it."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def own(self) -> Transform:
        """A copy for a site of its own; what is trained is shared, as a model's modules are."""
        return self if next(self.parameters(), None) is not None else copy.deepcopy(self)

    def extra_repr(self) -> str:
        """Show the numbers and options."""
        options = [f"{name}={getattr(self, name)!r}" for name in self.shown]
        return ", ".join([*(f"{name}={value:g}" for name, value in self._numbers.items()), *options])
