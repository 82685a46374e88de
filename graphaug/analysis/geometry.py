"""Geometry of embeddings on the sphere: alignment, uniformity, tolerance, and how much of the space is used."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.analysis.activations import (
    ActivationReader,
    activation_reader,
    check_rows,
    in_full,
    sample_features,
)
from graphaug.analysis.batches import batches, padding_mask, rows_of
from graphaug.arguments import checked_names
from graphaug.contrastive.geometry import alignment, check_embeddings, on_sphere, pair_geometry, uniformity
from graphaug.errors import BatchError, DataError, InvalidOption
from graphaug.select.resolve import At
from graphaug.surgery.unwrap import plain_model

__all__ = [
    "Geometry",
    "alignment",
    "effective_rank",
    "embedding_std",
    "geometry",
    "pair_geometry",
    "site_embeddings",
    "tolerance",
    "uniformity",
]


def tolerance(x: Tensor, labels: Tensor) -> float:
    """Mean cosine of pairs of one class (Wang & Liu, "Understanding the Behaviour of Contrastive Loss", 2021).

    Args:
        x: (N, D) embeddings, normalised here.
        labels: (N,) classes.

    Raises:
        BatchError: shapes that do not fit.
        DataError: no class has two samples.

    Examples:
        >>> import torch
        >>> from graphaug.analysis import tolerance
        >>> tolerance(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0]))
        1.0
    """
    check_embeddings(x)
    if labels.shape != x.shape[:1]:
        raise BatchError(f"{len(x)} embeddings need {len(x)} labels, not {tuple(labels.shape)}.")
    classes, index, counts = labels.unique(return_inverse=True, return_counts=True)
    pairs = (counts * (counts - 1)).sum()
    if pairs == 0:
        raise DataError("tolerance needs a class with two samples or more.")
    unit = on_sphere(x).double()
    sums = unit.new_zeros(len(classes), x.shape[1]).index_add_(0, index, unit)
    return float((sums.square().sum() - unit.square().sum()) / pairs)


def embedding_std(x: Tensor) -> float:
    """Standard deviation of the normalised embeddings, averaged over dimensions (Chen & He, SimSiam, 2021, Sec. 4.1).

    0 if they have collapsed to a point, about ``1/√D`` if they spread over the sphere.

    Examples:
        >>> import torch
        >>> from graphaug.analysis import embedding_std
        >>> embedding_std(torch.ones(5, 3))  # collapsed
        0.0
    """
    check_embeddings(x, 2)
    return float(on_sphere(x).std(dim=0).mean())


def effective_rank(x: Tensor) -> float:
    """Dimensions in use: exp of the entropy of the centred embeddings' singular values (Roy & Vetterli, 2007).

    Between 1 and min(N - 1, D); 0 if all embeddings are one.

    Examples:
        >>> import torch
        >>> from graphaug.analysis import effective_rank
        >>> round(effective_rank(torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])), 3)  # all on one line
        1.0
    """
    check_embeddings(x, 2)
    centred = x.double() - x.double().mean(0)
    values = torch.linalg.svdvals(centred)
    if values.sum() <= 1e-7 * x.double().norm():
        return 0.0
    share = values / values.sum()
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))


@dataclass(frozen=True)
class Geometry:
    """The geometry of the embeddings at one site, over ``samples`` pairs; ``tolerance`` needs labels.

    Examples:
        >>> import torch
        >>> from graphaug.analysis import Geometry
        >>> z = torch.eye(4)
        >>> found = Geometry.of("layer4", z, (z, z))
        >>> found.alignment, found.dimensions
        (0.0, 4)
    """

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


@checked_names
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

    Examples:
        >>> import torch
        >>> from graphaug.analysis import geometry
        >>> x = torch.randn(16, 8)
        >>> found = geometry(torch.nn.Sequential(torch.nn.Linear(8, 4)), [(x, x)], ["0"])
        >>> found[0].alignment  # both views are the same
        0.0
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


@checked_names
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

    Examples:
        >>> import torch
        >>> from graphaug.analysis import site_embeddings
        >>> site_embeddings(torch.nn.Sequential(torch.nn.Linear(8, 4)), torch.randn(16, 8), ["0"])["0"].shape
        torch.Size([16, 4])
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
