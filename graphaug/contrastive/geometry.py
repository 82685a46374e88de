"""Geometry of embeddings on the sphere, as training and analysis look at it: alignment, uniformity, spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from graphaug.contrastive.losses import unit_rows
from graphaug.errors import BatchError, DataError, InvalidOption

POSITIVE = 4.0
"""Pairs of sentences of at least this gold score, of 0 to 5, are alignment's positives (Gao et al. 2021, section 4)."""


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> float:
    """Mean distance of positive pairs, ``E ‖x̂ - ŷ‖^α`` (Wang & Isola, 2020, Eq. 2); 0 is perfect.

    Args:
        x: (N, D) embeddings, normalised here.
        y: (N, D), row i the positive of row i.
        alpha: power of the distance.

    Raises:
        BatchError: the shapes differ, or are not (N, D) with N of at least 1.

    Examples:
        >>> import torch
        >>> from graphaug.analysis import alignment
        >>> round(alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])), 4)  # a right angle
        2.0
    """
    check_embeddings(x)
    if x.shape != y.shape:
        raise BatchError(f"positives need equal shapes, not {tuple(x.shape)} and {tuple(y.shape)}.")
    return float((on_sphere(x) - on_sphere(y)).norm(dim=1).pow(alpha).mean())


def uniformity(x: Tensor, t: float = 2.0, *, chunk: int = 1024) -> float:
    """Log of the mean Gaussian potential over all pairs, ``log E exp(-t‖x̂ - ŷ‖²)`` (Wang & Isola, 2020, Eq. 3).

    0 if all embeddings are one, towards ``-2t`` if they spread over the sphere; lower is more uniform.

    Args:
        x: (N, D) embeddings, normalised here; N of at least 2.
        t: of the potential.
        chunk: rows at a time: memory is (chunk, chunk), whatever N is.

    A row of zeros has no place on the sphere and stays where it is: two of them are one point.

    Raises:
        BatchError: fewer than 2 rows, or not (N, D).
        DataError: an embedding is not finite.
        InvalidOption: a chunk of no rows.

    Examples:
        >>> import torch
        >>> from graphaug.analysis import uniformity
        >>> round(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), 3)  # opposite each other: -2 · 2²
        -8.0
    """
    check_embeddings(x, 2)
    if chunk < 1:
        raise InvalidOption(f"chunk is a number of rows, at least 1, not {chunk!r}.")
    parts = on_sphere(x).split(chunk)
    lengths = [a.square().sum(1) for a in parts]  # 1, but for rows of zeros
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for i, a in enumerate(parts):
        for b, length in zip(parts[i:], lengths[i:], strict=True):
            potential = (a @ b.T).mul_(2).sub_(lengths[i][:, None]).sub_(length).mul_(t).exp_()
            total += (potential.triu_(1) if a is b else potential).sum(dtype=torch.float64)
    return float(torch.log(2 * total / (len(x) * (len(x) - 1))))


def embedding_spread(z: Tensor) -> Tensor:
    """The collapse measure: standard deviation of the normalised embeddings, 1 for isotropic ones, 0 for one point.

    ``sqrt(D · mean over dimensions of the variance over rows)`` of ``z / |z|``: SimSiam's measure (Chen and He 2021,
    section 4.1) times ``sqrt(D)``, so that it does not depend on the dimension. Equal to
    ``sqrt(1 - |mean of the normalised rows|²)``.

    Args:
        z: ``(N, D)``.

    """
    return unit_rows(z).var(0, correction=0).sum().sqrt()


def pair_geometry(
    embed: Callable[[Sequence[str]], Tensor],
    first: Sequence[str],
    second: Sequence[str],
    scores: Sequence[float],
    *,
    threshold: float = POSITIVE,
) -> tuple[float, float]:
    """Alignment and uniformity of a sentence encoder as SimCSE measures them (Gao et al., 2021, Sec. 4).

    Args:
        embed: sentences -> (sentences, D) embeddings.
        first, second: the sentences of the pairs; on STS-B, its dev set.
        scores: gold similarities, 0 to 5; pairs of ``threshold`` or more are the positives, NaN is skipped.
        threshold: see ``scores``.

    Returns:
        Alignment over the positives, uniformity over all different sentences.

    Raises:
        BatchError: the three are not of one length.
        DataError: no pair reaches the threshold.

    Examples:
        >>> import torch
        >>> from graphaug.analysis import pair_geometry
        >>> vectors = {"a cat": torch.tensor([1.0, 0.0]), "a dog": torch.tensor([0.0, 1.0])}
        >>> embed = lambda sentences: torch.stack([vectors[s] for s in sentences])
        >>> round(pair_geometry(embed, ["a cat"], ["a dog"], [4.5])[0], 4)
        2.0
    """
    if not len(first) == len(second) == len(scores):
        raise BatchError(f"{len(first)} and {len(second)} sentences with {len(scores)} scores are no pairs.")
    positives = [i for i, score in enumerate(scores) if score >= threshold]
    if not positives:
        raise DataError(f"no pair has a score of {threshold} or more: alignment has no positives.")
    sentences = list(dict.fromkeys([*first, *second]))
    place = {s: i for i, s in enumerate(sentences)}
    z = embed(sentences)
    x, y = (z[[place[side[i]] for i in positives]] for side in (first, second))
    return alignment(x, y), uniformity(z)


def on_sphere(x: Tensor) -> Tensor:
    """(N, D) embeddings at length 1, in float32 unless they are in float64; a row of zeros stays where it is."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)


def check_embeddings(x: Tensor, rows: int = 1) -> None:
    """Raise ``BatchError`` unless ``x`` is (N, D) with N of at least ``rows``, ``DataError`` unless it is finite."""
    if x.dim() != 2 or len(x) < rows:
        raise BatchError(f"embeddings (N, D) with N of at least {rows} are needed, not {tuple(x.shape)}.")
    if not bool(x.isfinite().all()):
        raise DataError("embeddings are not finite: the model has diverged, or its inputs are not finite.")
