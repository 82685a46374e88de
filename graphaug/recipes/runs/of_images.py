"""Runs on images: ``graphaug pretrain``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.contrastive.augmented import deep_augmented
from graphaug.errors import ConfigError
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.fingerprint import fingerprint
from graphaug.vision.data.images import fewer, load
from graphaug.vision.models import build_model, classifier_path, classifier_replaced
from graphaug.vision.pretrain import ImageTask, pretrain
from graphaug.vision.trial import check_model, example_images

CLASSES = 10
"""Of the heads that models are checked with: the number says nothing."""


class ImageRuns:
    """See `graphaug.recipes.runs.kinds.Kind`."""

    settings = PretrainConfig

    def data(self, config: PretrainConfig) -> str:
        """As they were named."""
        return config.data

    def sites(self, base: PretrainConfig) -> list[str | int]:
        """The numbered sites.

        Raises:
            ConfigError: the model has none.

        """
        from graphaug.sites import structure_of

        with _headed(PretrainConfig(model=base.model, size=base.size or 32)) as (network, example):
            stages = sorted(structure_of(network, (example,)).stages)
        if not stages:
            raise ConfigError(f"{base.model} has no numbered sites: name some with at= (--at).")
        return list(stages)

    def check(self, configs: Sequence[PretrainConfig]) -> None:
        """Refuse settings that a model cannot be rewritten by.

        Raises:
            ConfigError: no such model, or one that cannot take the images' size.
            GraphaugError: what ``graphaug.rewrite`` raises about a site.

        """
        for method in dict.fromkeys(config.method for config in configs):
            _check_models([config for config in configs if config.method == method])

    def facts(self, config: PretrainConfig) -> dict[str, Any]:
        """A hash of images and labels, and how many there are."""
        task = ImageTask(config)
        task.read()
        return task.facts()

    def facts_of_other(self, config: PretrainConfig, data: str) -> dict[str, Any]:
        """The same of other images, as many."""
        return fingerprint(fewer(load(data, size=config.size), config.images))

    def train(
        self, config: PretrainConfig, out: Path
    ) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
        """Pretrain and probe."""
        done = pretrain(config, out, resume=True)
        return done.result, done.metrics

    def carry_over(self, config: PretrainConfig, out: Path, data: str, epochs: int) -> dict[str, float]:
        """The encoder on other images, frozen and fine-tuned."""
        from graphaug.vision.probes.probe import transfer_run

        return transfer_run(out, fewer(load(data, size=config.size), config.images), epochs=epochs)

    def look(self, config: PretrainConfig, out: Path, what: str) -> dict[str, float]:
        """``"snapshots"``: a probe of each; ``"layers"``: maps of similarity. See `graphaug.recipes.runs.looks`."""
        from graphaug.recipes.runs.looks import layers, snapshots

        return {"snapshots": snapshots, "layers": layers}[what](config, out)


def _check_models(configs: Sequence[PretrainConfig]) -> None:
    """Check settings with one head."""
    first = configs[0]
    with _headed(first) as (network, example):
        check_model(network, first.size or 32, first.model, first.projection or CLASSES)
        for config in configs:
            with deep_augmented(network, config, lambda: example, config.model):
                pass


@contextmanager
def _headed(config: PretrainConfig) -> Iterator[tuple[nn.Module, Tensor]]:
    """A model with the head that it is trained with, and images for it; no random number is used up."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(config.model)
        head = config.head(model.get_submodule(classifier_path(model)), CLASSES)
    with classifier_replaced(model, head):
        yield model, example_images(model, config.size or 32)
