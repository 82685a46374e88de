"""Runs on text: ``graphaug simcse``, and the seven STS tasks of what it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from graphaug.errors import ConfigError, EncoderError, TrainingCollapsed
from graphaug.select.stages import paper_stages
from graphaug.text.config import SimCSEConfig
from graphaug.text.encoders.encoder import TextEncoder, padding_id
from graphaug.text.model import Model, build, sizes, tokenized
from graphaug.text.objective import TextFeed
from graphaug.text.passes import augmented, check_passes
from graphaug.text.simcse import SimCSE
from graphaug.text.sts.evaluate import evaluate
from graphaug.text.sts.report import quiet
from graphaug.text.sts.tasks import fingerprint, load_tasks
from graphaug.text.train import SimCSETask, simcse

EXAMPLE = ("any words", "a few more words", "other words", "the last words")
"""Sentences that sites are asked for with: which they are says nothing."""


class TextRuns:
    """See `graphaug.recipes.runs.kinds.Kind`."""

    settings = SimCSEConfig

    def data(self, config: SimCSEConfig) -> str:
        """The text, and the STS tasks."""
        return f"{config.text}, {config.sts}"

    def sites(self, base: SimCSEConfig) -> list[str | int]:
        """Every block, by the paper's numbers; the embeddings, 0, and the head have to be asked for.

        Raises:
            ConfigError: the encoder has no numbered blocks.
            EncoderError: it cannot be loaded.

        """
        blocks = sorted(paper_stages(SimCSE(_model(base).encoder)))[1:-1]  # between embeddings and head
        if not blocks:
            raise ConfigError(
                f"{base.encoder or base.from_config} has no numbered sites: name some with at= (--at)."
            )
        return [*blocks]

    def check(self, configs: Sequence[SimCSEConfig]) -> None:
        """Refuse settings that an encoder cannot be rewritten by.

        Raises:
            EncoderError: the encoder cannot be loaded, or a package is missing.
            ConfigError: two passes that would be the same, or sites that would never act.
            InvalidOption: more tokens than the encoder can take.
            GraphaugError: what ``graphaug.rewrite`` raises about a site.

        """
        for mlm in dict.fromkeys(config.mlm for config in configs):
            group = [config for config in configs if config.mlm == mlm]
            model = _model(group[0])
            wrapped = SimCSE(model.encoder)
            rows, _ = tokenized(model, EXAMPLE, group[0].max_length)
            for config in group:
                check_passes(model.encoder, config)
                feed = TextFeed(rows, config, sizes(config), padding_id(model.tokenizer), torch.device("cpu"))
                with augmented(wrapped, model, config, feed):
                    pass

    def facts(self, config: SimCSEConfig) -> dict[str, Any]:
        """A hash of the sentences and one of the seven tasks, and how many there are."""
        task = SimCSETask(config)
        task.read()
        return task.facts() | fingerprint(load_tasks(_sts(config)))

    def facts_of_other(self, config: SimCSEConfig, data: str) -> dict[str, Any]:
        """Nothing is carried over: every run is scored on seven tasks already.

        Raises:
            ConfigError: always.

        """
        raise ConfigError("encoders of text are not carried over to other data.")

    def train(self, config: SimCSEConfig, out: Path) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
        """Train, and score the encoder of the last step: ``sts`` has each task's Spearman correlation in [-1, 1].

        Raises:
            TrainingCollapsed: it gives every sentence the same vector, or none that is finite.

        """
        quiet()
        tasks = load_tasks(_sts(config))
        done = simcse(config, out, resume=True)
        try:
            scores = evaluate(TextEncoder(done.encoder, done.tokenizer).encode, tasks)
        except EncoderError as error:
            raise TrainingCollapsed(str(error)) from error
        return {**done.result, "sts": {"average": scores.average, **scores.spearman}}, done.metrics

    def carry_over(self, config: SimCSEConfig, out: Path, data: str, epochs: int) -> dict[str, float]:
        """Nothing is carried over; see `facts_of_other`."""
        return dict(self.facts_of_other(config, data))

    def look(self, config: SimCSEConfig, out: Path, what: str) -> dict[str, float]:
        """Nothing more is asked of a run yet.

        Raises:
            ConfigError: always.

        """
        raise ConfigError(f"of encoders of text no figure asks for {what} yet.")


def _model(config: SimCSEConfig) -> Model:
    """The encoder of some settings, of a size with a tokenizer of any words; no random number is used up."""
    quiet()
    SimCSETask(config).check(None, False)
    with torch.random.fork_rng(devices=[]):
        return build(config, EXAMPLE)


def _sts(config: SimCSEConfig) -> str:
    if config.sts is None:
        raise ConfigError("no STS tasks to score a run on: name their directory, sts= (--sts).")
    return config.sts
