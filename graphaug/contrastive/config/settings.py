"""What the settings of every kind of run have in common: their types, their checks, and how they are read."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, TypeVar

import graphaug
from graphaug.augment.choices import CHOICES
from graphaug.contrastive.config.deep_views import VIEWS, check_deep_views
from graphaug.contrastive.config.names import setting_meant
from graphaug.contrastive.config.sites import site
from graphaug.contrastive.devices import world_size
from graphaug.contrastive.optim import OPTIMIZERS
from graphaug.contrastive.schedule import SHAPES
from graphaug.errors import ConfigError, did_you_mean

T = TypeVar("T")
S = TypeVar("S", bound="Settings")

PRECISIONS = ("32-true", "bf16-mixed")
ACCELERATORS = ("auto", "cpu", "cuda")


def setting(default: T, help: str, choices: Sequence[str] = ()) -> T:
    """A field of a `Settings` class, with a sentence that ``--help`` prints, and the words that it may be."""
    return field(default=default, metadata={"help": help, "choices": tuple(choices)})


@dataclass(frozen=True)
class Settings:
    """What every kind of run can be told; the base of their configurations.

    Each field has a sentence in ``metadata["help"]``, which ``--help`` prints. ``FREE`` names the settings that do not
    change what is computed: a run may be resumed with others. ``SHAPES``: the learning-rate schedules it can have.
    ``TAKEN_BACK``: settings that are never None, and for which the command line's ``none`` is their default;
    ``REFUSED``: switches of every run that this kind cannot have, and that are no options of its command.

    Raises:
        ConfigError: a value of the wrong type or outside its domain.

    """

    at: tuple[str | int, ...] = setting((), "A site; a whole number is the paper's. Repeatable.")
    everywhere: bool = setting(False, "Augment at every stage of the paper's numbering, instead of --at.")
    rate: float = setting(0.5, "Dropout probability on the augmented rows.")
    rates: tuple[float, ...] = setting(
        (), "One rate a site, in the order of the sites; --at SITE=RATE says both."
    )
    subset: float = setting(0.5, "Share of the rows that is augmented.")
    stop_grad: bool = setting(False, "Detach the augmented rows.")
    sampling: str = setting("exact", "exact or bernoulli.")
    granularity: str = setting("element", "element, channel or position.")
    pairing: str = setting("any", "any, one-sided or together.")
    deep_views: bool = setting(
        False,
        "Make the two views at the site: one view comes in, and what lies before the site runs once for both.",
    )
    freeze: str | None = setting(None, "before or after: which side of the cut is not trained.")
    backward: str = setting("auto", "auto, dense, sparse or proved.")
    epochs: int = setting(20, "Passes over the training data.")
    batch_size: int = setting(
        256, "Images or sentences a step, of all devices together; twice as many views."
    )
    optimizer: str = setting("sgd", "sgd, lars or adamw.")
    lr: float = setting(0.1, "Peak learning rate.")
    schedule: str = setting("cosine", "cosine or linear (behind the warm-up), or supcontrast.")
    lr_floor: float = setting(0.0, "Where the schedule ends, as a share of the learning rate.")
    warmup: float = setting(1.0, "Epochs of linear increase of the learning rate, whole or a fraction.")
    warmup_from: float | None = setting(
        None, "Learning rate of the first step; by default a hundredth of --lr."
    )
    momentum: float = setting(0.9, "Of SGD and LARS.")
    weight_decay: float = setting(1e-4, "L2 penalty; LARS and AdamW leave norms and biases out of it.")
    temperature: float = setting(0.5, "Temperature of the loss, in units of cosine similarity.")
    gather: bool = setting(True, "With several devices, take negatives from all of them.")
    seed: int = setting(0, "Of everything random.")
    devices: int = setting(1, "Processes, one a GPU, or sharing the CPU. Under torchrun, torchrun decides.")
    accelerator: str = setting("auto", "auto, cpu or cuda.")
    precision: str = setting("32-true", "32-true or bf16-mixed.")
    compile: bool = setting(False, "Compile the whole step, its backward included.")
    keep: int = setting(2, "How many checkpoints are kept while the run lasts.")
    collapse: float = setting(0.01, "Stop when the embeddings' spread, 1 for isotropic, falls below this.")

    FREE: ClassVar[tuple[str, ...]] = ()
    SHAPES: ClassVar[tuple[str, ...]] = SHAPES
    TAKEN_BACK: ClassVar[tuple[str, ...]] = ()
    REFUSED: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Bring the values into their types, and check them."""
        for item in fields(self):
            object.__setattr__(self, item.name, _typed(item, getattr(self, item.name)))
        self.check()

    def check(self) -> None:
        """Check the values that no other part of the library checks."""
        self.at_least(epochs=1, batch_size=2, seed=0, devices=1, keep=1)
        if self.seed >= 2**63:
            raise ConfigError(f"seed must be below 2**63, not {self.seed}.")
        self.positive("lr", "temperature")
        self.not_negative("warmup", "warmup_from", "momentum", "weight_decay", "collapse")
        # Checked here too: without a site nothing would look at them, and a typing error would go unnoticed.
        self.shares("rate", "subset", "lr_floor")
        if self.everywhere and self.at:
            raise ConfigError("everywhere augments at every stage: leave out either it or the sites.")
        self._check_rates()
        self.one_of(optimizer=OPTIMIZERS, schedule=self.SHAPES)
        self.one_of(precision=PRECISIONS, accelerator=ACCELERATORS)
        self.one_of(**CHOICES)
        self.one_sided("subset")
        check_deep_views(self)

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Refuse settings that were given by name and do nothing, even where they have their default."""

    def _check_rates(self) -> None:
        """Raise ``ConfigError`` unless there is one rate for each site, and nothing else that sets them."""
        if not self.rates:
            return
        if len(self.rates) != len(self.at):
            raise ConfigError(
                f"rates has {len(self.rates)} value(s) for {len(self.at)} site(s): give one for each."
            )
        for rate in self.rates:
            if not 0 <= rate <= 1:
                raise ConfigError(f"rates must be in [0, 1], not {rate!r}.")
        if getattr(self, "rate_end", None) is not None:
            raise ConfigError(
                "rate_end changes one rate for all sites, and rates gives each its own: leave out one."
            )
        if getattr(self, "mlm", False) and getattr(self, "mlm_augment", False):
            raise ConfigError(
                "rates cannot be given with mlm, whose forward has other sites: give one rate, or mlm_augment=False."
            )

    def at_least(self, **lowest: float) -> None:
        """Raise ``ConfigError`` for whole numbers below their lowest value."""
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ConfigError(
                    f"{name} must be a whole number of at least {low}, not {getattr(self, name)!r}."
                )

    def positive(self, *names: str) -> None:
        """Raise ``ConfigError`` for what is no positive number."""
        for name in names:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be a positive number, not {getattr(self, name)!r}.")

    def not_negative(self, *names: str) -> None:
        """Raise ``ConfigError`` for what is neither None nor a number of at least 0."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be a number of at least 0, not {value!r}.")

    def shares(self, *names: str) -> None:
        """Raise ``ConfigError`` for what is neither None nor in [0, 1]."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} must be in [0, 1], not {value!r}.")

    def one_sided(self, name: str) -> None:
        """Raise ``ConfigError`` for a share of the rows that cannot be drawn from their first half alone."""
        value = getattr(self, name)
        if self.pairing == "one-sided" and value is not None and value > 0.5:
            raise ConfigError(
                f"{name}={value!r} with pairing='one-sided': only the first half of the rows can be drawn, so give at "
                "most 0.5."
            )

    def one_of(self, **known: Iterable[str | None]) -> None:
        """Raise ``ConfigError`` for a name that is not among the known ones."""
        for name, names in known.items():
            value = getattr(self, name)
            if value not in names:
                words = [word for word in names if word is not None]
                raise ConfigError(
                    f"no {name} is called {value!r}.{did_you_mean(value, words)} There are {', '.join(words)}."
                )

    @classmethod
    def items(cls) -> list[Field[Any]]:
        """The settings there are: those of this kind of run first."""
        shared = Settings.__annotations__
        return sorted(fields(cls), key=lambda item: item.name in shared)

    @classmethod
    def names(cls) -> list[str]:
        """Their names."""
        return [item.name for item in cls.items()]

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any]) -> S:
        """Make a configuration of named values; raises ``ConfigError`` on a name that does not exist."""
        for name in values:
            if name not in cls.names():
                raise ConfigError(f"no setting is called {name!r}.{setting_meant(str(name), cls.names())}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as they go into ``config.yaml``."""
        values = {name: getattr(self, name) for name in self.names()}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    def rows_at_once(self) -> int:
        """How many rows pass a site in one forward of a training step, in one process."""
        return 2 * (self.batch_size // world_size(self.devices))

    @property
    def skips_rows(self) -> bool:
        """Whether stopped rows may be left out of the backward: they are whole only where each view is a row."""
        apart = self.deep_views and self.pairing != "together"
        return self.stop_grad and self.backward != "dense" and not apart

    def where(self, sites: Sequence[str | int]) -> Any:
        """``at`` for ``graphaug.rewrite``: one site, several, or each with its rate."""
        if self.rates:
            return dict(zip(sites, self.rates, strict=True))
        return sites[0] if len(sites) == 1 else list(sites)

    def deep_augmentation(self) -> dict[str, Any]:
        """The options for ``graphaug.rewrite``."""
        names = ("rate", "subset", "stop_grad", "sampling", "granularity", "pairing", "freeze")
        options = {**{name: getattr(self, name) for name in names}, "views": VIEWS if self.deep_views else 1}
        return {**options, "rate": None} if self.rates else options  # `where` says it of each site

    @classmethod
    def differences(cls, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
        """The settings that would change what is computed, as "name: old → new"; ``old`` may lack newer settings."""
        defaults = cls().to_dict()
        return [
            f"{name}: {old.get(name, defaults[name])!r} → {value!r}"
            for name, value in new.items()
            if name in defaults and name not in cls.FREE and old.get(name, defaults[name]) != value
        ]


def package_versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version(), "graphaug": graphaug.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _text(value: Any) -> str:
    """Text as it is; raises ``TypeError`` for anything but it and whole numbers, which name modules of a list."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError
    return str(value)


def _typed(item: Field[Any], value: Any) -> Any:
    """The value in the setting's type; YAML reads 1e-4 as text, and one site or a list of them are both usual."""
    kind = str(item.type)
    if value is None and "None" in kind:
        return None
    try:
        if kind.startswith("tuple"):
            entries = value if isinstance(value, (list, tuple)) else (value,)
            convert = site if item.name == "at" else float if "float" in kind else _text
            return tuple(map(convert, entries))
        if kind.startswith("float") and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        what = "a number" if "float" in kind else "text"
        raise ConfigError(f"{item.name} must be {what}, not {value!r}.") from None
    expected = {"int": int, "str": str, "bool": bool, "float": float}[kind.split(" ")[0]]
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        words = {int: "a whole number", str: "text", bool: "true or false", float: "a number"}
        raise ConfigError(f"{item.name} must be {words[expected]}, not {value!r}.")
    return value
