"""Stretches of co-adapted layers in a CKA matrix: kernel change-point detection with CKA as the kernel.

CKA is a cosine between centred Gram matrices, hence a positive definite kernel between layers, and the layers come in
an order. Cutting that order into segments with little scatter inside is the kernel change-point problem of Harchaoui
& Cappé (2007), solved exactly by dynamic programming. Similarity that only decays with distance has no change points,
but dynamic programming cuts it up all the same: a segment also has to have a boundary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from graphaug.arguments import checked_names
from graphaug.errors import BatchError, InvalidOption


@dataclass(frozen=True)
class Stretch:
    """Consecutive sites that are more alike than the network is on the whole.

    Attributes:
        start, end: indices of its first and last site.
        similarity: mean CKA of its pairs of sites.
        outside: mean CKA between its sites and the others.
        strength: ``(length - 1) * (similarity - threshold)``, what joining them gains.

    Examples:
        >>> from graphaug.analysis import Stretch
        >>> Stretch(start=1, end=3, similarity=0.95, outside=0.1, strength=0.9).end
        3
    """

    start: int
    end: int
    similarity: float
    outside: float
    strength: float

    @property
    def length(self) -> int:
        """How many sites it holds."""
        return self.end - self.start + 1


def threshold_of(values: Tensor) -> float:
    """Halfway between the mean similarity of different sites and 1, and at least one half."""
    matrix = _matrix(values)
    n = len(matrix)
    mean = (matrix.sum() - np.trace(matrix)) / (n * (n - 1)) if n > 1 else 0.0
    return max(0.5, (1.0 + float(mean)) / 2)


@checked_names
def stretches(
    values: Tensor,
    *,
    threshold: float | None = None,
    shortest: int = 2,
    contrast: float = 0.05,
    boundary: float = 0.5,
) -> list[Stretch]:
    """Find the stretches in a CKA matrix, the strongest first.

    The order of sites is cut into segments such that ``Σ scatter + (1 - threshold) · segments`` is least, with the
    scatter of a segment ``Σ_a C_aa - (1/length) Σ_ab C_ab``. A segment of uniform similarity c has scatter
    ``(length - 1)(1 - c)``, so that it is kept together exactly if c exceeds the threshold.

    Args:
        values: (sites, sites) symmetric, in the order of computation, ones on the diagonal (0 of a constant site).
        threshold: mean similarity that makes a stretch, in (0, 1); by default `threshold_of`.
        shortest: smallest number of sites.
        contrast: by how much the inside has to exceed the similarity to the other sites: where all sites are alike, as
            in an untrained residual network, none stands out.
        boundary: what tells an end from similarity that merely decays with distance. The site next to either end has
            to be less similar to the stretch than its own sites are at the same distances: its dissimilarity, 1 - CKA,
            larger by this share or more, and by ``contrast``, or by as little as 0.4 of it if the matrix is smooth
            (four times its noise, by its mixed second differences). The ends of the network are no boundaries.

    Returns:
        Stretches that do not overlap; an empty list if no segment is long enough and has a boundary, or if all sites
        are the same.

    Raises:
        BatchError: the matrix is not square, not symmetric, or not finite.
        InvalidOption: an option is outside its domain.

    Examples:
        >>> import torch
        >>> from graphaug.analysis import stretches
        >>> alike = torch.full((6, 6), 0.1)
        >>> alike[1:4, 1:4] = 0.95
        >>> alike = alike.fill_diagonal_(1.0)
        >>> [(s.start, s.end) for s in stretches(alike)]
        [(1, 3)]
    """
    matrix = _matrix(values)
    if threshold is None:
        threshold = threshold_of(values)
        if threshold >= 1:
            return []
    if not 0 < threshold < 1:
        raise InvalidOption(f"threshold must be between 0 and 1, not {threshold!r}.")
    if isinstance(shortest, bool) or not isinstance(shortest, int) or shortest < 2:
        raise InvalidOption(f"shortest must be a whole number of at least 2, not {shortest!r}.")
    n = len(matrix)
    corner = np.zeros((n + 1, n + 1))
    corner[1:, 1:] = matrix.cumsum(0).cumsum(1)
    trace = np.concatenate([[0.0], np.diag(matrix).cumsum()])

    def inside(a: int, b: int) -> float:  # of the segment a … b-1
        return float(corner[b, b] - corner[a, b] - corner[b, a] + corner[a, a])

    # Every segment is tried: unbiased CKA is not always positive definite, and then pruning (PELT) misses the optimum.
    best, origin = [0.0], [0]
    for b in range(1, n + 1):
        costs = [best[a] + trace[b] - trace[a] - inside(a, b) / (b - a) + 1 - threshold for a in range(b)]
        # of equal costs the shortest segment: similarity has to exceed the threshold
        a = b - 1 - int(np.argmin(np.round(costs[::-1], 12)))
        best.append(costs[a])
        origin.append(a)
    limit = min(contrast, max(0.4 * contrast, 4 * _noise(matrix)))
    found, b = [], n
    while b > 0:
        a = origin[b]
        length = b - a
        if length >= shortest:
            similarity = (inside(a, b) - (trace[b] - trace[a])) / (length * (length - 1))
            rest = matrix[a:b].sum() - inside(a, b)
            outside = rest / (length * (n - length)) if n > length else 0.0
            strength = (length - 1) * (similarity - threshold)
            stands_out = similarity - outside >= contrast and _has_boundary(matrix, a, b, limit, boundary)
            if strength > 0 and stands_out:
                found.append(Stretch(a, b - 1, float(similarity), float(outside), float(strength)))
        b = a
    return sorted(found, key=lambda s: (-s.strength, s.start))


def _has_boundary(matrix: np.ndarray, a: int, b: int, limit: float, share: float) -> bool:
    """Whether similarity drops behind both ends of the segment a … b-1, as far as they lie within the network."""
    inside = np.array([1 - np.diagonal(matrix[a:b, a:b], lag).mean() for lag in range(1, b - a)])
    across = []
    if a > 0:
        across.append(1 - matrix[a - 1, a : b - 1])
    if b < len(matrix):
        across.append(1 - matrix[b, a + 1 : b][::-1])
    # of a segment that is the whole network, nothing tells
    drops = [(float(d.mean()), float(inside.mean())) for d in across] or [(0.0, 0.0)]
    return all(out - within >= limit - 1e-12 and out >= (1 + share) * within - 1e-12 for out, within in drops)


def _noise(matrix: np.ndarray) -> float:
    """Standard deviation of the entries around a smooth surface, robustly: most places are no corner of a stretch."""
    bent = matrix[:-1, :-1] - matrix[1:, :-1] - matrix[:-1, 1:] + matrix[1:, 1:]
    apart = bent[np.triu_indices(len(bent), 2)]  # the diagonal of ones is no part of the surface
    # 1.4826: of a normal distribution's median deviation; four entries make the variance four times theirs
    return 1.4826 * float(np.median(np.abs(apart))) / 2 if apart.size else 0.0


def _matrix(values: Tensor) -> np.ndarray:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise BatchError(f"stretches need a square matrix of one model's sites, not {matrix.shape}.")
    if not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T, atol=1e-6):
        raise BatchError("stretches need a finite, symmetric matrix.")
    return matrix
