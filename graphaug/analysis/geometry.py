"""Geometry of embeddings on the sphere: alignment, uniformity, tolerance, and how much of the space is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphaug.analysis.activations import (
    ActivationReader,
    activation_reader,
    check_rows,
    in_full,
    sample_features,
)
from graphaug.analysis.batches import batches, padding_mask, rows_of
from graphaug.errors import BatchError, DataError, InvalidOption
from graphaug.select.resolve import At
from graphaug.surgery.unwrap import plain_model


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> float:
    """Mean distance of positive pairs, ``E ‖x̂ - ŷ‖^α`` (Wang & Isola, 2020, Eq. 2); 0 is perfect.

    Args:
        x: (N, D) embeddings, normalised here.
        y: (N, D), row i the positive of row i.
        alpha: power of the distance.

    Raises:
        BatchError: the shapes differ, or are not (N, D) with N of at least 1.
    """
    _check(x)
    if x.shape != y.shape:
        raise BatchError(f"positives need equal shapes, not {tuple(x.shape)} and {tuple(y.shape)}.")
    return float((_unit(x) - _unit(y)).norm(dim=1).pow(alpha).mean())


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
    """
    _check(x, 2)
    if chunk < 1:
        raise InvalidOption(f"chunk is a number of rows, at least 1, not {chunk!r}.")
    parts = _unit(x).split(chunk)
    lengths = [a.square().sum(1) for a in parts]  # 1, but for rows of zeros
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for i, a in enumerate(parts):
        for b, length in zip(parts[i:], lengths[i:], strict=True):
            potential = (a @ b.T).mul_(2).sub_(lengths[i][:, None]).sub_(length).mul_(t).exp_()
            total += (potential.triu_(1) if a is b else potential).sum(dtype=torch.float64)
    return float(torch.log(2 * total / (len(x) * (len(x) - 1))))


def tolerance(x: Tensor, labels: Tensor) -> float:
    """Mean cosine of pairs of one class (Wang & Liu, "Understanding the Behaviour of Contrastive Loss", 2021).

    Args:
        x: (N, D) embeddings, normalised here.
        labels: (N,) classes.

    Raises:
        BatchError: shapes that do not fit.
        DataError: no class has two samples.
    """
    _check(x)
    if labels.shape != x.shape[:1]:
        raise BatchError(f"{len(x)} embeddings need {len(x)} labels, not {tuple(labels.shape)}.")
    classes, index, counts = labels.unique(return_inverse=True, return_counts=True)
    pairs = (counts * (counts - 1)).sum()
    if pairs == 0:
        raise DataError("tolerance needs a class with two samples or more.")
    unit = _unit(x).double()
    sums = unit.new_zeros(len(classes), x.shape[1]).index_add_(0, index, unit)
    return float((sums.square().sum() - unit.square().sum()) / pairs)


def embedding_std(x: Tensor) -> float:
    """Standard deviation of the normalised embeddings, averaged over dimensions (Chen & He, SimSiam, 2021, Sec. 4.1).

    0 if they have collapsed to a point, about ``1/√D`` if they spread over the sphere.
    """
    _check(x, 2)
    return float(_unit(x).std(dim=0).mean())


def effective_rank(x: Tensor) -> float:
    """Dimensions in use: exp of the entropy of the centred embeddings' singular values (Roy & Vetterli, 2007).

    Between 1 and min(N - 1, D); 0 if all embeddings are one.
    """
    _check(x, 2)
    centred = x.double() - x.double().mean(0)
    values = torch.linalg.svdvals(centred)
    if values.sum() <= 1e-7 * x.double().norm():
        return 0.0
    share = values / values.sum()
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))


@dataclass(frozen=True)
class Geometry:
    """The geometry of the embeddings at one site, over ``samples`` pairs; ``tolerance`` needs labels."""

    site: str
    alignment: float
    uniformity: float
    std: float
    rank: float
    dimensions: int
    samples: int
    tolerance: float | None = None

    @classmethod
    def of(
        cls, site: str, z: Tensor, positives: tuple[Tensor, Tensor], labels: Tensor | None = None
    ) -> Geometry:
        """Of (N, D) embeddings ``z`` and of positive pairs, (P, D) each; ``labels``: (N,) classes, for tolerance."""
        return cls(
            site,
            alignment(*positives),
            uniformity(z),
            embedding_std(z),
            effective_rank(z),
            z.shape[1],
            len(z),
            None if labels is None else tolerance(z, labels),
        )

    @property
    def spread(self) -> float:
        """Standard deviation times √D, 1 on the sphere."""
        return self.std * math.sqrt(self.dimensions)

    def __str__(self) -> str:
        more = "" if self.tolerance is None else f", tolerance {self.tolerance:.3f}"
        return (
            f"{self.site}: alignment {self.alignment:.3f}, uniformity {self.uniformity:.3f}{more}, "
            f"std·√D {self.spread:.2f}, effective rank {self.rank:.1f} of {self.dimensions}"
        )


def geometry(
    model: nn.Module,
    pairs: Iterable[Any],
    sites: At,
    *,
    labels: Tensor | None = None,
    tokens: str = "mean",
) -> list[Geometry]:
    """Measure the embeddings of two views at sites of a model, in eval mode.

    Args:
        model: plain or rewritten; it is not changed.
        pairs: an iterable of ``(first, second)``: two batches of one size, each as `cka` takes them, row i of one
            the positive of row i of the other.
        sites: a selector or a list. Feature maps are averaged over places: of (N, C, H, W), or of (N, H, W, C) if H = W
            differs from C. Of maps that are not square, the second dimension is taken for the channels.
        labels: (samples,) classes in the order of ``pairs``, for the tolerance of the first views.
        tokens: ``"mean"``, ``"cls"`` or ``"flatten"``, as in `cka`.

    Raises:
        DataError: there are no pairs.
        BatchError: the two views have other numbers of rows.
        SiteNotFound, CaptureError: as in `graphaug.rewrite`.
    """
    _check_tokens(tokens)
    plain = plain_model(model)
    read: ActivationReader | None = None
    collected: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])
    for pair in pairs:
        views = [next(iter(batches(plain, [view]))) for view in pair]
        if len(views) != 2 or rows_of(views[0]) != rows_of(views[1]):
            raise BatchError("geometry needs pairs (first, second) of batches with one number of rows.")
        read = read or activation_reader(plain, sites, views[0])
        for store, view in zip(collected, views, strict=True):
            store.append(_embeddings(read, view, tokens))
    if read is None:
        raise DataError("the data hold no pair of views.")
    found = []
    for i, site in enumerate(read.names):
        x, y = (torch.cat([batch[i] for batch in store]) for store in collected)
        found.append(Geometry.of(site, x, (x, y), labels))
    return found


def site_embeddings(
    model: nn.Module, data: Any, sites: At, *, tokens: str = "mean", batch_size: int = 256
) -> dict[str, Tensor]:
    """Embeddings of all samples at sites of a model, in eval mode.

    Args:
        model: plain or rewritten; it is not changed.
        data, batch_size: as for `cka`.
        sites, tokens: as for `geometry`.

    Returns:
        By the site's name, (samples, D) float32 on the CPU, in the order of the data.

    Raises:
        InvalidOption, DataError, BatchError, SiteNotFound, CaptureError: as `cka`.
    """
    _check_tokens(tokens)
    plain = plain_model(model)
    read: ActivationReader | None = None
    collected: list[list[Tensor]] = []
    for inputs in batches(plain, data, batch_size):
        read = read or activation_reader(plain, sites, inputs)
        collected.append(_embeddings(read, inputs, tokens))
    assert read is not None
    return {
        name: torch.cat(parts) for name, parts in zip(read.names, zip(*collected, strict=True), strict=True)
    }


def _check_tokens(tokens: str) -> None:
    if tokens not in ("mean", "cls", "flatten"):
        raise InvalidOption(f"tokens={tokens!r} is unknown. Known: 'mean', 'cls', 'flatten'.")


def _embeddings(read: ActivationReader, inputs: Any, tokens: str) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    mask, rows = padding_mask(inputs), rows_of(inputs)

    def receive(i: int, h: Tensor) -> None:
        check_rows(h.shape[0], rows, read.names[i])
        pooled = _over_places(h) if h.dim() > 3 else sample_features(h, tokens, mask, read.names[i])
        found[i] = pooled.detach().to("cpu", torch.float32, copy=True)  # what follows may change it in place

    with torch.no_grad():
        read(inputs, receive)
    return [found[i] for i in range(len(read.names))]


def _over_places(h: Tensor) -> Tensor:
    """Mean of a feature map over its places; the places of a square map tell where its channels are."""
    sizes = h.shape[1:]
    last = len(set(sizes[:-1])) == 1 and len(set(sizes[1:])) > 1
    h = in_full(h)
    return h.flatten(1, -2).mean(1) if last else h.flatten(2).mean(2)


def pair_geometry(
    embed: Callable[[Sequence[str]], Tensor],
    first: Sequence[str],
    second: Sequence[str],
    scores: Sequence[float],
    *,
    threshold: float = 4.0,
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


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)


def _check(x: Tensor, rows: int = 1) -> None:
    if x.dim() != 2 or len(x) < rows:
        raise BatchError(f"embeddings (N, D) with N of at least {rows} are needed, not {tuple(x.shape)}.")
    if not bool(x.isfinite().all()):
        raise DataError("embeddings are not finite: the model has diverged, or its inputs are not finite.")
