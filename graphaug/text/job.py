"""What trains on text: encoder, head, augmentation, objective and engine put together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from graphaug.contrastive.engine import Engine
from graphaug.contrastive.geometry import pair_geometry
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.contrastive.runs.task import Training, configured_engine
from graphaug.errors import EncoderError
from graphaug.text.config import SimCSEConfig
from graphaug.text.corpus.crops import Crops
from graphaug.text.corpus.masking import Masking
from graphaug.text.encoders.encoder import TextEncoder, ends, padding_id
from graphaug.text.encoders.files import RUN
from graphaug.text.encoders.load import notes_of
from graphaug.text.model import Model, sizes, tokenized
from graphaug.text.objective import TextFeed, TextObjective
from graphaug.text.passes import augmented, check_passes
from graphaug.text.simcse import SimCSE
from graphaug.text.sts.evaluate import sts_dev
from graphaug.text.sts.tasks import StsTask

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BEST = "best"
"""The directory in a run's directory with the encoder that STS-B's development set preferred."""

LOOKED_AT = ("stsb_dev", "alignment", "uniformity")
"""What a line of the metrics says about STS-B's development set."""


@contextmanager
def text_training(
    fabric: Fabric, model: Model, config: SimCSEConfig, lines: Sequence[str], dev: StsTask | None
) -> Iterator[TextTraining]:
    """An encoder with SimCSE's head and its augmentation, and all that trains it.

    Raises:
        ConfigError: two passes that would be the same, or sites that would never act.
        InvalidOption: more tokens than the encoder can take.
        GraphaugError: what ``graphaug.rewrite`` raises about the sites.

    """
    check_passes(model.encoder, config)
    reader = TextEncoder(model.encoder, model.tokenizer)
    rows, truncated = tokenized(model, lines, config.max_length)
    masking = Masking(model.tokenizer, config.mlm_rate) if config.mlm else None
    wrapped = SimCSE(model.encoder).to(fabric.device)
    if model.head is not None:
        model.head.to(fabric.device)
    crops = Crops(config.crop, ends(model.tokenizer)) if config.crop < 1 else None
    feed = TextFeed(rows, config, sizes(config), padding_id(model.tokenizer), fabric.device, masking, crops)
    with augmented(wrapped, model, config, feed) as objective:
        engine = build_engine(fabric, objective, feed, config)
        counts = {"sentences": len(rows), "truncated": truncated, "steps_per_epoch": feed.steps}
        counts["tokens"] = len(model.tokenizer)
        yield TextTraining(engine, counts, _plans(config, objective), model, reader, dev)


def build_engine(fabric: Fabric, objective: TextObjective, feed: TextFeed, config: SimCSEConfig) -> Engine:
    """The engine of a run."""
    return configured_engine(
        fabric, objective, feed, config, dynamic=False, clip=config.clip, line_every=config.report_every
    )


def _plans(config: SimCSEConfig, objective: TextObjective) -> dict[str, str]:
    networks: dict[str, nn.Module | None] = {}
    if config.contrastive:
        networks["plan"] = objective.network
    if config.mlm:
        networks["plan_of_masked_language"] = objective.reader
    return {name: str(getattr(net, "plan", "no Deep Augmentation")) for name, net in networks.items()}


@dataclass
class TextTraining(Training):
    """A training on text; ``reader`` encodes with the ``model``, and ``best`` is what ``dev`` preferred till now."""

    engine: Engine
    counts: dict[str, int]
    plans: dict[str, str]
    model: Model
    reader: TextEncoder
    dev: StsTask | None
    best: dict[str, Any] = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """The weights of the encoder, and of masked language's head."""
        return self.model.state()

    def state(self) -> dict[str, Any]:
        """The best scores till now."""
        return {"best": self.best}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the best scores."""
        self.best = dict(state["best"])

    def settle(self, run: RunDirectory) -> None:
        """Let ``best/`` and what is known of it be of one step: a kill may have left a later one than the checkpoint's.

        What is dropped is found again on the way; until then the best is the best since the checkpoint.
        """
        path = run.path / BEST
        if self.best.get("step") == notes_of(path).get("step"):
            return
        self.best = {}
        if path.is_dir():
            shutil.rmtree(path)

    def look(self, line: dict[str, Any], run: RunDirectory | None) -> dict[str, Any]:
        """Scores on the development set, if there is one; the encoder is kept if they are the best till now."""
        scores = self.scores(self.dev) if self.dev is not None else {}
        if scores.get("stsb_dev", -2.0) > self.best.get("stsb_dev", -2.0):
            self.best = {"step": line["step"], **scores}
            if run is not None:
                self.model.save(run.path / BEST, step=line["step"])
        return scores

    def scores(self, dev: StsTask) -> dict[str, float]:
        """Spearman, alignment and uniformity on the development pairs; nothing where all vectors are equal."""
        sentences = list(dict.fromkeys((*dev.first, *dev.second)))
        number = {text: i for i, text in enumerate(sentences)}
        try:
            vectors = self.reader.encode(sentences)  # once for both
            encode = lambda texts: vectors[[number[text] for text in texts]]  # noqa: E731
            geometry = pair_geometry(encode, dev.first, dev.second, dev.gold)
            scores = (sts_dev(encode, dev), *map(float, geometry))
        except EncoderError:  # whether a collapse ends the run is decided by its spread
            return {}
        return dict(zip(LOOKED_AT, scores, strict=True))

    def snapshot(self, run: RunDirectory, at: int) -> None:
        """Write the encoder as ``load_encoder`` reads it."""
        self.model.save(run.path / "snapshots" / f"step-{at:07d}", step=at)

    def write(self, run: RunDirectory) -> None:
        """Write ``encoder/``."""
        self.model.save(run.path / RUN)

    def outcome(self) -> dict[str, Any]:
        """The best scores, and their step."""
        return {"best_on_dev": self.best} if self.best else {}
