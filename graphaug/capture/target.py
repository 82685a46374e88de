"""A place in a model, as sites and errors name it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One place in a model: the output (or input) of a module, or of an operation in its forward.

    Attributes:
        path: path of the module as in ``named_modules()``; ``""`` is the model itself.
        op: name of an operation in that module's forward; None: the module's own output.
        call: which call of the module, from 0; None: it is called once.
        side: ``"after"``, or ``"before"`` for the input.
    """

    path: str
    op: str | None = None
    call: int | None = None
    side: str = "after"

    def __str__(self) -> str:
        name = ".".join(part for part in (self.path, self.op) if part)
        if not name:
            return "input" if self.side == "before" else "output"
        call = "" if self.call is None else f"@{self.call}"
        return name + call + (".input" if self.side == "before" else "")
