"""One site of several acts in a forward, drawn afresh each time (Manifold Mixup, Verma et al. 2019)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class Turns:
    """Whose turn it is among ``count`` sites: shared by their nodes, drawn by the first of them in every forward.

    Args:
        count: how many sites there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.drawn: Tensor | None = None
        self.forced: int | None = None

    def is_on(self, number: int, device: torch.device) -> Tensor:
        """Whether it is the turn of this site, a boolean of shape (1,); number 0 is asked first and draws."""
        if self.forced is not None:
            return torch.full((1,), self.forced == number, device=device)
        if number == 0 or self.drawn is None:
            self.drawn = torch.randint(self.count, (1,), device=device)
        return self.drawn.to(device) == number

    @contextlib.contextmanager
    def force(self, number: int) -> Iterator[None]:
        """It is the turn of this site in this block, and nothing is drawn."""
        before, self.forced = self.forced, number
        try:
            yield
        finally:
            self.forced = before

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "drawn": None}
