"""Contrastive losses on two batches of embeddings, with negatives from one process or from all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphaug.contrastive.gather import all_rows, process_count, process_rank
from graphaug.errors import BatchError, InvalidOption, an, did_you_mean

SUPCONTRAST_BASE_TEMPERATURE = 0.07
"""SupContrast multiplies its loss by ``temperature / 0.07``; learning rates published with it depend on that."""

LEAST_TEMPERATURE = 1e-30
"""Similarities divided by less leave the range of float32, and so do their sums."""

SCALES = ("mean", "supcontrast")
"""What ``scale`` may be: the mean over the anchors, or SupContrast's multiple of it."""


def info_nce(
    z1: Tensor,
    z2: Tensor,
    temperature: float = 0.5,
    *,
    symmetric: bool = False,
    gather: bool = False,
    scale: str = "mean",
) -> Tensor:
    """InfoNCE, Eq. 1 of the Deep Augmentation paper: anchors ``z1``, candidates the N second views.

    ``mean_i -log( exp(cos(z1_i, z2_i)/τ) / Σ_j exp(cos(z1_i, z2_j)/τ) )``

    Half precision is computed with in float32, inside of autocast too. A row of zeros has the cosine 0 to every other
    row, and no gradient.

    Args:
        z1: ``(N, D)`` embeddings of the first views; normalised here.
        z2: ``(N, D)`` embeddings of the second views, row i the positive of row i.
        temperature: τ > 0, in units of cosine similarity.
        symmetric: average with the same loss with the views exchanged.
        gather: with torch.distributed, take the second views of all processes as candidates, each process with N
            pairs. Anchors stay this process's own, so that the mean of the losses over the processes, and DDP's mean
            of the gradients, are those of one process with the whole batch.
        scale: ``"mean"``, the equation; ``"supcontrast"``, that times ``temperature / 0.07``, as in SupContrast's
            code: at τ = 0.5 gradients are 7.1 times as large, so a learning rate published with that code is too
            small by this factor without it (for SGD; LARS and Adam do not depend on the scale).

    Returns:
        A scalar in nats (times the scale); ``log`` of the number of candidates when all similarities are equal.

    Raises:
        BatchError: the shapes differ, are not two-dimensional, there are fewer than 2 rows, or no real numbers in them.
        InvalidOption: the temperature is not a positive number, or no such scale.

    Examples:
        >>> import torch
        >>> from graphaug.contrastive.losses import info_nce
        >>> z = torch.eye(2)  # pairs that agree, others at a right angle: log(1 + 1/e)
        >>> round(float(info_nce(z, z, temperature=1.0)), 4)
        0.3133
    """
    factor = _check(z1, z2, temperature, gather, scale)
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = unit_rows(z1), unit_rows(z2)
        all1, all2 = _candidates(z1, z2, gather)
        own = _own_rows(z1, gather)
        loss = F.cross_entropy(z1 @ all2.T / temperature, own)
        if symmetric:
            loss = (loss + F.cross_entropy(z2 @ all1.T / temperature, own)) / 2
        return loss * factor


def nt_xent(
    z1: Tensor, z2: Tensor, temperature: float = 0.5, *, gather: bool = False, scale: str = "mean"
) -> Tensor:
    """NT-Xent, Eq. 1 of SimCLR: each of the 2N rows is an anchor, the 2N-1 other rows are its candidates.

    Half precision and rows of zeros: as for `info_nce`.

    Args:
        z1: ``(N, D)`` embeddings of the first views; normalised here.
        z2: ``(N, D)`` embeddings of the second views, row i the positive of row i.
        temperature: τ > 0, in units of cosine similarity.
        gather: candidates from all processes, as for ``info_nce``: 2N·processes - 1 of them.
        scale: ``"mean"`` or ``"supcontrast"``, as for ``info_nce``.

    Returns:
        A scalar in nats (times the scale), the mean over the 2N anchors; ``log(2N-1)`` when all similarities are
        equal.

    Raises:
        BatchError: the shapes differ, are not two-dimensional, there are fewer than 2 rows, or no real numbers in them.
        InvalidOption: the temperature is not a positive number, or no such scale.

    Examples:
        >>> import torch
        >>> from graphaug.contrastive.losses import nt_xent
        >>> z1, z2 = torch.eye(4).chunk(2)  # two pairs that have nothing in common: log 3
        >>> round(float(nt_xent(z1, z2)), 4)
        1.0986
    """
    factor = _check(z1, z2, temperature, gather, scale)
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = unit_rows(z1), unit_rows(z2)
        all1, all2 = _candidates(z1, z2, gather)
        own = _own_rows(z1, gather)
        other = own + len(all1)
        candidates = torch.cat([all1, all2])
        logits = torch.cat([z1, z2]) @ candidates.T / temperature
        place = torch.arange(len(candidates), device=own.device)
        itself = torch.cat([own, other])[:, None] == place
        positive = torch.cat([other, own])[:, None] == place
        # Cross-entropy without its look-up, which Triton 3.6 cannot compile where the GPU reckons what is looked up.
        chosen = torch.where(positive, logits, 0.0).sum(1)
        return (logits.masked_fill(itself, -math.inf).logsumexp(1) - chosen).mean() * factor


def nt_xent_views(
    views: Sequence[Tensor], temperature: float = 0.5, *, gather: bool = False, scale: str = "mean"
) -> Tensor:
    """NT-Xent over k views: each of the kN rows is an anchor, with k-1 positives among the kN-1 other rows.

    The mean of ``-log softmax`` over all anchors and their positives: L_out of Khosla et al. 2020, eq. 2, with every
    sample a class of its own. Of two views it is `nt_xent`. Half precision and rows of zeros: as for `info_nce`.

    Args:
        views: k batches of embeddings ``(N, D)``, row i of each of the same sample, as ``z.chunk(k)`` of deep views'
            ``[z1; …; zk]``; normalised here.
        temperature: τ > 0, in units of cosine similarity.
        gather: candidates from all processes, as for ``info_nce``.
        scale: ``"mean"`` or ``"supcontrast"``, as for ``info_nce``.

    Returns:
        A scalar in nats (times the scale); ``log(kN-1)`` when all similarities are equal.

    Raises:
        BatchError: fewer than two views, shapes that differ or are not two-dimensional, or fewer than 2 rows.
        InvalidOption: the temperature is not a positive number, or no such scale.

    Example:
        >>> import torch
        >>> from graphaug.contrastive.losses import nt_xent_views
        >>> z = torch.ones(6, 4)  # three views of two samples, all alike
        >>> nt_xent_views(z.chunk(3)).exp()
        tensor(5.)
    """
    if len(views) < 2:
        raise BatchError(f"a loss of views needs at least 2 of them, not {len(views)}.")
    factor = 1.0
    for other in views[1:]:
        factor = _check(views[0], other, temperature, gather, scale)
    k = len(views)
    with torch.autocast(views[0].device.type, enabled=False):
        anchors = torch.cat([unit_rows(z) for z in views])
        candidates = anchors
        if gather and process_count() > 1:  # rank by rank, view by view: samples of all ranks in each view
            gathered = all_rows(anchors).unflatten(0, (-1, k, len(views[0])))
            candidates = gathered.transpose(0, 1).flatten(0, 2)
        samples = len(candidates) // k
        own = torch.cat([_own_rows(views[0], gather) + samples * view for view in range(k)])
        index = torch.arange(len(candidates), device=own.device)
        itself = own[:, None] == index
        positive = (own[:, None] % samples == index % samples) & ~itself
        logits = (anchors @ candidates.T / temperature).masked_fill(itself, -math.inf)
        likelihood = torch.where(positive, logits.log_softmax(1), 0.0)
        return -likelihood.sum() / (len(anchors) * (k - 1)) * factor


def supcon(
    z1: Tensor,
    z2: Tensor,
    labels: Tensor,
    temperature: float = 0.5,
    *,
    gather: bool = False,
    scale: str = "mean",
) -> Tensor:
    """SupCon, L_out of Khosla et al. 2020, eq. 2: the positives of an anchor are all other rows of its class.

    The mean over the 2N anchors of ``-log softmax``, averaged over the positives of each; with every sample a class of
    its own, `nt_xent`. Half precision and rows of zeros: as for `info_nce`.

    Args:
        z1: ``(N, D)`` embeddings of the first views; normalised here.
        z2: ``(N, D)`` embeddings of the second views, row i of the same sample as row i.
        labels: ``(N,)`` integers, the class of each sample.
        temperature: τ > 0, in units of cosine similarity.
        gather: candidates from all processes, as for ``info_nce``.
        scale: ``"mean"`` or ``"supcontrast"``, as for ``info_nce``.

    Returns:
        A scalar in nats (times the scale); ``log(2N-1)`` when all similarities are equal.

    Raises:
        BatchError: as for `nt_xent`, or labels that are not one integer a row.
        InvalidOption: the temperature is not a positive number, or no such scale.

    Example:
        >>> import torch
        >>> from graphaug.contrastive.losses import supcon
        >>> z = torch.ones(3, 4)  # all alike: each has the same chance, whatever its class
        >>> supcon(z, z, torch.tensor([0, 0, 1])).exp()
        tensor(5.)
    """
    factor = _check(z1, z2, temperature, gather, scale)
    if labels.shape != z1.shape[:1] or labels.is_floating_point():
        raise BatchError(
            f"labels are {len(z1)} integers, one for each row, not {labels.dtype} of {tuple(labels.shape)}."
        )
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = unit_rows(z1), unit_rows(z2)
        all1, all2 = _candidates(z1, z2, gather)
        classes = all_rows(labels) if gather else labels
        own = _own_rows(z1, gather)
        own = torch.cat([own, own + len(all1)])
        candidates = torch.cat([all1, all2])
        logits = torch.cat([z1, z2]) @ candidates.T / temperature
        itself = own[:, None] == torch.arange(len(candidates), device=own.device)
        positive = (labels.repeat(2)[:, None] == classes.repeat(2)) & ~itself
        likelihood = logits.masked_fill(itself, -math.inf).log_softmax(1)
        mean = torch.where(positive, likelihood, 0.0).sum(1) / positive.sum(1)
        return -mean.mean() * factor


LOSSES: dict[str, Callable[..., Tensor]] = {
    "nt_xent": nt_xent,
    "info_nce": info_nce,
    "info_nce_symmetric": partial(info_nce, symmetric=True),
}
"""The losses by the name they have on the command line."""


def unit_rows(z: Tensor) -> Tensor:
    """The rows at length 1, in float32 or more; rows of zeros stay what they are, and have the gradient 0.

    Not ``F.normalize``: its 1e-12 is 0 in float16, and in float32 it makes the gradient of such a row huge.
    """
    if z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    none = length == 0
    # Masked on both sides of the division: the gradient of the side that is not taken would be NaN times 0.
    return torch.where(none, 0.0, z / torch.where(none, 1.0, length))


def _candidates(z1: Tensor, z2: Tensor, gather: bool) -> tuple[Tensor, Tensor]:
    if not gather or process_count() == 1:
        return z1, z2
    # One collective for both views: rank by rank, first views before second ones.
    both = all_rows(torch.cat([z1, z2])).unflatten(0, (-1, 2, len(z1)))
    return both[:, 0].flatten(0, 1), both[:, 1].flatten(0, 1)


def _own_rows(z: Tensor, gather: bool) -> Tensor:
    """Where the local rows lie among the candidates of their view."""
    offset = process_rank() * len(z) if gather else 0
    return torch.arange(offset, offset + len(z), device=z.device)


def _check(z1: Tensor, z2: Tensor, temperature: float, gather: bool, scale: str) -> float:
    embeddings: tuple[Any, ...] = (z1, z2)
    for z in embeddings:
        if not isinstance(z, Tensor) or not z.is_floating_point():
            what = z.dtype if isinstance(z, Tensor) else an(z)
            raise BatchError(f"embeddings are tensors of real numbers of floating point, not {what}.")
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise BatchError(
            f"two batches of embeddings of one shape (N, D) are needed, not {tuple(z1.shape)} and {tuple(z2.shape)}."
        )
    if len(z1) < 2 and not (gather and process_count() > 1 and len(z1) == 1):
        raise BatchError(f"{len(z1)} pair has no negatives: a contrastive loss needs at least 2 pairs.")
    _check_temperature(temperature)
    if scale not in SCALES:
        raise InvalidOption(
            f"scale={scale!r} is unknown.{did_you_mean(scale, SCALES)} Known: {', '.join(map(repr, SCALES))}."
        )
    return temperature / SUPCONTRAST_BASE_TEMPERATURE if scale == "supcontrast" else 1.0


def _check_temperature(value: Any) -> None:
    number = isinstance(value, Real | Tensor) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):
        raise InvalidOption(f"temperature must be a positive number, not {value!r}.")
    if value < LEAST_TEMPERATURE:
        raise InvalidOption(f"temperature={value!r} is too small: give at least {LEAST_TEMPERATURE:g}.")
