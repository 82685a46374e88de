"""Runs on graphs: ``graphaug graphs``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from graphaug.contrastive.augmented import deep_augmented
from graphaug.errors import ConfigError
from graphaug.graphs.config import GraphsConfig
from graphaug.graphs.encoder import GIN
from graphaug.graphs.job import rings
from graphaug.graphs.train import GraphTask, train_graphs

FEATURES = 4
"""Of a node, where sites are asked for: their number says nothing."""


class GraphRuns:
    """See `graphaug.recipes.runs.kinds.Kind`."""

    settings = GraphsConfig

    def data(self, config: GraphsConfig) -> str:
        """As they were named."""
        return config.data

    def sites(self, base: GraphsConfig) -> list[str | int]:
        """Every layer, by the paper's numbers; 0 is what enters the first."""
        return list(range(base.layers + 1))

    def check(self, configs: Sequence[GraphsConfig]) -> None:
        """Refuse settings that an encoder cannot be rewritten by.

        Raises:
            ConfigError: a package is missing.
            GraphaugError: what ``graphaug.rewrite`` raises about a site.

        """
        device = torch.device("cpu")
        for config in configs:
            with torch.random.fork_rng(devices=[]):
                model = GIN(FEATURES, config.width, config.layers)
            with deep_augmented(
                model, config, lambda: rings(FEATURES).inputs(device), "the encoder", rows="batch"
            ):
                pass

    def facts(self, config: GraphsConfig) -> dict[str, Any]:
        """A hash of graphs and labels, and how many there are."""
        task = GraphTask(config)
        task.read()
        return task.facts()

    def facts_of_other(self, config: GraphsConfig, data: str) -> dict[str, Any]:
        """Nothing is carried over yet.

        Raises:
            ConfigError: always.

        """
        raise ConfigError("encoders of graphs are not carried over to other data.")

    def train(self, config: GraphsConfig, out: Path) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
        """Train and probe."""
        done = train_graphs(config, out, resume=True)
        return done.result, done.metrics

    def carry_over(self, config: GraphsConfig, out: Path, data: str, epochs: int) -> dict[str, float]:
        """Nothing is carried over yet; see `facts_of_other`."""
        return dict(self.facts_of_other(config, data))

    def look(self, config: GraphsConfig, out: Path, what: str) -> dict[str, float]:
        """Nothing more is asked of a run yet.

        Raises:
            ConfigError: always.

        """
        raise ConfigError(f"of encoders of graphs no figure asks for {what} yet.")
