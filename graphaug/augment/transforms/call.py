"""Any module or function of the rows as a transform."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor

from graphaug.arguments import checked_names
from graphaug.augment.transform import Needs, SiteOptions, Transform
from graphaug.errors import BatchError, InvalidOption


class Call(Transform):
    """Any module or callable ``fn(rows) -> rows`` as a transform.

    Nothing is known of it, so it is taken to let rows meet, with their gradients. What it draws it draws inside.

    Args:
        fn: of rows of shape (n, …), to rows of the same shape and type.
        site: options of its site, as of `Transform`.

    Raises:
        InvalidOption: it cannot be called.
        BatchError: in a forward, if it returns something else than a tensor of the rows' shape and type.

    Example:
        >>> import torch, graphaug as ga
        >>> double = ga.Call(lambda rows: rows * 2)
        >>> double(torch.ones(2, 2), double.draw(torch.ones(2, 2)))
        tensor([[2., 2.],
                [2., 2.]])
    """

    needs = Needs(partners=True, statistics=True, gradient=True)

    @checked_names
    def __init__(self, fn: Callable[[Tensor], Tensor], **site: Unpack[SiteOptions]) -> None:
        super().__init__(**site)
        if not callable(fn):
            raise InvalidOption(f"{fn!r} is no transform: give a module or a function of the rows.")
        if isinstance(fn, type):
            raise InvalidOption(f"{fn.__name__} is a class: give an instance, {fn.__name__}(...).")
        self.fn = fn

    def forward(self, rows: Tensor, draws: Any = None) -> Tensor:
        """Call it on the rows."""
        out = self.fn(rows.clone())  # which may change what it is given
        if isinstance(out, Tensor) and not rows.is_meta and torch.is_autocast_enabled(rows.device.type):
            out = out.to(rows.dtype)  # autocast chose another
        if not isinstance(out, Tensor) or out.shape != rows.shape or out.dtype != rows.dtype:
            given = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise BatchError(
                f"{self.fn!r} made {given} of rows {rows.dtype} {tuple(rows.shape)}: keep shape and type."
            )
        return out

    def own(self) -> Call:
        """Itself: a function may be anybody's method, and is not copied."""
        return self

    def extra_repr(self) -> str:
        """Show what is called, in one line."""
        named = getattr(self.fn, "__qualname__", None)
        return named or " ".join(repr(self.fn).split())


def as_transform(value: object) -> Transform:
    """A transform as it is, any other module or function of the rows as a `Call`.

    Raises:
        InvalidOption: it is neither, or a transform without what every transform has.
    """
    if isinstance(value, Transform):
        check_protocol(value)
        return value
    if isinstance(value, type) and issubclass(value, Transform):
        raise InvalidOption(f"{value.__name__} is a class: give an instance, {value.__name__}(...).")
    return Call(value)  # type: ignore[arg-type]  # what cannot be called it refuses


def check_protocol(transform: Transform) -> None:
    """Check that a transform has what is called and read of every one, before a batch comes.

    Raises:
        InvalidOption: it has not; says what is missing.
    """
    kind = type(transform)
    if "site_options" not in transform.__dict__:
        raise InvalidOption(
            f"{kind.__name__} is no module yet: let its __init__ call super().__init__(**site)."
        )
    if not isinstance(transform.needs, Needs):
        raise InvalidOption(
            f"{kind.__name__}.needs={transform.needs!r}: give Needs(...), such as Needs(partners=True)."
        )
    if kind.forward is Transform.forward:
        raise InvalidOption(f"{kind.__name__} has no forward(rows, draws), which says what it does.")
    for method, arguments in ((transform.draw, "rows, context"), (transform.forward, "rows, draws")):
        try:
            inspect.signature(method).bind(None, None)
        except TypeError:
            raise InvalidOption(
                f"{kind.__name__}.{method.__name__}{inspect.signature(method)} is called with ({arguments}): "
                "let it take both."
            ) from None
