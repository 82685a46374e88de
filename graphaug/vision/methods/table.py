"""The methods by name, and what settings they have."""

from __future__ import annotations

from collections.abc import Mapping

from graphaug.vision.methods.contrastive import SimCLR, SupCon
from graphaug.vision.methods.decorrelating import BarlowTwins, VICReg
from graphaug.vision.methods.method import Method
from graphaug.vision.methods.momentum import BYOL, MoCo
from graphaug.vision.methods.siamese import SimSiam
from graphaug.vision.methods.supervised import Supervised

METHODS: Mapping[str, type[Method]] = {
    "simclr": SimCLR,
    "simsiam": SimSiam,
    "byol": BYOL,
    "moco": MoCo,
    "barlow": BarlowTwins,
    "vicreg": VICReg,
    "supcon": SupCon,
    "supervised": Supervised,
}

METHOD_SETTINGS: tuple[str, ...] = tuple(
    dict.fromkeys(name for method in METHODS.values() for name in method.settings)
)
"""The settings that only some methods have."""


def having(setting: str) -> list[str]:
    """The methods that have a setting."""
    return [name for name, method in METHODS.items() if setting in method.settings]
