"""The settings of a training on graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from graphaug.contrastive.config.settings import Settings, package_versions, setting
from graphaug.contrastive.losses import LOSSES
from graphaug.errors import ConfigError, did_you_mean

METHODS: dict[str, tuple[str, ...]] = {"graphcl": ("views", "ratio"), "simgrace": ("eta",)}
"""How the two views of a graph come to differ, and the settings that only this one has."""

VIEWS = ("drop", "edges", "mask", "subgraph")
TASKS = ("auto", "classes", "values", "none")


@dataclass(frozen=True)
class GraphsConfig(Settings):
    """What a run does; equal configurations and versions give equal numbers on the CPU.

    Raises:
        ConfigError: a value of the wrong type or outside its domain.

    """

    data: str = setting("digits", "digits, a file .smi or .sdf, or a folder in TU's format.")
    labels: str | None = setting(
        None, "Of .smi: a CSV file, by default the one beside it. Of .sdf: a tag, by default the only one."
    )
    task: str = setting("auto", "auto, classes, values, or none to train without labels.")
    strict: bool = setting(False, "Refuse unreadable molecules instead of skipping them.")
    test: float = setting(0.2, "Share of the graphs that nothing is trained on, drawn by the seed.")
    validation: float = setting(
        0.0, "Share of the graphs held out besides, to choose settings by; the result has their scores."
    )
    method: str = setting("graphcl", "graphcl or simgrace.")
    views: tuple[str, ...] = setting(
        VIEWS, "Of graphcl: each view is one of these at random. Repeatable.", choices=VIEWS
    )
    ratio: float = setting(0.2, "Of graphcl: share of the nodes or edges that a view changes.")
    eta: float = setting(
        1.0, "Of simgrace: noise of the weights in units of their standard deviation (its eq. 5)."
    )
    width: int = setting(32, "Features of a node in every layer.")
    layers: int = setting(3, "Layers of the GIN.")
    loss: str = setting("nt_xent", "nt_xent (SimCLR), info_nce (the paper's Eq. 1) or info_nce_symmetric.")
    batch_size: int = setting(128, "Graphs a step; each is seen twice.")
    optimizer: str = setting("adamw", "adamw, sgd or lars.")
    lr: float = setting(1e-3, "Peak learning rate.")
    temperature: float = setting(0.2, "Temperature of the loss, in units of cosine similarity.")
    checkpoint_every: float = setting(1.0, "Epochs between checkpoints, whole or a fraction; 0 makes none.")
    snapshot_every: int = setting(
        0, "Keep the encoder every so many epochs, and the untrained one; 0 for none."
    )

    FREE: ClassVar[tuple[str, ...]] = ("strict", "checkpoint_every", "keep", "snapshot_every", "collapse")
    REFUSED: ClassVar[tuple[str, ...]] = ("deep_views", "compile")

    def check(self) -> None:
        """Check the values that no other part of the library checks."""
        super().check()
        self.at_least(width=1, layers=1, snapshot_every=0)
        self.not_negative("checkpoint_every", "eta")
        self.shares("test", "validation", "ratio")
        self.one_of(method=METHODS, task=TASKS, loss=LOSSES)
        for view in self.views:
            if view not in VIEWS:
                raise ConfigError(
                    f"no view is called {view!r}.{did_you_mean(view, VIEWS)} There are {', '.join(VIEWS)}."
                )
        if not self.views:
            raise ConfigError(f"views is empty: give some of {', '.join(VIEWS)}.")
        if not 0 < self.test < 1 or self.test + self.validation >= 1:
            raise ConfigError(
                f"test={self.test!r} with validation={self.validation!r}: there has to be a test part, and a rest."
            )
        if self.task == "none" and (self.validation or self.labels is not None):
            raise ConfigError(
                "validation and labels do nothing with task='none', which trains without labels: leave them out."
            )
        if self.labels is not None and not self.data.lower().endswith((".smi", ".sdf")):
            raise ConfigError(
                f"labels={self.labels!r} with data={self.data!r}: only files .smi and .sdf have labels elsewhere. "
                "Leave it out."
            )
        self._check_engine()

    def _check_engine(self) -> None:
        """Refuse what a batch of graphs cannot be computed with."""
        if self.deep_views:
            raise ConfigError(
                "deep_views=True with graphs: a batch tells its graphs by an input, which a site cannot double. "
                "Leave it out."
            )
        if self.compile:
            raise ConfigError(
                "compile=True with graphs: every batch has another number of nodes and edges. Leave it out."
            )
        if self.devices > 1:
            raise ConfigError(f"devices={self.devices}: graphs are trained on by one process. Leave it out.")
        if self.method == "simgrace" and self.pairing != "any":
            raise ConfigError(
                f"pairing={self.pairing!r} with method='simgrace': its views are two passes, and not halves of one "
                "batch. Leave it out."
            )

    def rows_at_once(self) -> int:
        """See `Settings.rows_at_once`; the views of simgrace are two passes."""
        return self.batch_size if self.method == "simgrace" else super().rows_at_once()

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Refuse settings that were given, and that belong to the other method."""
        for method, own in METHODS.items():
            idle = [name for name in own if name in given and method != self.method]
            if idle:
                raise ConfigError(f"{', '.join(idle)} with method={self.method!r}: only {method} has that.")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return package_versions("torch", "torch-geometric", "rdkit", "numpy", "scikit-learn")
