"""The published formulas of the methods, written down for the rows of a site and what was drawn for them.

They share no code with the library: means are means, principal directions are eigenvectors of a covariance, classes are
looped over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 16
VECTOR = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)


class Rows(NamedTuple):
    """What a formula is told.

    Attributes:
        h: the chosen rows, (n, T, D).
        drawn: what was drawn for them.
        batch: all rows.
        labels, source: what was given, for the chosen rows.
    """

    h: Tensor
    drawn: Any
    batch: Tensor
    labels: Tensor
    source: Tensor


Formula = Callable[[Rows], Tensor]
"""The rows as the paper makes them."""


def along(value: Tensor, h: Tensor) -> Tensor:
    """One number for each row, so that it broadcasts."""
    return value.view(-1, *[1] * (h.dim() - 1)).to(h)


def dropped(rate: float, *, alike: tuple[int, ...] = ()) -> Formula:
    """Dropout, each decision that of the first entry along the dimensions that are dropped together."""

    def formula(r: Rows) -> Tensor:
        kept = r.drawn != 0
        for dim in alike:
            kept = kept.narrow(dim, 0, 1)
        return r.h * kept.to(r.h) / (1 - rate)

    return formula


def drop_head(r: Rows) -> Tensor:
    """One decision for each of four heads: that of its first channel at the first token."""
    kept = r.drawn.kept[:, :1, :: WIDTH // 4].repeat_interleave(WIDTH // 4, 2)
    return r.h * kept.to(r.h) / 0.75


def drop_block(r: Rows) -> Tensor:
    """Row by row: what is kept, scaled by all positions over the kept ones."""
    kept = r.drawn.kept.to(r.h).expand_as(r.h)
    return torch.stack([h * k * k.numel() / k.sum() for h, k in zip(r.h, kept, strict=True)])


def spread_noise(r: Rows) -> Tensor:
    return r.h + 0.1 * r.batch.detach().std() * r.drawn.noise


def feature_noise(r: Rows) -> Tensor:
    return r.h + 0.1 * r.batch.detach().std(0) * r.drawn.noise


def by_class(r: Rows, statistic: Callable[[Tensor], Tensor]) -> Tensor:
    """A statistic of each row's class among the chosen rows."""
    return torch.stack([statistic(r.h.detach()[r.labels == label]) for label in r.labels])


def class_noise(r: Rows) -> Tensor:
    def std(members: Tensor) -> Tensor:
        return members.std(0) if len(members) > 1 else torch.zeros_like(members[0])

    return r.h + 0.1 * by_class(r, std) * r.drawn.noise


def neftune(r: Rows) -> Tensor:
    return r.h + r.drawn.noise * 5 / math.sqrt(r.h.shape[1] * r.h.shape[2])


def mixup(r: Rows) -> Tensor:
    lam = along(r.drawn.lam, r.h)
    return lam * r.h + (1 - lam) * r.h[r.drawn.partners]


def interpolation(r: Rows) -> Tensor:
    return r.h + 0.5 * (r.h[r.drawn.partners] - r.h)


def extrapolation(r: Rows) -> Tensor:
    return r.h + 0.5 * (r.h - r.h[r.drawn.partners])


def from_stored(r: Rows) -> Tensor:
    return r.h + 0.5 * (r.h - r.h.detach()[r.drawn.partners])


def from_class_mean(r: Rows) -> Tensor:
    return r.h + 0.5 * (r.h - by_class(r, lambda members: members.mean(0)))


def from_mean(r: Rows) -> Tensor:
    return r.h + 0.5 * (r.h - r.batch.detach().mean(0))


def difference(r: Rows) -> Tensor:
    first, second = r.drawn.partners.unbind(1)
    return r.h + 0.5 * (r.h[first] - r.h[second])


def style(h: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel over a row's tokens."""
    return h.mean(1, keepdim=True), (h.var(1, keepdim=True) + 1e-6).sqrt()


def mixstyle(r: Rows) -> Tensor:
    mean, std = (s.detach() for s in style(r.h))
    lam = along(r.drawn.lam, r.h)
    new_mean, new_std = (lam * s + (1 - lam) * s[r.drawn.partners] for s in (mean, std))
    return (r.h - mean) / std * new_std + new_mean


def dsu(r: Rows) -> Tensor:
    mean, std = style(r.h)
    spread = [(s.var(0, keepdim=True) + 1e-6).sqrt() for s in (mean, std)]
    return (r.h - mean) / std * (std + r.drawn.std * spread[1]) + mean + r.drawn.mean * spread[0]


def pca(which: int, tokens: bool, gradient: bool = False) -> Formula:
    """Without one direction: eigenvectors of the samples' Gram matrix, which has one eigenvalue of zero, give them.

    Args:
        which: 0 for the first direction, -1 for the last one that has variance.
        tokens: whether a sample is a token, or else a row.
        gradient: through the eigenvectors too, as torch differentiates them.
    """

    def formula(r: Rows) -> Tensor:
        whole = r.batch if gradient else r.batch.detach()
        samples = whole.flatten(0, 1) if tokens else whole.flatten(1)
        centred = samples - samples.mean(0)
        if tokens:  # of full rank: as many directions as channels
            direction = torch.linalg.eigh(centred.mT @ centred).eigenvectors.flip(1)[:, which]
        else:
            values, vectors = torch.linalg.eigh(centred @ centred.mT)
            values, vectors = values[1:].flip(0), vectors[:, 1:].flip(1)
            direction = centred.mT @ vectors[:, which] / values[which].sqrt()
        flat = r.h.flatten(0, 1) if tokens else r.h.flatten(1)
        flat = flat - ((flat - samples.mean(0)) @ direction)[:, None] * direction
        return flat.view_as(r.h)

    return formula


def patch_dropout(r: Rows) -> Tensor:
    return torch.stack([row[kept] for row, kept in zip(r.h, r.drawn.kept, strict=True)])


def added(r: Rows) -> Tensor:
    return r.h + 4 * VECTOR


def added_at_the_end(r: Rows) -> Tensor:
    return torch.cat([r.h[:, :-1], r.h[:, -1:] + VECTOR], 1)


def source_added(r: Rows) -> Tensor:
    return r.h + 0.5 * r.source


def replaced(r: Rows) -> Tensor:
    return VECTOR.expand_as(r.h)


def patched(r: Rows) -> Tensor:
    return torch.cat([r.source[:, :1], r.h[:, 1:-1], r.source[:, -1:]], 1)


def modals(r: Rows) -> Tensor:
    """Row by row the operation that the row drew."""
    formulas = (class_noise, from_class_mean, interpolation, difference)
    made = [f(r._replace(drawn=d)) for f, d in zip(formulas, r.drawn.draws, strict=True)]
    return torch.stack([made[int(c)][i] for i, c in enumerate(r.drawn.choice)])


def squashed(r: Rows) -> Tensor:
    return torch.tanh(r.h)


def soft_cross_entropy(logits: Tensor, labels: Tensor, drawn: Any) -> Tensor:
    """Verma et al. 2019: the one-hot labels mixed as the rows were, at the one site whose turn it was."""
    sites = list(drawn.values()) if hasattr(drawn, "values") else [drawn]
    (site,) = [s for s in sites if bool(s.rows.any())]
    one_hot = F.one_hot(labels, logits.shape[1]).to(logits)
    targets = one_hot.clone()
    for i, partner, lam in zip(site.index, site.partners, site.lam, strict=True):
        targets[i] = lam * one_hot[i] + (1 - lam) * one_hot[partner]
    return -(targets * F.log_softmax(logits, 1)).sum(1).mean()
