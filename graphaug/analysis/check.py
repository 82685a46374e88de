"""The test of the advice: short pretrainings at every site from one start, and whether the advised ones are best."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

import numpy as np

from graphaug.analysis.advise import Advice
from graphaug.contrastive.runs.sweep import Executor
from graphaug.errors import DataError, InvalidOption, did_you_mean
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.images import ImageData
from graphaug.vision.pretrain import pretrain

METRICS = ("linear", "few_labels", "knn")


@dataclass(frozen=True)
class Trial:
    """A setting that was tried: accuracies in [0, 1], one for each seed, and its score in the advice."""

    at: str
    stop_grad: bool
    score: float
    accuracies: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Mean over the seeds."""
        return mean(self.accuracies)


@dataclass(frozen=True)
class Check:
    """What came out.

    Attributes:
        metric: which accuracy.
        epochs: of every trial.
        plain: accuracies without Deep Augmentation, one for each seed.
        trials: every site with and without stop-gradient, the best first.
        correlation: Spearman's, between score and mean accuracy; None where all scores are equal.
        low, high: its 95 % interval, by bootstrap over the settings.
        p_value: of a correlation at least as large if the advice were drawn by lot (permutation test).
    """

    metric: str
    epochs: int
    plain: tuple[float, ...]
    trials: tuple[Trial, ...]
    correlation: float | None
    low: float | None
    high: float | None
    p_value: float | None

    def __str__(self) -> str:
        width = max(len("(plain)"), *(len(t.at) for t in self.trials))
        lines = [f"rank  {'site'.ljust(width)}  stop  {self.metric}  advised"]
        rows = [(t.at, "yes" if t.stop_grad else "no", t.accuracy, t.score) for t in self.trials]
        ranked = sorted([*rows, ("(plain)", "–", mean(self.plain), 0.0)], key=lambda r: -r[2])
        for i, (at, stop, accuracy, score) in enumerate(ranked, 1):
            advised = f"{score:.3f}" if score else ""
            lines.append(
                f"{i:>4}  {at.ljust(width)}  {stop:<4}  {accuracy:{max(len(self.metric), 6)}.1%}  {advised}"
            )
        if self.correlation is None:
            lines.append("no rank correlation: the advice gives all settings one score.")
        else:
            lines.append(
                f"Spearman's correlation of score and accuracy: {self.correlation:.2f} "
                f"(95 % interval {self.low:.2f} to {self.high:.2f}, p = {self.p_value:.2f}; "
                f"{len(self.trials)} settings, {len(self.plain)} seed(s), {self.epochs} epochs)"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def check_advice(
    advice: Advice,
    config: PretrainConfig,
    data: ImageData,
    *,
    epochs: int,
    seeds: Sequence[int] = (0,),
    metrics: Sequence[str] = ("linear",),
    workers: int = 1,
    on_trial: Callable[[int, int, str], None] | None = None,
) -> list[Check]:
    """Pretrain at every site of the advice, with and without stop-gradient, and rank.

    Every trial of a seed starts from the same weights, sees the same views in the same order, and differs in the site
    and the stop-gradient alone.

    Args:
        advice: whose CKA matrix names the sites.
        config: of the trials, but for the sites, ``stop_grad``, ``epochs`` and ``seed``. The warm-up is shortened with
            the epochs, and the backward is chosen for every site anew.
        data: to train and to probe on.
        epochs: of every trial.
        seeds: each site is tried with every one.
        metrics: of ``"linear"``, ``"few_labels"`` and ``"knn"``; the trials are ranked by each.
        workers: processes that share the trials, one thread each; with 1, this process makes them.
        on_trial: called with how many trials are done, how many there are, and a line about the last.

    Returns:
        A `Check` for every metric.

    Raises:
        InvalidOption: no such metric, or no seed.
        DataError: the images have no labels, and nothing could be probed.
    """
    for metric in metrics:
        if metric not in METRICS:
            hint = did_you_mean(metric, METRICS)
            raise InvalidOption(f"metric={metric!r} is unknown.{hint} Known: {', '.join(METRICS)}.")
    if not seeds:
        raise InvalidOption("a check needs a seed or more.")
    if len(data.classes) < 2:
        raise DataError(
            f"{data.name} has {len(data.classes)} class: without labels the trials cannot be probed and ranked. "
            "Leave out --check, or put the images into a folder for each class."
        )
    sites = advice.sites
    settings = [(None, False), *((site, stop) for site in sites for stop in (False, True))]
    jobs = [(seed, at, stop) for seed in seeds for at, stop in settings]
    configs = [
        replace(
            config,
            at=() if at is None else (at,),
            everywhere=False,
            stop_grad=stop,
            epochs=epochs,
            warmup=config.warmup * epochs / config.epochs,
            seed=seed,
            freeze=None,
            rate_end=None,  # what changes over a run cannot be told from a few epochs
            subset_end=None,
            backward="auto",  # what the run had may not be possible at another site
        )
        for seed, at, stop in jobs
    ]
    results: dict[int, dict[str, Any]] = {}
    for i, result in Executor(workers=workers).map(functools.partial(_trial, data), configs):
        results[i] = result
        if on_trial is not None:
            seed, at, stop = jobs[i]
            said = ", ".join(f"{m} {_accuracy(result, m):.1%}" for m in metrics)
            on_trial(
                len(results), len(jobs), f"{at or 'plain'}{' stop' if stop else ''}, seed {seed}: {said}"
            )
    return [_ranked(advice, metric, epochs, jobs, results) for metric in metrics]


def _trial(data: ImageData, config: PretrainConfig) -> dict[str, Any]:
    return pretrain(config, data=data).result


def _accuracy(result: dict[str, Any], metric: str) -> float:
    value = result[metric]
    return float(value["mean"] if isinstance(value, dict) else value)


def _ranked(
    advice: Advice,
    metric: str,
    epochs: int,
    jobs: Sequence[tuple[int, str | None, bool]],
    results: dict[int, dict[str, Any]],
) -> Check:
    found: dict[tuple[str | None, bool], list[float]] = {}
    for i, (_, at, stop) in enumerate(jobs):
        found.setdefault((at, stop), []).append(_accuracy(results[i], metric))
    trials = [
        Trial(at, stop, advice.score(at, stop), tuple(values))
        for (at, stop), values in found.items()
        if at is not None
    ]
    trials.sort(key=lambda t: -t.accuracy)
    statistics = rank_correlation([t.score for t in trials], [t.accuracy for t in trials])
    return Check(metric, epochs, tuple(found[None, False]), tuple(trials), *statistics)


def rank_correlation(
    scores: Sequence[float], accuracies: Sequence[float], draws: int = 2000
) -> tuple[float | None, float | None, float | None, float | None]:
    """Spearman's correlation, its 95 % bootstrap interval, and the one-sided p-value of a permutation test.

    All None where scores or accuracies do not differ, and the correlation is not defined.
    """
    from scipy.stats import rankdata

    x, y = np.asarray(scores, float), np.asarray(accuracies, float)
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return None, None, None, None

    def correlation(a: Any, b: Any) -> Any:  # row by row: Pearson's of the ranks
        a, b = (rankdata(v, axis=-1) - (len(x) + 1) / 2 for v in (a, b))
        with np.errstate(invalid="ignore"):
            return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))

    generator = np.random.default_rng(0)
    value = float(correlation(x, y))
    shuffled = correlation(generator.permuted(np.tile(x, (draws, 1)), axis=1), y[None])
    p = (1 + (shuffled >= value - 1e-12).sum()) / (draws + 1)
    chosen = generator.integers(0, len(x), (draws, len(x)))
    low, high = np.nanquantile(correlation(x[chosen], y[chosen]), [0.025, 0.975])
    return value, float(low), float(high), float(p)
