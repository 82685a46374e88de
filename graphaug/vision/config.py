"""The settings of a pretraining run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from graphaug.augment.transforms.mix import Mix
from graphaug.augment.transforms.pca import PCA
from graphaug.contrastive.config.settings import Settings, package_versions, setting
from graphaug.contrastive.devices import world_size
from graphaug.contrastive.losses import LOSSES, SCALES
from graphaug.errors import ConfigError
from graphaug.vision.data.rows import RESIDENT
from graphaug.vision.methods.checks import check_method, refuse_foreign
from graphaug.vision.methods.table import METHOD_SETTINGS, METHODS

COMPILED_FREEZES = 7
"""Modules that a compiled step may freeze one after another; with the step before, torch's limit of one function."""
TRANSFORMS = ("dropout", "pca", "mix")
OF_DROPOUT = ("rate", "rates", "rate_end", "granularity")
"""Settings that the other transforms do not have."""


@dataclass(frozen=True)
class PretrainConfig(Settings):
    """What a run does; equal configurations and versions give equal numbers on the CPU.

    Raises:
        ConfigError: a value of the wrong type or outside its domain.

    """

    data: str = setting(
        "digits", "digits, cifar10, cifar100, fashion-mnist, idx:DIR, folder:PATH, or FILE.py:NAME, your own."
    )
    images: int | None = setting(
        None, "Train on so many of the training images, the same share of every class; by default all."
    )
    validation: float = setting(
        0.0,
        "Hold this share of the training images out, to choose settings by; the result has their accuracies.",
    )
    model: str = setting(
        "resnet18-cifar", "A torchvision model, resnet18-cifar[:WIDTH], timm:NAME, or FILE.py:NAME."
    )
    init: str | None = setting(
        None, "Begin with the weights of this run directory, checkpoint or safetensors file."
    )
    method: str = setting("simclr", f"{', '.join(list(METHODS)[:-1])} or {list(METHODS)[-1]}.")
    transform: str = setting(
        "dropout",
        "dropout; pca: the first principal direction of the augmented rows is taken out; or mix: Manifold Mixup.",
    )
    rate_end: float | None = setting(None, "Change the rate linearly over the run, to this.")
    subset_end: float | None = setting(None, "Change the subset linearly over the run, to this.")
    freeze_schedule: tuple[str, ...] = setting(
        (), "A module to freeze while training, the first to freeze first. Repeatable."
    )
    freeze_until: float = setting(1.0, "Share of the run at which the last of them is frozen.")
    accumulate: int = setting(1, "Parts a batch is computed in; each has negatives of its own part only.")
    loss: str = setting("nt_xent", "nt_xent (SimCLR), info_nce (the paper's Eq. 1) or info_nce_symmetric.")
    loss_scale: str = setting(
        "mean", "mean, or supcontrast: times temperature/0.07, as published rates need."
    )
    projection: int | None = setting(None, "Dimension of the embeddings; by default the method's.")
    hidden: int | None = setting(None, "Width of the heads' hidden layers; by default the method's.")
    redundancy: float | None = setting(
        None, "Of barlow: the weight of what is not on the diagonal; by default 0.005."
    )
    vicreg_weights: tuple[float, ...] = setting(
        (), "Of vicreg, three times: invariance, variance, covariance; by default 25, 25, 1."
    )
    teacher_momentum: float | None = setting(
        None,
        "Of byol and moco: how much a teacher keeps of its weights in a step; by default 0.996 and 0.999.",
    )
    teacher_schedule: str | None = setting(
        None, "cosine (the momentum ends at 1) or constant; by default cosine for byol, constant for moco."
    )
    augment_teacher: bool = setting(False, "Deep Augmentation in the teacher too.")
    queue: int | None = setting(None, "Of moco: how many former keys are negatives; by default 4096.")
    size: int | None = setting(None, "Height and width of the views; by default the data's, 16 for digits.")
    crop: float = setting(0.2, "Smallest share of the image area that a view shows.")
    jitter: tuple[float, ...] = setting(
        (0.4, 0.4, 0.4, 0.1),
        "Strength of the colour jitter, four times: brightness, contrast, saturation, hue.",
    )
    jitter_p: float = setting(0.8, "Probability of the colour jitter.")
    gray_p: float = setting(0.2, "Probability of grayscale.")
    blur_p: float = setting(0.0, "Probability of a Gaussian blur.")
    solarize_p: float = setting(0.0, "Probability of solarization.")
    channels_last: bool = setting(False, "Keep images channels last, which GPUs' convolutions prefer.")
    sync_batchnorm: bool = setting(False, "Batch statistics over all devices; GPUs only.")
    cuda_graphs: bool = setting(False, "Replay the compiled step as CUDA graphs; one GPU only.")
    resident: str = setting(
        "auto", "Keep the images on the device: auto (if they fit), always, or never, when they are streamed."
    )
    strict: bool = setting(False, "Refuse unreadable images instead of skipping them.")
    checkpoint_every: float = setting(1.0, "Epochs between checkpoints, whole or a fraction; 0 makes none.")
    snapshot_every: int = setting(
        0, "Keep the encoder every so many epochs, and the untrained one; 0 for none."
    )
    watch_every: int = setting(0, "Epochs between nearest-neighbour accuracies while training; 0 for none.")

    FREE: ClassVar[tuple[str, ...]] = (
        "strict",
        "checkpoint_every",
        "keep",
        "snapshot_every",
        "watch_every",
        "collapse",
        "resident",
    )
    TAKEN_BACK: ClassVar[tuple[str, ...]] = ("loss", "loss_scale", "temperature")

    def __post_init__(self) -> None:
        """Fill in what None means to the method; then as for every kind of run."""
        method = METHODS.get(self.method) if isinstance(self.method, str) else None
        for name, value in method.defaults.items() if method is not None else ():
            if getattr(self, name) in (None, ()):
                object.__setattr__(self, name, value)
        super().__post_init__()

    def check(self) -> None:
        """Check the values that no other part of the library checks."""
        super().check()
        check_method(self)
        self._check_views()
        self.at_least(accumulate=1, snapshot_every=0, watch_every=0)
        if self.images is not None:
            self.at_least(images=2)
        self.positive("crop")
        self.not_negative("checkpoint_every")
        self.shares(
            "validation",
            "rate_end",
            "subset_end",
            "freeze_until",
            "crop",
            "jitter_p",
            "gray_p",
            "blur_p",
            "solarize_p",
        )
        if self.validation == 1:
            raise ConfigError("validation=1.0 holds out all images, and leaves none to train on: give less.")
        if len(self.jitter) != 4:
            raise ConfigError(f"jitter must be four strengths, not {len(self.jitter)}.")
        if not all(math.isfinite(s) and s >= 0 for s in self.jitter) or self.jitter[3] > 0.5:
            raise ConfigError(
                f"jitter must be strengths of at least 0, and that of the hue at most 0.5, not {list(self.jitter)}."
            )
        self._check_freezing()
        changes = self.subset_end not in (None, self.subset)
        if changes and self.compile and self.skips_rows:
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
        self.one_of(transform=TRANSFORMS)
        changed = [name for name in OF_DROPOUT if getattr(self, name) != getattr(PretrainConfig, name)]
        if self.transform != "dropout" and changed:
            raise ConfigError(
                f"{', '.join(changed)} with transform={self.transform!r}: only dropout has "
                f"{'it' if len(changed) == 1 else 'them'}. Leave out one or the other."
            )
        self.one_of(loss=LOSSES, loss_scale=SCALES, resident=RESIDENT)
        self.one_sided("subset_end")

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Refuse settings that were given, and that the method does not have."""
        refuse_foreign(self.method, given)

    def _check_views(self) -> None:
        """Raise ``ConfigError`` where a method does not take what is made of the views."""
        method = METHODS[self.method]
        if self.deep_views and not method.deep_views:
            reason = (
                "its targets come of a teacher, in which no site makes views"
                if method.teacher
                else "it is trained on one view"
            )
            raise ConfigError(
                f"deep_views=True with method={self.method!r}: {reason}. Leave out one or the other."
            )
        if self.cuda_graphs and method.teacher:
            raise ConfigError(
                f"cuda_graphs with method={self.method!r}: its teacher is written to between replays, which has been "
                "tried on no GPU. Give compile alone."
            )
        if self.method == "supervised" and self.collapse != PretrainConfig.collapse:
            raise ConfigError(
                "collapse with method='supervised': there are no embeddings that could collapse. Leave it out."
            )

    def _check_freezing(self) -> None:
        """Raise ``ConfigError`` for a schedule that says nothing, or more than a compiled step can follow."""
        if self.freeze_until == 0:
            raise ConfigError(
                "freeze_until=0.0 freezes everything before the first step: give more than 0, or freeze='before'."
            )
        if self.compile and len(self.freeze_schedule) > COMPILED_FREEZES:
            raise ConfigError(
                f"freeze_schedule has {len(self.freeze_schedule)} modules, each of which has a compiled step of its "
                f"own once it is frozen, and torch makes 8 of one step: give at most {COMPILED_FREEZES}, such as whole "
                "stages, or do not compile."
            )

    def deep_augmentation(self) -> dict[str, Any]:
        """The options for ``graphaug.rewrite``."""
        options = super().deep_augmentation()
        if self.transform == "dropout":
            return options
        transform = PCA(k=1) if self.transform == "pca" else Mix()
        return {**{k: v for k, v in options.items() if k not in OF_DROPOUT}, "transform": transform}

    def rows_at_once(self) -> int:
        """See `Settings.rows_at_once`; of a part of the batch, and as many rows of an image as the method takes."""
        share = self.batch_size // (world_size(self.devices) * self.accumulate)
        return METHODS[self.method].rows * share

    def of_method(self, method: str) -> PretrainConfig:
        """The same with another method, which has its own of what only some methods have."""
        own = {name: getattr(PretrainConfig, name) for name in METHOD_SETTINGS}
        return replace(self, method=method, **own)

    def head(self, classifier: nn.Module, classes: int) -> nn.Module:
        """What the method puts in the place of a classifier, for data of so many classes."""
        return METHODS[self.method].head(classifier, classes, self.projection or 0, self.hidden)


def versions(*more: str) -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, ``more`` among them."""
    return package_versions("torch", "torchvision", "numpy", "scikit-learn", *more)
