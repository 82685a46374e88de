"""Semantic textual similarity in SentEval's protocol, as SimCSE uses it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphaug.errors import EncoderError, InvalidOption
from graphaug.text.sts.tasks import StsTask, load_tasks

Encode = Callable[[Sequence[str]], Tensor]
"""Sentences → ``(N, D)`` vectors, in their order."""

COLLAPSED = 1e-6
"""Cosine similarities closer together than this are float32's rounding: their ranks mean nothing."""


@dataclass(frozen=True)
class StsResult:
    """``spearman``: task → rank correlation in [-1, 1]; ``pairs`` with a gold score, and ``skipped`` ones without."""

    split: str
    spearman: Mapping[str, float]
    pairs: Mapping[str, int]
    skipped: Mapping[str, int]

    @property
    def average(self) -> float:
        """The mean over the tasks, each counted once."""
        return sum(self.spearman.values()) / len(self.spearman)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; correlations in [-1, 1], not rounded."""
        return {
            "split": self.split,
            "spearman": dict(self.spearman),
            "average": self.average,
            "pairs": dict(self.pairs),
            "skipped": dict(self.skipped),
        }


def evaluate(encode: Encode, tasks: Sequence[StsTask], split: str = "test") -> StsResult:
    """Score an encoder on STS tasks.

    Of each task all pairs are taken together, whatever their subset, and the cosine similarities of the pairs' vectors
    are compared with the gold scores in one Spearman correlation (Gao et al. 2021, appendix B: "all"). A sentence that
    occurs several times, within a task or between them, is encoded once.

    Args:
        encode: an encoder's ``encode``, or any other function of sentences.
        tasks: from ``load_tasks``.
        split: that they are of; for the record.

    Raises:
        EncoderError: vectors of the wrong shape, not finite, or the same for every sentence.
        InvalidOption: no tasks.

    """
    from scipy.stats import spearmanr

    if not tasks:
        raise InvalidOption("there are no tasks to evaluate on.")
    sentences = list(dict.fromkeys(text for task in tasks for text in (*task.first, *task.second)))
    vectors = encode(sentences)
    if vectors.ndim != 2 or len(vectors) != len(sentences):
        raise EncoderError(f"encode gave {(*vectors.shape,)} for {len(sentences)} sentences, not (N, D).")
    if not torch.isfinite(vectors).all():
        raise EncoderError("the encoder's vectors are not all finite: it has diverged.")
    number = {text: i for i, text in enumerate(sentences)}
    spearman = {}
    for task in tasks:
        first, second = (vectors[[number[t] for t in texts]].double() for texts in (task.first, task.second))
        similarity = F.cosine_similarity(first, second)
        if similarity.max() - similarity.min() < COLLAPSED:
            raise EncoderError(
                f"{task.name}: every pair has the cosine similarity {similarity[0]:.6f}, so that there is nothing to "
                f"rank: the encoder gives every sentence the same vector. Is the pooler the right one?"
            )
        spearman[task.name] = float(spearmanr(similarity.numpy(), task.gold).statistic)
    return StsResult(
        split, spearman, {task.name: len(task) for task in tasks}, {task.name: task.skipped for task in tasks}
    )


def sts_dev(encode: Encode, data: str | os.PathLike[str] | StsTask) -> float:
    """Spearman correlation on the development set of STS-B, in [-1, 1].

    Args:
        encode: as for ``evaluate``.
        data: as for ``load_tasks``; or the task, ``load_tasks(data, "dev", ["STS-B"])[0]``, to read it once only.

    Raises:
        EncoderError: as ``evaluate``; an encoder that has collapsed in its training is one.
        DataError: as ``load_tasks``.

    """
    task = data if isinstance(data, StsTask) else load_tasks(data, "dev", ["STS-B"])[0]
    return evaluate(encode, [task], "dev").spearman[task.name]


def table(results: Mapping[str, StsResult]) -> str:
    """Lay results out as the paper's Figure 8 does: a line an encoder, a column a task, ×100, two decimals.

    Args:
        results: name of the encoder → its result; all on the same tasks.

    Raises:
        InvalidOption: no results, or on different tasks.

    """
    columns = {tuple(result.spearman) for result in results.values()}
    if len(columns) != 1:
        raise InvalidOption("a table needs results on the same tasks, and at least one.")
    (tasks,) = columns
    width = max(map(len, results))
    lines = [" " * width + "".join(f"{name:>8}" for name in (*tasks, "Avg."))]
    for name, result in results.items():
        values = (*result.spearman.values(), result.average)
        lines.append(f"{name:<{width}}" + "".join(f"{100 * value:8.2f}" for value in values))
    return "\n".join(lines)
