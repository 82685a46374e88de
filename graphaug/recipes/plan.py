"""What a figure is made of: its settings, the claims about them, and the sizes at which it can be run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from graphaug.errors import ConfigError, did_you_mean
from graphaug.graphs.config import GraphsConfig
from graphaug.recipes.choice import CHOSEN_BY, Choice
from graphaug.recipes.claims import Claim
from graphaug.text.config import SimCSEConfig
from graphaug.text.encoders.models import SIZES
from graphaug.text.presets import PRESETS as TEXT_PRESETS
from graphaug.vision.config import PretrainConfig
from graphaug.vision.presets import PRESETS

Site = str | int

SCALES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "model": "resnet18-cifar:8",
        "data": "fashion-mnist",
        "images": 1536,
        "epochs": 4,
        "batch_size": 64,
        "lr": 0.1,
        "size": 28,
        "channels_last": True,
    },
    "small": {
        "model": "resnet18-cifar:16",
        "data": "fashion-mnist",
        "images": 10_000,
        "epochs": 40,
        "batch_size": 128,
        "lr": 0.1,
        "size": 28,
        "channels_last": True,
    },
    "full": PRESETS["simclr-cifar100"],
}
"""Settings of every run of a figure: minutes to an hour on a core, a night, and the paper's own."""

GRAPH_SCALES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"epochs": 10, "layers": 3, "width": 32, "batch_size": 128},
    "small": {"epochs": 40, "layers": 4, "width": 64, "batch_size": 128},
}

TEXT_SCALES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "from_config": "bert-tiny",
        "sentences": 768,
        "epochs": 1,
        "batch_size": 64,
        "lr": 2e-4,
        "max_length": 16,
        "checkpoint_every": 0,
    },
    "small": {
        "from_config": "bert-mini",
        "sentences": 10_000,
        "epochs": 1,
        "batch_size": 64,
        "lr": 2e-4,
        "max_length": 32,
        "checkpoint_every": 50,
    },
    "full": TEXT_PRESETS["simcse-bert-base"],
}

MEASURES: Mapping[str, str] = {
    "linear": "linear probe",
    "few_labels.mean": "few labels",
    "knn": "nearest neighbours",
}
"""The accuracies of a run, by their names in ``result.json``; claims are tested on the first."""


@dataclass(frozen=True)
class Setting:
    """One way to train: its name, and its settings but for the seed.

    ``transfer``: the data that its encoder is carried over to. ``begins_with``: the name of the setting whose run of
    the same seed gives the weights. ``looks``: what else is asked of a finished run, by the names of
    `graphaug.recipes.runs.kinds.Kind.look`.
    """

    name: str
    config: Any
    transfer: str | None = None
    begins_with: str | None = None
    looks: str | None = None


@dataclass(frozen=True)
class Plan:
    """All that is run for a figure, and what is asked of it.

    ``lines``: by the name of a line in the picture, the setting at each mark of its axis; ``level``: settings that are
    drawn across. ``measures``: the figures to show, by their names in an outcome. ``choices``: what is chosen, by
    ``chosen_by``, where a validation part is held out. ``scores``: what the figures are, a hundred times of which is
    shown; ``unit``: the same, short; ``tested_on``: what they were read from, and ``read`` when. ``drawn``: by mark,
    the figure that the picture has there, where it is not the one that claims are tested on; ``axis``: what the marks
    are. ``maps``: settings whose maps of similarity between layers are drawn.
    """

    settings: tuple[Setting, ...]
    claims: tuple[Claim, ...]
    baseline: Mapping[str, str]
    marks: tuple[str, ...]
    lines: Mapping[str, Mapping[str, str]]
    level: tuple[str, ...]
    measures: Mapping[str, str]
    choices: tuple[Choice, ...] = ()
    chosen_by: str = CHOSEN_BY
    scores: str = "accuracies in %"
    unit: str = "%"
    tested_on: str = "test images"
    read: str = "once, at its end"
    drawn: Mapping[str, str] = field(default_factory=dict)
    axis: str = "site"
    maps: tuple[str, ...] = ()

    @property
    def measure(self) -> str:
        """The one that the claims are tested on."""
        return next(iter(self.measures))

    def folder(self, name: str, seed: int) -> Path:
        """Of a setting's run, in the directory of the sweep."""
        number = [s.name for s in self.settings].index(name)
        return Path("runs") / f"{number:02}-{_slug(name)}-seed{seed}"

    def spoken(self, figures: Mapping[str, float]) -> str:
        """The measure that the claims are tested on, of a run."""
        percent = "%" if self.unit == "%" else ""
        return f"{self.measures[self.measure]} {100 * figures[self.measure]:.1f}{percent}"


def _slug(name: str) -> str:
    """A setting's name as that of a directory."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-").lower()


def image_settings(
    scale: str,
    model: str | None = None,
    epochs: int | None = None,
    images: int | None = None,
    validation: float = 0.0,
) -> PretrainConfig:
    """The settings that all runs of a figure on images share.

    Raises:
        ConfigError: no such scale, or a value outside its domain.

    """
    base = PretrainConfig.from_dict(_of_scale(scale, SCALES))
    found: PretrainConfig = _changed(base, epochs, model=model, images=images, validation=validation)
    return found


def graph_settings(
    scale: str,
    model: str | None = None,
    epochs: int | None = None,
    images: int | None = None,
    validation: float = 0.0,
) -> GraphsConfig:
    """The same on graphs.

    Raises:
        ConfigError: no such scale, a value outside its domain, or an option of images.

    """
    for name, value in (("model", model), ("images", images)):
        if value is not None:
            raise ConfigError(f"{name}={value!r}: a figure on graphs has a GIN, and all graphs of its data.")
    if scale == "full":
        raise ConfigError(
            f"of graphs there is no full size: what later versions used is not known here. There are "
            f"{', '.join(GRAPH_SCALES)}."
        )
    base = GraphsConfig.from_dict(_of_scale(scale, GRAPH_SCALES))
    found: GraphsConfig = _changed(base, epochs, validation=validation)
    return found


def text_settings(
    scale: str,
    model: str | None = None,
    epochs: int | None = None,
    images: int | None = None,
    validation: float = 0.0,
) -> SimCSEConfig:
    """The same on text, ``model`` a size with random weights or an encoder; the data are not part of them.

    Raises:
        ConfigError: no such scale, a value outside its domain, or an option of images.

    """
    if images is not None:
        raise ConfigError(f"images={images!r}: a figure on text has sentences, as many as its scale says.")
    if validation:
        raise ConfigError(
            f"validation={validation!r}: of text nothing is held out, and nothing is chosen by labels."
        )
    base = SimCSEConfig.from_dict(_of_scale(scale, TEXT_SCALES))
    if model is not None:
        sized = model in SIZES
        base = replace(base, from_config=model if sized else None, encoder=None if sized else model)
    found: SimCSEConfig = _changed(base, epochs)
    return found


def _changed(base: Any, epochs: int | None, **given: Any) -> Any:
    """Settings with what was given; of a shorter run the warm-up is shorter."""
    if epochs is not None:
        given |= {"epochs": epochs, "warmup": base.warmup * min(1.0, epochs / base.epochs)}
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def _of_scale(scale: str, scales: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if scale not in scales:
        raise ConfigError(
            f"no scale is called {scale!r}.{did_you_mean(scale, scales)} There are {', '.join(scales)}."
        )
    return scales[scale]


@dataclass(frozen=True)
class Figure:
    """A figure or table of the paper.

    Attributes:
        name: as it is typed; each of ``also`` stands for it too.
        shows: what is in it.
        claims: what it claims, or what is asked of it, for the list.
        make: from the base settings, the sites and the data its plan; None where it cannot be run yet.
        missing: why not.
        data: the data sets it takes by default, as many as it takes; at full size, ``full_data``.
        asks: what its data are, in their order, where there are none by default.
        inner: by default the last numbered site, the head, is left out: nothing lies behind it.
    """

    name: str
    shows: str
    claims: str
    make: Callable[[Any, Sequence[Site], Sequence[str]], Plan] | None = None
    also: tuple[str, ...] = ()
    missing: str = ""
    data: tuple[str, ...] = ()
    full_data: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    base: Callable[..., Any] = image_settings
    inner: bool = False

    def default_data(self, scale: str) -> tuple[str, ...]:
        """The data sets it is run on where none are named."""
        return self.full_data if scale == "full" else self.data

    def check_data(self, chosen: Sequence[str]) -> None:
        """Refuse another number of data sets than it takes.

        Raises:
            ConfigError: too many or too few.

        """
        count = len(self.data or self.asks)
        if len(set(chosen)) != count:
            what = f" ({' and '.join(self.asks)})" if self.asks else ""
            named = ": " + ", ".join(dict.fromkeys(chosen)) if chosen else ""
            raise ConfigError(f"{self.name} takes {count} data set(s){what}, not {len(set(chosen))}{named}.")
