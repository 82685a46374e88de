"""Unsupervised SimCSE with Deep Augmentation: what text brings to a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphaug.contrastive.devices import world_size
from graphaug.contrastive.geometry import POSITIVE
from graphaug.contrastive.runs.life import run_task
from graphaug.contrastive.runs.task import Curve, Task, Training
from graphaug.errors import ConfigError, DataError, did_you_mean
from graphaug.text.config import SimCSEConfig, versions
from graphaug.text.corpus.sentences import Corpus, fewer, fingerprint, read_corpus
from graphaug.text.encoders.files import RUN
from graphaug.text.encoders.load import load_trainable
from graphaug.text.encoders.models import SIZES
from graphaug.text.job import LOOKED_AT, text_training
from graphaug.text.model import Model, build
from graphaug.text.sts.tasks import StsTask, load_tasks

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SimCSEResult", "simcse"]


@dataclass(frozen=True)
class SimCSEResult:
    """``encoder`` as it was after the last step, and its ``tokenizer``; ``metrics``: a dict a line.

    ``result``: the last line's scores, and beside them those of the step that STS-B's development set preferred.
    """

    encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    metrics: list[dict[str, Any]]
    result: dict[str, Any]


def simcse(
    config: SimCSEConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    corpus: Corpus | None = None,
    on_line: Callable[[dict[str, Any]], None] | None = None,
    on_start: Callable[[dict[str, int]], None] | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> SimCSEResult:
    """Train an encoder of sentences.

    All checks come first: nothing is written before the text is read, the encoder is loaded and rewritten, and the
    output directory is free. The caller's random state is left as it was.

    Args:
        config: the settings.
        out: directory for ``config.yaml``, ``metrics.jsonl``, ``encoder/``, with STS data ``best/``, ``result.json``
            and ``curves.png``, and for checkpoints until the run is finished; None writes nothing. ``graphaug sts``
            and ``load_encoder`` read it.
        force: replace another run in ``out``.
        resume: go on with the run in ``out``, if there is one, from its last good checkpoint; on the CPU the result is
            that of an unbroken run, bit for bit. Of a finished run the result is read.
        corpus: the text, already read; by default ``config.text``.
        on_line: called with each line of the metrics.
        on_step: called behind steps, once a second at most; see `run_task`.
        on_start: called before the first step with ``sentences``, ``truncated`` (how many of them are longer than
            ``max_length``) and ``steps_per_epoch``.

    Raises:
        RunDirectoryError: ``out`` holds another run, or cannot be written.
        DataError: the text or the STS data are missing, unreadable, or fewer than a batch or than ``sentences``.
        ConfigError: neither an encoder nor a size, no text, two passes that would be the same, sites that would never
            act, or the run in ``out`` has other settings or another text.
        EncoderError: the encoder cannot be loaded, or has no mask token while ``mlm``.
        InvalidOption: more tokens than the encoder can take.
        CheckpointError: no checkpoint of the run is undamaged.
        LaunchError: the processes of several devices cannot be started.
        TrainingDiverged: the loss became NaN or infinite; the last checkpoint is of before.
        TrainingCollapsed: the embeddings became one point.
        GraphaugError: whatever ``graphaug.rewrite`` raises about the sites.

    """
    counted = ("sentences", "truncated", "steps_per_epoch")
    done = run_task(
        SimCSETask(config, corpus),
        out,
        force=force,
        resume=resume,
        on_line=on_line,
        on_step=on_step,
        on_start=on_start and (lambda counts: on_start({name: counts[name] for name in counted})),
    )
    return SimCSEResult(done.model.encoder, done.model.tokenizer, done.metrics, done.result)


class SimCSETask(Task[Model]):
    """A training on text, scored on STS-B's development set; ``corpus``: already read, by default ``config.text``."""

    unit = "step"
    curve = Curve("stsb_dev", "Spearman on STS-B dev, ×100", 100.0)

    def __init__(self, config: SimCSEConfig, corpus: Corpus | None = None) -> None:
        self.config: SimCSEConfig = config
        self.corpus = corpus
        self.dev: StsTask | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """The sentences, once they are read."""
        assert self.corpus is not None
        return self.corpus.lines

    def check(self, out: Path | None, resume: bool) -> None:
        """Refuse settings without an encoder, and one that lies where the new one goes."""
        _check_encoder(self.config)
        _check_source(self.config, out)

    def read(self) -> None:
        """Read text and development set, and refuse what nothing can be learned from, or said of."""
        config = self.config
        if self.corpus is None:
            if config.text is None:
                raise ConfigError("no text: name a file with a sentence a line, text= (--text).")
            self.corpus = read_corpus(config.text)
        self.corpus = fewer(self.corpus, config.sentences)
        _check_batch(config, len(self.corpus))
        self.dev = None if config.sts is None else check_dev(config.sts)

    def facts(self) -> dict[str, Any]:
        """How many sentences there are, and the text's hash."""
        return fingerprint(self.lines)

    def finished(self, path: Path) -> Model:
        """The encoder of a finished run."""
        return Model(*load_trainable(path / RUN))

    def unused(self) -> bool:
        """Whether all rows of a process's share are stopped, or SimCSE's head is not trained."""
        config = self.config
        rows = config.rows_at_once()
        stopped = config.skips_rows and round(config.subset * rows) == rows
        return stopped or not config.contrastive

    def build(self) -> Model:
        """The encoder that the settings name."""
        return build(self.config, self.lines)

    def training(self, fabric: Fabric, model: Model, fresh: bool) -> AbstractContextManager[Training]:
        """See `text_training`."""
        return text_training(fabric, model, self.config, self.lines, self.dev)

    def versions(self) -> dict[str, str]:
        """Versions of Python and of the packages that a result depends on."""
        return versions()

    def load(self, model: Model, weights: dict[str, Tensor]) -> None:
        """Take trained weights."""
        model.load(weights)

    def evaluate(
        self, model: Model, metrics: list[dict[str, Any]], outcome: dict[str, Any], device: torch.device
    ) -> dict[str, Any]:
        """What the last line says of the encoder, and beside it the best one."""
        line = metrics[-1]
        return {name: line[name] for name in ("step", "loss", *LOOKED_AT) if name in line} | outcome


def check_dev(data: str | os.PathLike[str]) -> StsTask:
    """STS-B's development set, in which there must be what is looked at: positive pairs, and scores that differ.

    Raises:
        DataError: it is missing, unreadable, or lacks that.

    """
    (dev,) = load_tasks(data, "dev", ["STS-B"])
    if max(dev.gold) < POSITIVE or min(dev.gold) == max(dev.gold):
        raise DataError(
            f"STS-B's development set in {str(data)!r} has gold scores from {min(dev.gold):g} to {max(dev.gold):g}: "
            f"alignment needs pairs of {POSITIVE:g} or more, and a correlation different ones."
        )
    return dev


def _check_encoder(config: SimCSEConfig) -> None:
    if config.encoder is None and config.from_config is None:
        raise ConfigError(
            "no encoder: name one with encoder= (--encoder), or from_config= (--from-config) for random weights, one "
            f"of {', '.join(SIZES)}."
        )
    if config.from_config is not None and config.from_config not in SIZES:
        raise ConfigError(
            f"no size is called {config.from_config!r}.{did_you_mean(config.from_config, SIZES)} "
            f"There are {', '.join(SIZES)}."
        )


def _check_source(config: SimCSEConfig, out: Path | None) -> None:
    if out is None or config.encoder is None or not os.path.exists(config.encoder):
        return
    if Path(config.encoder).resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"the encoder {config.encoder!r} lies in the output directory {str(out)!r}, where the new one goes: "
            "choose another output directory."
        )


def _check_batch(config: SimCSEConfig, sentences: int) -> None:
    if config.batch_size > sentences:
        raise DataError(
            f"batch_size={config.batch_size} is larger than the {sentences} sentences of {config.text or 'the text'}: "
            f"give at most {sentences}, or more sentences."
        )
    processes = world_size(config.devices)
    if config.batch_size % processes or config.batch_size // processes < 2:
        raise ConfigError(
            f"batch_size={config.batch_size} for {processes} process(es): each needs the same number of sentences, and "
            f"at least 2. Give a multiple of {processes}, at least {2 * processes}."
        )
