"""The settings of a pretraining run."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import graphaug
from graphaug.contrastive.losses import LOSSES, SCALES
from graphaug.contrastive.optim import OPTIMIZERS
from graphaug.contrastive.rows import RESIDENT
from graphaug.contrastive.schedule import SHAPES
from graphaug.errors import ConfigError, did_you_mean

T = TypeVar("T")

PRECISIONS = ("32-true", "bf16-mixed")
ACCELERATORS = ("auto", "cpu", "cuda")

FREE = ("strict", "checkpoint_every", "keep", "snapshot_every", "watch_every", "collapse", "resident")
"""Settings that do not change what is computed: a run may be resumed with others."""


def _setting(default: T, help: str) -> T:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class PretrainConfig:
    """What a run does; equal configurations and versions give equal numbers on the CPU.

    ``fields(PretrainConfig)`` carry a sentence on each setting in ``metadata["help"]``; ``graphaug pretrain --help``
    prints them.

    Raises:
        ConfigError: a value of the wrong type or outside its domain.

    """

    data: str = _setting("digits", "digits, cifar10, cifar100 or folder:PATH.")
    model: str = _setting("resnet18-cifar", "A torchvision model, resnet18-cifar[:WIDTH], or timm:NAME.")
    init: str | None = _setting(None, "Begin with the weights of this run directory or safetensors file.")
    at: tuple[str | int, ...] = _setting((), "A site; a whole number is the paper's. Repeatable.")
    everywhere: bool = _setting(False, "Augment at every stage of the paper's numbering, instead of --at.")
    rate: float = _setting(0.5, "Dropout probability on the augmented rows.")
    rate_end: float | None = _setting(None, "Change the rate linearly over the run, to this.")
    subset: float = _setting(0.5, "Share of the rows that is augmented.")
    subset_end: float | None = _setting(None, "Change the subset linearly over the run, to this.")
    stop_grad: bool = _setting(False, "Detach the augmented rows.")
    sampling: str = _setting("exact", "exact or bernoulli.")
    granularity: str = _setting("element", "element, channel or position.")
    pairing: str = _setting("any", "any or one-sided.")
    freeze: str | None = _setting(None, "before or after: which side of the cut is not trained.")
    backward: str = _setting("auto", "auto, dense or sparse.")
    epochs: int = _setting(20, "Passes over the training images.")
    batch_size: int = _setting(256, "Images a step, of all devices together; twice as many views.")
    accumulate: int = _setting(1, "Parts a batch is computed in; each has negatives of its own part only.")
    optimizer: str = _setting("sgd", "sgd, lars or adamw.")
    lr: float = _setting(0.1, "Peak learning rate.")
    schedule: str = _setting("cosine", "cosine (behind the warm-up), or supcontrast.")
    lr_floor: float = _setting(0.0, "Where the cosine ends, as a share of the learning rate.")
    warmup: float = _setting(1.0, "Epochs of linear increase of the learning rate.")
    warmup_from: float | None = _setting(
        None, "Learning rate of the first step; by default a hundredth of --lr."
    )
    momentum: float = _setting(0.9, "Of SGD and LARS.")
    weight_decay: float = _setting(1e-4, "L2 penalty; LARS and AdamW leave norms and biases out of it.")
    loss: str = _setting("nt_xent", "nt_xent (SimCLR), info_nce (the paper's Eq. 1) or info_nce_symmetric.")
    loss_scale: str = _setting(
        "mean", "mean, or supcontrast: times temperature/0.07, as published rates need."
    )
    temperature: float = _setting(0.5, "Temperature of the loss.")
    gather: bool = _setting(True, "With several devices, take negatives from all of them.")
    projection: int = _setting(128, "Dimension of the embeddings.")
    size: int | None = _setting(None, "Height and width of the views; by default the data's.")
    crop: float = _setting(0.2, "Smallest share of the image area that a view shows.")
    jitter: tuple[float, ...] = _setting(
        (0.4, 0.4, 0.4, 0.1),
        "Strength of the colour jitter, four times: brightness, contrast, saturation, hue.",
    )
    jitter_p: float = _setting(0.8, "Probability of the colour jitter.")
    gray_p: float = _setting(0.2, "Probability of grayscale.")
    blur_p: float = _setting(0.0, "Probability of a Gaussian blur.")
    solarize_p: float = _setting(0.0, "Probability of solarization.")
    seed: int = _setting(0, "Of everything random.")
    devices: int = _setting(1, "Processes, one a GPU, or sharing the CPU. Under torchrun, torchrun decides.")
    accelerator: str = _setting("auto", "auto, cpu or cuda.")
    precision: str = _setting("32-true", "32-true or bf16-mixed.")
    channels_last: bool = _setting(False, "Keep images channels last, which GPUs' convolutions prefer.")
    sync_batchnorm: bool = _setting(False, "Batch statistics over all devices; GPUs only.")
    compile: bool = _setting(False, "Compile the whole step: views, network, loss and backward.")
    cuda_graphs: bool = _setting(False, "Replay the compiled step as CUDA graphs; one GPU only.")
    resident: str = _setting(
        "auto", "Keep the images on the device: auto (if they fit), always, or never, when they are streamed."
    )
    strict: bool = _setting(False, "Refuse unreadable images instead of skipping them.")
    checkpoint_every: float = _setting(1.0, "Epochs between checkpoints, whole or a fraction; 0 makes none.")
    keep: int = _setting(2, "How many checkpoints are kept while the run lasts.")
    snapshot_every: int = _setting(
        0, "Keep the encoder every so many epochs, and the untrained one; 0 for none."
    )
    watch_every: int = _setting(0, "Epochs between nearest-neighbour accuracies while training; 0 for none.")
    collapse: float = _setting(0.01, "Stop when the embeddings' spread, 1 for isotropic, falls below this.")

    def __post_init__(self) -> None:
        """Check the values that no other part of the library checks."""
        for item in fields(self):
            object.__setattr__(self, item.name, _typed(item, getattr(self, item.name)))
        object.__setattr__(self, "at", tuple(site(at) for at in self.at))
        lowest = {
            "epochs": 1,
            "batch_size": 2,
            "accumulate": 1,
            "projection": 1,
            "seed": 0,
            "devices": 1,
            "keep": 1,
        }
        for name, low in {**lowest, "snapshot_every": 0, "watch_every": 0}.items():
            if getattr(self, name) < low:
                raise ConfigError(
                    f"{name} must be a whole number of at least {low}, not {getattr(self, name)!r}."
                )
        for name in ("lr", "temperature", "crop"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be a positive number, not {getattr(self, name)!r}.")
        for name in ("warmup", "warmup_from", "momentum", "weight_decay", "checkpoint_every", "collapse"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be a number of at least 0, not {value!r}.")
        # Checked here too: without a site nothing would look at them, and a typing error would go unnoticed.
        shares = ("rate", "rate_end", "subset", "subset_end", "crop", "lr_floor")
        for name in (*shares, "jitter_p", "gray_p", "blur_p", "solarize_p"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} must be in [0, 1], not {value!r}.")
        if len(self.jitter) != 4:
            raise ConfigError(f"jitter takes four strengths, not {len(self.jitter)}.")
        if self.everywhere and self.at:
            raise ConfigError("everywhere augments at every stage: leave out either it or the sites.")
        changes = self.subset_end not in (None, self.subset)
        if changes and self.compile and self.stop_grad and self.backward != "dense":
            raise ConfigError(
                "a sparse step is compiled anew for every subset, and subset_end changes it in every step: give "
                "backward='dense', or do not compile."
            )
        if (share := self.devices * self.accumulate) > 1 and self.batch_size % share:
            raise ConfigError(
                f"batch_size={self.batch_size} cannot be shared by {self.devices} device(s) in {self.accumulate} "
                f"part(s): give a multiple of {share}."
            )
        # Gradients that are accumulated would be in memory that the next replay writes to.
        one_gpu = self.devices * self.accumulate == 1 and self.accelerator != "cpu"
        if self.cuda_graphs and not (self.compile and one_gpu):
            raise ConfigError("cuda_graphs needs compile, one GPU, and a batch in one part (accumulate=1).")
        known = {"loss": LOSSES, "loss_scale": SCALES, "optimizer": OPTIMIZERS, "schedule": SHAPES}
        known |= {"resident": RESIDENT}
        for name, names in {**known, "precision": PRECISIONS, "accelerator": ACCELERATORS}.items():
            value = getattr(self, name)
            if value not in names:
                raise ConfigError(
                    f"no {name} is called {value!r}.{did_you_mean(value, names)} There are {', '.join(names)}."
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PretrainConfig:
        """Make a configuration of named values; raises ``ConfigError`` on a name that does not exist."""
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"no setting is called {name!r}.{did_you_mean(str(name), known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as they go into ``config.yaml``."""
        return {**asdict(self), "at": list(self.at), "jitter": list(self.jitter)}

    def deep_augmentation(self) -> dict[str, Any]:
        """The options for ``graphaug.rewrite``."""
        names = ("rate", "subset", "stop_grad", "sampling", "granularity", "pairing", "freeze")
        return {name: getattr(self, name) for name in names}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings that would change what is computed, as "name: old → new"; ``old`` may lack newer settings."""
    defaults = PretrainConfig().to_dict()
    return [
        f"{name}: {old.get(name, defaults[name])!r} → {value!r}"
        for name, value in new.items()
        if name in defaults and name not in FREE and old.get(name, defaults[name]) != value
    ]


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


def _typed(item: Field[Any], value: Any) -> Any:
    """The value in the setting's type; YAML reads 1e-4 as text, and one site or a list of them are both usual."""
    kind = str(item.type)
    if value is None and "None" in kind:
        return None
    try:
        if kind.startswith("tuple"):
            entries = value if isinstance(value, (list, tuple)) else (value,)
            return tuple(entries) if item.name == "at" else tuple(float(entry) for entry in entries)
        if kind.startswith("float") and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{item.name} must be a number, not {value!r}.") from None
    expected = {"int": int, "str": str, "bool": bool, "float": float}[kind.split(" ")[0]]
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        words = {int: "a whole number", str: "text", bool: "true or false", float: "a number"}
        raise ConfigError(f"{item.name} must be {words[expected]}, not {value!r}.")
    return value
