"""Lightning Fabric's mixed precision, for batches that hold more than a network's input."""

from __future__ import annotations

from typing import Any

from lightning_fabric.plugins.precision import MixedPrecision


class Autocast(MixedPrecision):
    """``bf16-mixed`` that leaves the batch as it is: autocast rounds what it computes with in any case.

    Fabric's own rounds every floating tensor of a batch, and with eight bits a uniform number can be 1, a draw of the
    order of operations a tie, and the corner of a crop one of a few.
    """

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device=device)

    def convert_input(self, data: Any) -> Any:
        """Give the batch back as it is."""
        return data
