"""Mixing of rows: with another row or a mean, and the loss that mixes the labels alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Unpack

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from graphaug.arguments import checked_names
from graphaug.augment.choices import check_choice, check_count, check_flag
from graphaug.augment.drawn import Drawn
from graphaug.augment.shapes import along_rows, check_rows, draw_dtype, precise
from graphaug.augment.transform import PLAIN, SHARE, Context, Domain, Needs, SiteOptions, Transform
from graphaug.augment.transforms.partners import (
    check_labels,
    class_mean,
    nearest_partners,
    random_partners,
    symmetric_beta,
)
from graphaug.errors import BatchError, InvalidOption

MODES = ("convex", "interpolate", "extrapolate", "difference")
PARTNERS = ("random", "nearest", "mean")
PER = ("row", "batch")
NO_LABEL = -(2**40)  # a class that nobody has: cross_entropy would skip -100, and say nothing


class Mixed(NamedTuple):
    """What a mix drew, for n rows.

    Attributes:
        partners: each row's partner, as an index into the n rows, (n,); of ``difference`` two, (n, 2).
        lam: λ of each row, (n,).
        own: the weight of the row's own label in the loss, (n,); the rest is its partner's.
        mean: what a row is mixed with instead of a partner, broadcastable to the rows.
        rows: which rows of the batch these n are: their indices, (n,), or a mask of the batch; None: it is all of them.
    """

    partners: Tensor
    lam: Tensor
    own: Tensor
    mean: Tensor | None = None
    rows: Tensor | None = None


class Mix(Transform):
    """Mixing of each row ``h`` with a partner ``p``, at weight λ.

    ==============  ===================  ==================================================================
    mode            result               source
    ==============  ===================  ==================================================================
    convex          ``λ·h + (1-λ)·p``    Manifold Mixup, Verma et al. 2019, with λ ~ Beta(alpha, alpha)
    interpolate     ``h + λ·(p - h)``    DeVries & Taylor 2017; MODALS (Cheung & Yeung 2021)
    extrapolate     ``h + λ·(h - p)``    DeVries & Taylor 2017; with ``partner="mean"`` MODALS
    difference      ``h + λ·(p - q)``    MODALS, with two partners
    ==============  ===================  ==================================================================

    Args:
        mode: one of the four.
        alpha: λ is drawn from Beta(alpha, alpha), alpha > 0; a number for ``set``. Without alpha and lam: 2.0 for
            convex.
        lam: λ is this number, in [0, 1] for the first two modes, at least 0 for the others; a number for ``set``.
            Without alpha and lam: 0.5 for all modes but convex.
        partner: a ``"random"`` row (a permutation: every row is the partner of one); one of the ``"nearest"`` rows by
            Euclidean distance; the ``"mean"`` of the rows, which is measured on ``Context.batch`` if that is given.
        neighbours: how many rows are nearest, 10 if not given (DeVries & Taylor 2017).
        within_class: partners and means are of the row's own class; ``Context.labels`` are then needed.
        per: every ``"row"`` has a λ of its own, or the ``"batch"`` has one, as in Manifold Mixup's code.
        detach: no gradient reaches the partners, as if they had been stored (MODALS). A mean never has one.
        site: options of its site, as of `Transform`.

    One row alone has no partner, and stays as it is; so does a row that is alone in its class, ``within_class``.

    Raises:
        InvalidOption: an option outside its domain, alpha together with lam, or a partner that the mode does not have.
        BatchError: when it draws, if labels are missing or do not fit.

    Example:
        >>> import torch, graphaug as ga
        >>> mix, rows = ga.Mix(lam=0.75), torch.tensor([[0.0], [4.0]])
        >>> mix(rows, mix.draw(rows)._replace(partners=torch.tensor([1, 0])))
        tensor([[1.],
                [3.]])
    """

    shown = ("mode", "partner", "neighbours", "within_class", "per", "detach")

    @checked_names
    def __init__(
        self,
        mode: str = "convex",
        *,
        alpha: float | None = None,
        lam: float | None = None,
        partner: str = "random",
        neighbours: int | None = None,
        within_class: bool = False,
        per: str = "row",
        detach: bool = False,
        **site: Unpack[SiteOptions],
    ) -> None:
        super().__init__(**site)
        self.mode = check_choice("mode", mode, MODES)
        self.partner = check_choice("partner", partner, PARTNERS)
        self.per = check_choice("per", per, PER)
        self.within_class = check_flag("within_class", within_class)
        self.detach = check_flag("detach", detach)
        if mode == "difference" and partner != "random":
            raise InvalidOption(f"mode='difference' is of two random rows, and not of partner={partner!r}.")
        if neighbours is not None and partner != "nearest":
            raise InvalidOption(f"neighbours={neighbours!r} is of partner='nearest', and not of {partner!r}.")
        self.neighbours = check_count("neighbours", 10 if neighbours is None else neighbours, 1)
        if alpha is not None and lam is not None:
            raise InvalidOption(f"alpha={alpha!r} draws λ and lam={lam!r} fixes it: give one of them.")
        self.fixed = lam is not None or (alpha is None and mode != "convex")
        if self.fixed:
            domain = SHARE if mode in ("convex", "interpolate") else Domain(low=0)
            self.add_number("lam", 0.5 if lam is None else lam, domain)
        else:
            self.add_number("alpha", 2.0 if alpha is None else alpha, Domain(low=0, above=True))
        mean = partner == "mean"
        self.needs = Needs(
            partners=not mean, statistics=mean, gradient=not (mean or detach), labels=within_class
        )

    def draw(self, rows: Tensor, context: Context = PLAIN) -> Mixed:
        """Draw partners and λ of rows of shape (n, …)."""
        check_rows(rows)
        labels = check_labels(context.labels, rows) if self.within_class else None
        lam = self._draw_lam(rows, context.generator)
        if self.partner == "mean":
            itself = torch.arange(rows.shape[0], device=rows.device)
            measured = rows if context.batch is None or self.within_class else context.batch
            return Mixed(itself, lam, torch.ones_like(lam), class_mean(measured, labels))
        if self.partner == "nearest":
            partners = nearest_partners(rows, labels, self.neighbours, context.generator)
        else:
            first, second = random_partners(rows, labels, context.generator)
            partners = torch.stack([first, second], 1) if self.mode == "difference" else first
        own = {"convex": lam, "interpolate": 1 - lam}.get(self.mode, torch.ones_like(lam))
        return Mixed(partners, lam, own)

    def told(self, draws: Mixed) -> Mixed:
        """Partners and λ, without the mean."""
        return draws._replace(mean=None)

    def _draw_lam(self, rows: Tensor, generator: Generator | None) -> Tensor:
        n, dtype = rows.shape[0], draw_dtype(rows)
        if self.fixed:
            return (
                self.get_buffer("lam").to(dtype, copy=True).expand(n)
            )  # a later set() leaves what was drawn
        count = n if self.per == "row" else 1
        return symmetric_beta(count, self.get_buffer("alpha"), rows.device, generator).to(dtype).expand(n)

    def forward(self, rows: Tensor, draws: Mixed) -> Tensor:
        """Mix rows of shape (n, …)."""
        own, lam = precise(rows), along_rows(draws.lam, rows)
        source = own.detach() if self.detach else own
        if self.mode == "difference":
            p, q = (source.index_select(0, index) for index in draws.partners.unbind(1))
            return (own + lam * (p - q)).to(rows.dtype)
        p = source.index_select(0, draws.partners) if draws.mean is None else draws.mean.to(own.dtype)
        if self.mode == "convex":
            mixed = lam * own + (1 - lam) * p
        elif self.mode == "interpolate":
            mixed = own + lam * (p - own)
        else:
            mixed = own + lam * (own - p)
        return mixed.to(rows.dtype)


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, drawn: Mixed | Drawn | Mapping[str, Drawn], label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy with the labels mixed as the rows were (Verma et al. 2019; Zhang et al. 2018).

    A row that was mixed counts ``own · CE(own label) + (1 - own) · CE(partner's label)``, any other
    ``CE(own label)``. Rows that were extrapolated or moved by a difference keep their label.

    Args:
        logits: (B, classes).
        labels: the classes of the B rows, integers in [0, classes); none is ignored.
        drawn: what the site drew, ``aug.drawn["layer3"]``, or all of ``aug.drawn`` where each row was mixed at no more
            than one site; or what the mix drew by itself, with ``rows`` if it did not mix the whole batch.
        label_smoothing: of both terms, as in ``torch.nn.functional.cross_entropy``.

    Returns:
        The mean over the B rows, a scalar.

    Raises:
        BatchError: the drawn rows are not those of this batch, or labels do not fit the logits.

    Example:
        >>> import torch, graphaug as ga
        >>> from graphaug.augment.transforms.mix import Mixed
        >>> drawn = Mixed(torch.tensor([1, 0]), torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.5]))
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
        >>> ga.mixed_cross_entropy(logits, torch.tensor([0, 1]), drawn)
        tensor(0.6931)
    """
    if not isinstance(drawn, (Mixed, Drawn, Mapping)):
        raise BatchError(f"drawn is what a site drew, as aug.drawn['layer3'], and no {type(drawn).__name__}.")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise BatchError(f"Labels are integers, a tensor of shape (B,), not {kind}.")
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise BatchError(
            f"Logits are (B, classes) and labels (B,), not {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    drawn = _merged(drawn, logits) if isinstance(drawn, Mapping) else _as_mixed(drawn, logits)
    index = _mixed_rows(drawn, logits.shape[0])
    partners = drawn.partners[:, 0] if drawn.partners.dim() == 2 else drawn.partners
    everyone = torch.arange(logits.shape[0], device=logits.device)
    other = everyone.index_copy(0, index, index[partners])
    scores = precise(logits)
    own = torch.ones(logits.shape[0], dtype=scores.dtype, device=logits.device)
    own = own.index_copy(0, index, drawn.own.to(scores.dtype))

    def loss(target: Tensor) -> Tensor:
        return F.cross_entropy(
            scores, target, reduction="none", label_smoothing=label_smoothing, ignore_index=NO_LABEL
        )

    return (own * loss(labels) + (1 - own) * loss(labels[other])).mean()


def _as_mixed(drawn: Mixed | Drawn, logits: Tensor) -> Mixed:
    """What a mix drew, of what was drawn at a site."""
    if isinstance(drawn, Mixed):
        return drawn
    if drawn.rows.shape[0] != logits.shape[0]:
        raise BatchError(
            f"{drawn.rows.shape[0]} rows were at the site, and the logits are of {logits.shape[0]}."
        )
    if drawn.draws is None and drawn.index.shape[0] == 0:  # a small share of a small batch
        return Mixed(drawn.index, logits.new_zeros(0), logits.new_zeros(0), rows=drawn.index)
    if not isinstance(drawn.draws, Mixed):
        raise BatchError(
            f"nothing was mixed at this site: it drew {drawn.in_words()}, and of a Mix there is Mixed."
        )
    index = drawn.index
    # one whose turn it was not has drawn for rows that it then left alone
    own = torch.where(drawn.rows[index], drawn.draws.own, 1)
    return drawn.draws._replace(rows=index, own=own)


def _merged(drawn: Mapping[str, Drawn], logits: Tensor) -> Mixed:
    """What several sites drew, as one draw of the whole batch."""
    everyone = torch.arange(logits.shape[0], device=logits.device)
    partners, own = everyone, torch.ones(logits.shape[0], dtype=torch.float64, device=logits.device)
    seen = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    for site in drawn.values():
        mixed = _as_mixed(site, logits)
        index = _mixed_rows(mixed, logits.shape[0])
        chosen = mixed.partners[:, 0] if mixed.partners.dim() == 2 else mixed.partners
        theirs = everyone.index_copy(0, index, index[chosen])
        share = torch.ones_like(own).index_copy(0, index, mixed.own.to(own.dtype))
        # a compiled step cannot ask
        if not torch.compiler.is_compiling() and bool((seen & site.rows).any()):
            raise BatchError(
                "rows were mixed at several sites, and the loss of that is another: take one_site=True."
            )
        partners, own = torch.where(site.rows, theirs, partners), torch.where(site.rows, share, own)
        seen = seen | site.rows
    return Mixed(partners, own, own)


def _mixed_rows(drawn: Mixed, batch: int) -> Tensor:
    """The indices of the mixed rows in a batch of that size."""
    count, rows = drawn.lam.shape[0], drawn.rows
    if rows is None:
        if count != batch:
            raise BatchError(
                f"{count} rows were mixed of a batch of {batch}: say which by drawn._replace(rows=...)."
            )
        return torch.arange(batch, device=drawn.partners.device)
    if rows.dtype != torch.bool:
        if rows.shape != (count,):
            raise BatchError(f"{count} rows were mixed, but drawn.rows are {tuple(rows.shape)}.")
        return rows
    # a compiled step cannot ask how many are true
    if rows.shape != (batch,) or (not torch.compiler.is_compiling() and int(rows.sum()) != count):
        raise BatchError(
            f"{count} rows were mixed, but drawn.rows is no mask of a batch of {batch} with as many."
        )
    return torch.argsort(~rows, stable=True)[:count]
