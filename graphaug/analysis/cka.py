"""Centred kernel alignment between the layers of one model, or of two, streamed over minibatches.

Kornblith et al., "Similarity of Neural Network Representations Revisited" (2019), Eq. 2; the unbiased minibatch
estimator after Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?" (2021), Eq. 3, with HSIC_1 of Song
et al. (2012) in its U-centred form (Székely & Rizzo, 2014): an inner product of two centred Gram matrices, so that
all pairs of a batch come from one matrix product.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from graphaug.analysis.gram import centred, linear, rbf
from graphaug.arguments import checked_names
from graphaug.errors import BatchError, DataError, InvalidOption, did_you_mean
from graphaug.select.resolve import At
from graphaug.surgery.unwrap import plain_model

CHOICES = {
    "estimator": ("unbiased", "biased"),
    "kernel": ("linear", "rbf"),
    "tokens": ("mean", "cls", "flatten", "each"),
}
_SMALLEST = {"unbiased": 4, "biased": 2}


@dataclass(frozen=True)
class CKA:
    """Similarities between sites.

    Attributes:
        rows: names of the sites of the first model, in the order in which it computes them.
        columns: those of the other model, or the same.
        values: (rows, columns) float64 on the CPU, at most 1; 0 wherever a site is constant over the samples. The
            unbiased estimator may give values slightly below 0.
        samples: how many samples (with ``tokens="each"``, tokens) went in.
        estimator, kernel: how.

    Examples:
        >>> import torch
        >>> from graphaug.analysis import cka
        >>> found = cka(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()), torch.randn(64, 8), ["0", "1"])
        >>> round(float(found.values[0, 0]), 3)
        1.0
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Tensor
    samples: int
    estimator: str
    kernel: str

    def __str__(self) -> str:
        width = max(map(len, self.rows))
        heads = [str(j) for j in range(len(self.columns))]
        lines = [f"CKA ({self.estimator}, {self.kernel}), {self.samples} samples"]
        lines.append(" " * (width + 7) + " ".join(h.rjust(5) for h in heads))
        for i, name in enumerate(self.rows):
            cells = " ".join(f"{v:5.2f}" for v in self.values[i].tolist())
            lines.append(f"{i:>3}  {name.ljust(width)}  {cells}")
        if self.columns != self.rows:
            lines += [f"{j:>3}  {name}" for j, name in enumerate(self.columns)]
        return "\n".join(lines)


@checked_names
def cka(
    model: nn.Module,
    data: Any,
    sites: At = "**",
    other: nn.Module | None = None,
    *,
    other_sites: At | None = None,
    estimator: str = "unbiased",
    kernel: str = "linear",
    tokens: str = "mean",
    bandwidth: float = 1.0,
    batch_size: int = 256,
) -> CKA:
    """Compare the representations at sites of a model, in eval mode, with each other or with another model's.

    Both models read the same batches once; a batch's activations are reduced to Gram matrices as they come, so that
    memory does not grow with the number of samples.

    Args:
        model: plain or rewritten; it is not changed.
        data: a loader of batches (tensors, tuples, dicts), or all samples as a tensor or a dict of tensors.
        sites: a selector or a list of them. Of patterns, sites without activations are left out, and with
            ``tokens="each"`` sites without tokens.
        other: a second model; without it the sites are compared with each other.
        other_sites: its sites, by default ``sites``.
        estimator: ``"unbiased"`` (does not depend on the batch size in expectation; 4 samples a batch or more) or
            ``"biased"`` (depends on it, with a warning if there is more than one: equal to the textbook formula if the
            data come in one batch).
        kernel: ``"linear"``, or ``"rbf"`` with a bandwidth of ``bandwidth`` times the batch's median distance.
        tokens: how a (samples, tokens, features) value becomes rows: ``"mean"`` over the tokens that are no padding
            (by the batch's ``attention_mask``), ``"cls"``, ``"flatten"``, or ``"each"`` token by itself.
        bandwidth: of the RBF kernel, in median distances.
        batch_size: where ``data`` is a tensor or a dict.

    Returns:
        A `CKA` with ``values`` of shape (sites, other sites).

    Raises:
        InvalidOption: an option is outside its domain.
        BatchError: the unbiased estimator is given fewer than 4 samples in every batch, or sites differ in their
            number of rows.
        DataError: there are no data, or not such as the forward takes, or the activations of a site are not finite.
        SiteNotFound, CaptureError: as in `graphaug.rewrite`.

    Examples:
        >>> import torch
        >>> from graphaug.analysis import cka
        >>> torch.manual_seed(0).initial_seed()
        0
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
        >>> cka(model, torch.randn(64, 8), ["0", "1", "2"]).values.shape
        torch.Size([3, 3])
    """
    _check_options(bandwidth, estimator=estimator, kernel=kernel, tokens=tokens)
    models = [plain_model(m) for m in (model, other) if m is not None]
    chosen = [sites, sites if other_sites is None else other_sites]
    streams = [batches(m, b, batch_size) for m, b in zip(models, _shared(data, len(models)), strict=True)]
    gram = linear if kernel == "linear" else lambda x: rbf(x, bandwidth)
    read: list[ActivationReader] = []
    sums: _Sums | None = None
    smallest, seen, largest, count = _SMALLEST[estimator], 0, 0, 0
    with torch.no_grad():
        for inputs in zip(*streams, strict=True):
            rows = rows_of(inputs[0])
            largest = max(largest, rows)
            if rows < (smallest if tokens != "each" else 2):
                continue  # what is left over at the end of the data
            if not read:
                read = [
                    activation_reader(m, at, x, tokens=tokens == "each")
                    for m, at, x in zip(models, chosen, inputs, strict=False)
                ]
                sums = _Sums(len(read[0].names), len(read[1].names) if other is not None else None)
            assert sums is not None
            stacks = [
                _stack(t, x, tokens, lambda x: centred(gram(x), estimator))
                for t, x in zip(read, inputs, strict=True)
            ]
            if stacks[0].shape[1:] != stacks[-1].shape[1:]:
                raise BatchError("the two models give another number of rows for the same batch.")
            n = stacks[0].shape[-1]
            if n < smallest:
                continue
            sums.add(stacks, n, n * (n - 3) if estimator == "unbiased" else (n - 1) ** 2)
            seen += n
            count += 1
            if count == 2 and estimator == "biased":
                warnings.warn(
                    "the biased estimator depends on the size of the batches, and there are several: give all samples "
                    "in one (batch_size=), or take estimator='unbiased'.",
                    UserWarning,
                    stacklevel=2,
                )
    if seen == 0:
        raise BatchError(
            f"the {estimator} estimator needs batches of {smallest} samples or more; the largest here has {largest}."
        )
    assert sums is not None
    sums.check([r.names for r in read])
    return CKA(read[0].names, read[-1].names, sums.values(), seen, estimator, kernel)


def _check_options(bandwidth: float, **named: str) -> None:
    for name, value in named.items():
        if value not in CHOICES[name]:
            hint = did_you_mean(str(value), CHOICES[name])
            raise InvalidOption(
                f"{name}={value!r} is unknown.{hint} Known: {', '.join(map(repr, CHOICES[name]))}."
            )
    if not bandwidth > 0:
        raise InvalidOption(f"bandwidth must be positive, not {bandwidth!r}.")


def _shared(data: Any, count: int) -> Sequence[Any]:
    """The data once for every model; what can be iterated only once is read once."""
    if count == 1 or isinstance(data, (Tensor, Mapping)):
        return [data] * count
    return (
        itertools.tee(data, count)
        if hasattr(data, "__iter__") and not isinstance(data, str)
        else [data] * count
    )


def _stack(read: ActivationReader, inputs: Any, tokens: str, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """One centred Gram matrix a site: (sites, rows, rows)."""
    found: dict[int, Tensor] = {}
    mask, rows = padding_mask(inputs), rows_of(inputs)

    def receive(i: int, h: Tensor) -> None:
        check_rows(h.shape[0], rows, read.names[i])
        x = sample_features(h, tokens, mask, read.names[i])
        if found:
            check_rows(len(x), len(next(iter(found.values()))), read.names[i])
        found[i] = reduce(in_full(x))

    read(inputs, receive)
    return torch.stack([found[i] for i in range(len(read.names))])


class _Sums:
    """Sums of HSIC over batches, weighted by their rows, on the device; nothing is read back before the end."""

    def __init__(self, first: int, second: int | None) -> None:
        self.second = second
        self.cross: Any = 0.0
        self.own: Any = (0.0, 0.0)
        self.scales: list[Tensor] = []

    def add(self, stacks: Sequence[Tensor], rows: int, divisor: float) -> None:
        if not self.scales:
            # any scale does, as long as it stays: products of large entries overflow, of small ones vanish
            largest = [s.flatten(1).abs().amax(1) for s in stacks]
            self.scales = [torch.where(n > 0, n, torch.ones_like(n)) for n in largest]
        flat = [(s / n.view(-1, 1, 1)).flatten(1) for s, n in zip(stacks, self.scales, strict=True)]
        weight = rows / divisor
        first, last = flat[0], flat[-1].to(flat[0].device)
        self.cross = self.cross + weight * (first @ last.T).double()
        self.own = tuple(
            o + weight * f.square().sum(1).double() for o, f in zip(self.own, (first, last), strict=True)
        )

    def check(self, names: Sequence[Sequence[str]]) -> None:
        """Raise ``DataError`` for the first site whose activations were not finite in some batch."""
        for own, sites in zip(self.own, (names[0], names[-1]), strict=True):
            finite = own.isfinite().tolist()
            if not all(finite):
                raise DataError(
                    f"the activations of '{sites[finite.index(False)]}' are not finite, or too large for their type: "
                    "the model has diverged, or its inputs are not finite."
                )

    def values(self) -> Tensor:
        """CKA; a site whose own HSIC is 0 is constant, and shares nothing with any other."""
        product = self.own[0][:, None] * self.own[1][None, :]
        ratio = self.cross / torch.where(product > 0, product, 1.0).sqrt()
        ratio = torch.where(product > 0, ratio, 0.0).clamp(-1.0, 1.0).cpu()
        if self.second is None:
            ratio = (ratio + ratio.T) / 2  # a matrix product may round its two triangles in different orders
            ratio.diagonal().copy_((self.own[0] > 0).double().cpu())
        return ratio
