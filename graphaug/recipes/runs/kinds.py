"""What the runs of a figure are of: a kind has its settings, and knows how they are checked, made and told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from graphaug.contrastive.config.settings import Settings
from graphaug.errors import ConfigError
from graphaug.recipes.plan import Site
from graphaug.recipes.runs.of_graphs import GraphRuns
from graphaug.recipes.runs.of_images import ImageRuns
from graphaug.recipes.runs.of_text import TextRuns

Made = tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]
"""What a run ended with, and a line of metrics an epoch."""


class Kind(Protocol):
    """What a sweep asks of the runs that it makes."""

    @property
    def settings(self) -> type[Settings]:
        """The class of their settings."""

    def data(self, config: Any) -> str:
        """What the data of a run are called: of one name they are read once for all runs."""

    def sites(self, base: Any) -> list[Site]:
        """The sites that the paper numbers in the model of these settings, from the input to the head."""

    def check(self, configs: Sequence[Any]) -> None:
        """Refuse settings that a model cannot be rewritten by; nothing is trained."""

    def facts(self, config: Any) -> dict[str, Any]:
        """What tells a run's data from others; they are read for it, and too few for a batch are refused."""

    def facts_of_other(self, config: Any, data: str) -> dict[str, Any]:
        """The same of the data that an encoder is carried over to."""

    def train(self, config: Any, out: Path) -> Made:
        """Make a run, or go on with it."""

    def carry_over(self, config: Any, out: Path, data: str, epochs: int) -> dict[str, float]:
        """Accuracies of a finished run's encoder on other data."""

    def look(self, config: Any, out: Path, what: str) -> dict[str, float]:
        """More numbers of a finished run: ``"snapshots"`` or ``"layers"``, see `ImageRuns.look`."""


def kind_of(config: Settings) -> Kind:
    """The kind of runs that settings are of."""
    for kind in (ImageRuns(), GraphRuns(), TextRuns()):
        if isinstance(config, kind.settings):
            return kind
    raise ConfigError(f"a sweep makes no runs of {type(config).__name__}.")
