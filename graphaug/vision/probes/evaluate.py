"""Probes: how much of the labels can be read off frozen features. Arrays in, numbers out; nothing here is trained
but the probe itself.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graphaug.contrastive.losses import unit_rows
from graphaug.errors import BatchError, DataError, InvalidOption, TrainingDiverged


@dataclass(frozen=True)
class FewLabelResult:
    """Accuracies in [0, 1] of probes that saw ``labels_per_class`` labels of each class, one for each draw of them."""

    labels_per_class: int
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the draws."""
        return float(np.mean(self.accuracies))

    @property
    def std(self) -> float:
        """Standard deviation over the draws (n - 1); NaN for a single one."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else math.nan


def linear_probe(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, c: float = 1.0, max_iter: int = 1000
) -> float:
    """Accuracy of scikit-learn's logistic regression on standardised features.

    Args:
        train_x: ``(N, D)`` features; mean and variance for the standardisation come from these.
        train_y: ``(N,)`` labels.
        test_x: ``(M, D)``.
        test_y: ``(M,)``.
        c: inverse strength of the L2 penalty.
        max_iter: of the L-BFGS solver; whether it converged within them makes no error.

    Returns:
        The share of test images classified correctly.

    Raises:
        BatchError: features and labels do not fit together.
        DataError: fewer than two classes.
        TrainingDiverged: features that are not finite.

    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _check(train_x, train_y, test_x, test_y)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=max_iter))
    with warnings.catch_warnings():
        # Separable features have their optimum far out; the last iterations do not change the accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train_x.double().numpy(), train_y.numpy())
    return float(probe.score(test_x.double().numpy(), test_y.numpy()))


def few_label_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    labels_per_class: int = 5,
    draws: int = 10,
    seed: int = 0,
    c: float = 1.0,
) -> FewLabelResult:
    """The linear probe with ``labels_per_class`` labels of each class, over several draws of which.

    The draws depend on ``seed`` and the labels alone, so that two encoders are compared on the same ones.

    Raises:
        InvalidOption: ``labels_per_class`` or ``draws`` is below 1.
        DataError: a class has fewer labels than asked for; what ``linear_probe`` raises.

    """
    if labels_per_class < 1 or draws < 1:
        raise InvalidOption(
            f"labels_per_class and draws must be at least 1, not {labels_per_class!r} and {draws!r}."
        )
    members = [(train_y == label).nonzero()[:, 0] for label in torch.unique(train_y)]
    smallest = min((len(m) for m in members), default=0)
    if smallest < labels_per_class:
        raise DataError(
            f"{labels_per_class} labels a class were asked for, but a class has only {smallest} images."
        )
    counts = [labels_per_class] * len(members)
    sets = (train_x, train_y, test_x, test_y)
    return FewLabelResult(labels_per_class, _drawn_probes(sets, members, counts, draws, seed, c))


def label_share_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    share: float,
    draws: int = 5,
    seed: int = 0,
    c: float = 1.0,
) -> FewLabelResult:
    """The linear probe with a ``share`` of the labels of every class, rounded, at least one of each.

    The draws depend on ``seed`` and the labels alone. In the result, ``labels_per_class`` is the mean over classes.

    Raises:
        InvalidOption: ``share`` is outside (0, 1], or ``draws`` is below 1.
        DataError: what ``linear_probe`` raises.

    """
    if not 0 < share <= 1 or draws < 1:
        raise InvalidOption(f"share is in (0, 1] and draws at least 1, not {share!r} and {draws!r}.")
    members = [(train_y == label).nonzero()[:, 0] for label in torch.unique(train_y)]
    counts = [max(1, round(share * len(m))) for m in members]
    accuracies = _drawn_probes((train_x, train_y, test_x, test_y), members, counts, draws, seed, c)
    return FewLabelResult(round(sum(counts) / len(counts)), accuracies)


def _drawn_probes(
    sets: tuple[Tensor, Tensor, Tensor, Tensor],
    members: list[Tensor],
    counts: list[int],
    draws: int,
    seed: int,
    c: float,
) -> tuple[float, ...]:
    """Accuracies of linear probes that see so many of the members of each class."""
    train_x, train_y, test_x, test_y = sets
    generator = torch.Generator().manual_seed(seed)
    accuracies = []
    for _ in range(draws):
        drawn = [
            m[torch.randperm(len(m), generator=generator)[:n]] for m, n in zip(members, counts, strict=True)
        ]
        chosen = torch.cat(drawn)
        accuracies.append(linear_probe(train_x[chosen], train_y[chosen], test_x, test_y, c=c))
    return tuple(accuracies)


def knn_accuracy(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.1,
) -> float:
    """Accuracy of a weighted nearest-neighbour vote, the protocol of Wu et al. (2018).

    The ``k`` (at most N) training rows of the highest cosine similarity vote for their class with the weight
    ``exp(similarity / temperature)``.

    Args:
        train_x: ``(N, D)``.
        train_y: ``(N,)`` labels from 0.
        test_x: ``(M, D)``.
        test_y: ``(M,)``.
        k: neighbours.
        temperature: in units of cosine similarity.

    Raises:
        BatchError: features and labels do not fit together.
        DataError: fewer than two classes.
        TrainingDiverged: features that are not finite.
        InvalidOption: ``k`` is below 1 or the temperature is not positive.

    """
    _check(train_x, train_y, test_x, test_y)
    if k < 1 or not temperature > 0:
        raise InvalidOption(
            f"k must be at least 1 and the temperature positive, not {k!r} and {temperature!r}."
        )
    train_x, test_x = unit_rows(train_x), unit_rows(test_x)
    classes = int(train_y.max()) + 1
    correct = 0
    for x, y in zip(torch.split(test_x, 1024), torch.split(test_y, 1024), strict=True):
        similarity, index = (x @ train_x.T).topk(min(k, len(train_x)), dim=1)
        # Relative to the nearest: the weights cannot overflow, the vote is the same.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(x), classes, dtype=weight.dtype).scatter_add_(1, train_y[index], weight)
        correct += int((votes.argmax(1) == y).sum())
    return correct / len(test_y)


def _check(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
    for what, x, y in (("training", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or y.shape != x.shape[:1] or len(x) == 0:
            raise BatchError(
                f"{what} features (N, D) and labels (N,) are needed, not {(*x.shape,)} and {(*y.shape,)}."
            )
        if not torch.isfinite(x).all():
            raise TrainingDiverged(
                f"the {what} features are not all finite: the encoder has diverged. Train it afresh with a lower "
                "learning rate."
            )
    if len(torch.unique(train_y)) < 2:
        raise DataError("a probe needs at least two classes; the training labels hold one.")
