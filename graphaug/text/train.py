"""Unsupervised SimCSE with Deep Augmentation: the pieces of a run put together, and its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graphaug.contrastive.devices import is_first_process, launch, make_fabric, world_size
from graphaug.contrastive.runs.checkpoints import Checkpoints
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.errors import ConfigError, DataError, did_you_mean
from graphaug.text.config import SimCSEConfig
from graphaug.text.corpus.sentences import Corpus, fingerprint, read_corpus
from graphaug.text.encoders.load import RUN, load_trainable
from graphaug.text.encoders.models import SIZES
from graphaug.text.job import Model, build, train
from graphaug.text.sts.tasks import StsTask, load_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SimCSEResult", "simcse"]

POSITIVE = 4.0
"""Pairs of at least this gold score are alignment's: the threshold of `graphaug.analysis.geometry.pair_geometry`."""


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
        on_start: called before the first step with ``sentences``, ``truncated`` (how many of them are longer than
            ``max_length``) and ``steps_per_epoch``.

    Raises:
        RunDirectoryError: ``out`` holds another run, or cannot be written.
        DataError: the text or the STS data are missing, unreadable, or fewer than a batch.
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
    first = is_first_process()
    run = RunDirectory(out, force, resume) if out is not None and first else None
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
    _check_source(config, out)
    if corpus is None:
        if config.text is None:
            raise ConfigError("no text: name a file with a sentence a line, text= (--text).")
        corpus = read_corpus(config.text)
    _check_batch(config, len(corpus))
    dev = None if config.sts is None else check_dev(config.sts)
    if resume and out is not None:
        done = RunDirectory.at(out).resumed(SimCSEConfig, config.to_dict(), fingerprint(corpus.lines))
        if done is not None:
            encoder, tokenizer, _ = load_trainable(Path(out) / RUN)
            return SimCSEResult(encoder, tokenizer, done[1], done[0])
    fabric = make_fabric(config.devices, config.accelerator, config.precision, unused=_unused(config))
    job = (config, corpus.lines, dev, None if out is None else str(out), resume)

    def on_event(event: dict[str, Any]) -> None:
        call = on_line if "step" in event else on_start
        if call is not None:
            call(event)

    state, metrics, result = launch(fabric, train, *job, on_event=on_event)
    model = _fresh(config, corpus)
    model.load(state)
    if run is not None:
        run.figure(lambda path: _plot(metrics, path))
        run.result(result)
        Checkpoints(run.checkpoints).clear()
    return SimCSEResult(model.encoder, model.tokenizer, metrics, result)


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


def _fresh(config: SimCSEConfig, corpus: Corpus) -> Model:
    """Build a model and leave torch's generators as they were."""
    with torch.random.fork_rng(devices=[]):
        return build(config, corpus.lines)


def _check_source(config: SimCSEConfig, out: str | os.PathLike[str] | None) -> None:
    if out is None or config.encoder is None or not os.path.exists(config.encoder):
        return
    if Path(config.encoder).resolve().is_relative_to(Path(out).resolve()):
        raise ConfigError(
            f"the encoder {config.encoder!r} lies in the output directory {str(out)!r}, where the new one goes: "
            "choose another output directory."
        )


def _check_batch(config: SimCSEConfig, sentences: int) -> None:
    if config.batch_size > sentences:
        raise DataError(
            f"a batch of {config.batch_size} is larger than the {sentences} sentences of {config.text or 'the text'}."
        )
    processes = world_size(config.devices)
    if config.batch_size % processes or config.batch_size // processes < 2:
        raise ConfigError(
            f"batch_size={config.batch_size} for {processes} process(es): each needs the same number of sentences, and "
            f"at least 2. Give a multiple of {processes}, at least {2 * processes}."
        )


def _unused(config: SimCSEConfig) -> bool:
    """Whether a step may leave parameters without a gradient."""
    rows = 2 * (config.cache or config.batch_size // world_size(config.devices))
    stopped = config.stop_grad and config.backward != "dense" and round(config.subset * rows) == rows
    return stopped or not config.contrastive


def _plot(metrics: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    steps = [line["step"] for line in metrics]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats)")
    axes.plot(steps, [line["loss"] for line in metrics], marker="." if len(metrics) < 50 else "")
    scored = [line for line in metrics if "stsb_dev" in line]
    if scored:
        scores = axes.twinx()
        points = ([line["step"] for line in scored], [100 * line["stsb_dev"] for line in scored])
        scores.plot(*points, color="0.6", linestyle="--")
        scores.set_ylabel("Spearman on STS-B dev, ×100 (dashed)")
    figure.savefig(path, dpi=120)
