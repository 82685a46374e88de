"""The settings of a pretraining run."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import graphaug
from graphaug.contrastive.losses import LOSSES
from graphaug.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class PretrainConfig:
    """What a run does; equal configurations and versions give equal numbers on the CPU.

    ``at``: sites of Deep Augmentation, none for plain SimCLR; a string that is a whole number means the paper's
    numbering. ``rate`` to ``freeze``: as for ``graphaug.rewrite``. ``size``: of the views in pixels, by default the
    data set's. ``crop``: the smallest share of the image area a view shows. ``lr``: peak of the cosine schedule, for
    the given batch size. ``warmup``: epochs of linear increase to it. ``projection``: dimension of the embeddings.

    Raises:
        ConfigError: a value outside its domain.

    """

    data: str = "digits"
    model: str = "resnet18-cifar"
    at: tuple[str | int, ...] = ()
    rate: float = 0.5
    subset: float = 0.5
    stop_grad: bool = False
    sampling: str = "exact"
    granularity: str = "element"
    pairing: str = "any"
    freeze: str | None = None
    epochs: int = 20
    batch_size: int = 256
    lr: float = 0.1
    warmup: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    loss: str = "nt_xent"
    temperature: float = 0.5
    projection: int = 128
    size: int | None = None
    crop: float = 0.2
    seed: int = 0
    compile: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        """Check the values that no other part of the library checks."""
        object.__setattr__(self, "at", tuple(site(at) for at in self.at))
        for name, low in {"epochs": 1, "batch_size": 2, "projection": 1, "seed": 0}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigError(f"{name} must be a whole number of at least {low}, not {value!r}.")
        for name in ("lr", "temperature", "crop"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be a positive number, not {getattr(self, name)!r}.")
        for name in ("warmup", "momentum", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name} must be a number of at least 0, not {getattr(self, name)!r}.")
        # Checked here too: without a site nothing would look at them, and a typing error would go unnoticed.
        for name in ("rate", "subset", "crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], not {getattr(self, name)!r}.")
        if self.loss not in LOSSES:
            raise ConfigError(
                f"no loss is called {self.loss!r}.{did_you_mean(self.loss, LOSSES)} There are {', '.join(LOSSES)}."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PretrainConfig:
        """Make a configuration of named values; raises ``ConfigError`` on a name that does not exist."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"no setting is called {name!r}.{did_you_mean(name, known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as they go into ``config.yaml``."""
        return {**asdict(self), "at": list(self.at)}

    def deep_augmentation(self) -> dict[str, Any]:
        """The options for ``graphaug.rewrite``."""
        names = ("rate", "subset", "stop_grad", "sampling", "granularity", "pairing", "freeze")
        return {name: getattr(self, name) for name in names}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version(), "graphaug": graphaug.__version__}
    for package in ("torch", "torchvision", "numpy", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def site(at: str | int) -> str | int:
    """A site as typed on a command line: a whole number is a number, in the paper's numbering."""
    if isinstance(at, str):
        digits = at.removeprefix("-")
        return int(at) if digits.isascii() and digits.isdecimal() else at
    return at
