"""One of several transforms for each row, by probabilities that can be given or learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from graphaug.arguments import checked_names
from graphaug.augment.choices import check_choice
from graphaug.augment.shapes import along_rows, check_rows
from graphaug.augment.transform import PLAIN, Context, Domain, Needs, SiteOptions, Transform
from graphaug.augment.transforms.call import check_protocol
from graphaug.errors import BatchError, InvalidOption

PER = ("row", "batch")


class Picked(NamedTuple):
    """What a policy drew for n rows.

    Attributes:
        choice: which transform each row got, as an index into the policy's, (n,).
        draws: what each of the transforms drew, for all n rows.
    """

    choice: Tensor
    draws: tuple[Any, ...]


class Policy(Transform):
    """One of several transforms, drawn for each row or each batch (the operations of MODALS, Cheung & Yeung 2021).

    Args:
        transforms: two or more; none that changes the number of tokens.
        p: how likely each is, relative to the others; numbers ``p_0``, ``p_1``, … for ``set``, so that whatever learns
            them (MODALS: population based training) sets them while training. All alike if not given.
        per: every ``"row"`` draws for itself, or the ``"batch"`` draws one for all, as in MODALS' code.
        site: options of its site, as of `Transform`.

    The numbers of the i-th transform are set with its place behind the name: ``sigma_0``. All transforms run in every
    forward and each row takes one, so that nothing is recompiled whatever is drawn; rows that meet meet within all the
    augmented rows, whatever those got themselves.

    Raises:
        InvalidOption: fewer than two transforms, other probabilities than transforms, none above 0, or an option
            outside its domain.

    Example:
        >>> import torch, graphaug as ga
        >>> policy = ga.Policy([ga.Noise(0.0), ga.Add(torch.ones(2))], p=[0.0, 1.0])
        >>> rows = torch.zeros(2, 2)
        >>> policy(rows, policy.draw(rows))
        tensor([[1., 1.],
                [1., 1.]])
        >>> policy.set(p_0=1.0, p_1=0.0, sigma_0=0.5)
    """

    shown = ("per",)

    @checked_names
    def __init__(
        self,
        transforms: Sequence[Transform],
        p: Sequence[float] | None = None,
        *,
        per: str = "row",
        **site: Unpack[SiteOptions],
    ) -> None:
        super().__init__(**site)
        if not isinstance(transforms, (list, tuple)) or len(transforms) < 2:
            raise InvalidOption(f"a policy is over a list of two transforms or more, not {transforms!r}.")
        for part in transforms:
            if not isinstance(part, Transform):
                raise InvalidOption(
                    f"a policy is over transforms, and {part!r} is none: of a module or function of the rows make "
                    "graphaug.Call(it)."
                )
            check_protocol(part)
        if p is not None and not isinstance(p, Sequence):
            raise InvalidOption(f"p={p!r}: give a list of {len(transforms)} probabilities, one a transform.")
        chances = [1.0] * len(transforms) if p is None else list(p)
        if len(chances) != len(transforms):
            raise InvalidOption(
                f"p={chances!r} are {len(chances)} probabilities for {len(transforms)} transforms."
            )
        self.transforms = nn.ModuleList(transforms)
        for i, chance in enumerate(chances):
            self.add_number(f"p_{i}", chance, Domain(low=0))
        self._check_sum({})
        self.per = check_choice("per", per, PER)
        each = [t.needs for t in transforms]
        if any(n.new_tokens for n in each):
            raise InvalidOption(
                "a policy cannot change the number of tokens for some rows: leave Tokens out of it."
            )
        names = ("partners", "statistics", "gradient", "labels", "source")
        self.needs = Needs(**{name: any(getattr(n, name) for n in each) for name in names})

    def _parts(self) -> list[Transform]:
        return [t for t in self.transforms if isinstance(t, Transform)]

    def numbers(self) -> dict[str, float]:
        """The probabilities, and the transforms' own numbers with their places."""
        own = {f"{name}_{i}": v for i, t in enumerate(self._parts()) for name, v in t.numbers().items()}
        return {**super().numbers(), **own}

    def check(self, **numbers: float) -> None:
        """Raise ``InvalidOption`` if `set` would."""
        mine, theirs = self._sorted(numbers)
        super().check(**mine)
        self._check_sum(mine)
        for i, name, value in theirs:
            self._parts()[i].check(**{name: value})

    def set(self, **numbers: float) -> None:
        """Change probabilities, or numbers of the transforms, in place; nothing is recompiled.

        Raises:
            InvalidOption: an unknown name, a value outside its domain, or no probability above 0.
        """
        self.check(**numbers)
        mine, theirs = self._sorted(numbers)
        super().set(**mine)
        for i, name, value in theirs:
            self._parts()[i].set(**{name: value})

    def _sorted(self, numbers: dict[str, float]) -> tuple[dict[str, float], list[tuple[int, str, float]]]:
        """The policy's own numbers, and those of its transforms: (which, name, value)."""
        theirs = []
        for name, value in numbers.items():
            own, _, place = name.rpartition("_")
            if name not in self._domains and name in self.numbers():
                theirs.append((int(place), own, value))
        known = {f"{name}_{i}" for i, name, _ in theirs}
        return {name: value for name, value in numbers.items() if name not in known}, theirs

    def _check_sum(self, changed: dict[str, float]) -> None:
        if not any({**self._numbers, **changed}.values()):
            raise InvalidOption("no transform of the policy would be drawn: give a probability above 0.")

    def draw(self, rows: Tensor, context: Context = PLAIN) -> Picked:
        """Draw a transform for each of n rows, and what each transform needs."""
        check_rows(rows)
        draws = tuple(t.draw(rows, context) for t in self._parts())
        chances = torch.cat([self.get_buffer(f"p_{i}") for i in range(len(draws))])
        bounds = (chances.cumsum(0) / chances.sum()).to(rows.device)
        count = rows.shape[0] if self.per == "row" else 1
        uniform = torch.rand(count, dtype=torch.float32, device=rows.device, **context.random)
        # right: a transform of probability 0 is passed over, also by a uniform number of exactly 0
        choice = torch.searchsorted(bounds, uniform.to(bounds.dtype), right=True)
        return Picked(choice.clamp(max=len(draws) - 1).expand(rows.shape[0]), draws)

    def told(self, draws: Picked) -> Picked:
        """Which transform each row got, and what is told of the draws."""
        parts = zip(self._parts(), draws.draws, strict=True)
        return Picked(draws.choice, tuple(t.told(d) for t, d in parts))

    def forward(self, rows: Tensor, draws: Picked) -> Tensor:
        """Give each of n rows, (n, …), the result of its transform."""
        out = rows
        for i, (transform, drawn) in enumerate(zip(self._parts(), draws.draws, strict=True)):
            changed = transform(rows, drawn)
            if not isinstance(changed, Tensor) or changed.shape != rows.shape or changed.dtype != rows.dtype:
                raise BatchError(f"{type(transform).__name__} keeps neither shape nor type of its rows.")
            out = torch.where(along_rows(draws.choice == i, rows), changed, out)
        return out

    def spelled(self) -> dict[str, Any]:
        """The arguments that would make it, with its present probabilities."""
        chances = [self._numbers[f"p_{i}"] for i in range(len(self.transforms))]
        return {"transforms": self._parts(), "p": chances, "per": self.per}

    def in_words(self) -> str:
        """The transforms with their probabilities, in one line."""
        total = sum(self._numbers.values())
        shares = [self._numbers[f"p_{i}"] / total for i in range(len(self.transforms))]
        parts = [f"{s:.0%} {t.in_words()}" for s, t in zip(shares, self._parts(), strict=True)]
        return f"Policy({', '.join(parts)}, per={self.per!r})"

    def extra_repr(self) -> str:
        """Show the probabilities; the transforms are children, and shown below."""
        return ", ".join(
            [*(f"{name}={value:g}" for name, value in self._numbers.items()), f"per={self.per!r}"]
        )
