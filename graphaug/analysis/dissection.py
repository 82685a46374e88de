"""What an augmentation does to a batch: how far its rows move, how much is dropped, what is left of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphaug.analysis.activations import ActivationReader, activation_reader
from graphaug.analysis.batches import batches, rows_of
from graphaug.analysis.passes import RecordedAugmentation, random_direction, run_pass
from graphaug.arguments import checked_names
from graphaug.capture.dataflow import before, parameters_of
from graphaug.capture.target import Target
from graphaug.errors import BatchError, DataError, NotRewritten, an
from graphaug.select.model_structure import ModelStructure
from graphaug.select.resolve import At
from graphaug.sites import sites
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.place import place

WEAK = 0.99  # mean cosine at the last site from which the network hardly sees the augmentation
LOST = 0.5  # share of rows that are still recognised at the last site, below which they are destroyed


@dataclass(frozen=True)
class SiteEffect:
    """What the augmentation did at one site.

    Attributes:
        site: its name.
        after_cut: whether the site is a cut, or computed from one.
        cosine: mean cosine between the augmented rows and the same rows without augmentation.
        others: the same, to the un-augmented rows of *other* samples: what cosine would mean nothing.
        recognised: share of augmented rows whose nearest un-augmented row, by cosine, is their own.
        gradient: norm of the loss's gradient with respect to the site's value, over the augmented rows.
        plain_gradient: the same over the same rows, without the augmentation.
        alive: share of these rows whose un-augmented activations are not all 0.
    """

    site: str
    after_cut: bool
    cosine: float
    others: float
    recognised: float
    gradient: float
    plain_gradient: float
    alive: float = 1.0


@dataclass(frozen=True)
class Dissection:
    """The effect of Deep Augmentation on one batch; ``print`` it.

    Attributes:
        effects: one a site, in the order of computation.
        rows: how many rows were augmented, of ``batch``.
        batch: rows of the batch.
        dropped: share of the augmented rows' units that were set to 0.
        gradient_below, gradient_above: norm of the gradient of the parameters before and behind the first cut.
        plain_below, plain_above: the same without the augmentation.

    Examples:
        >>> import torch, graphaug as ga
        >>> from graphaug.analysis import dissect
        >>> aug = ga.rewrite(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)), at="0", rate=1.0)
        >>> dissect(aug, torch.randn(8, 8)).verdict
        'destroying'
    """

    effects: tuple[SiteEffect, ...]
    rows: int
    batch: int
    dropped: float
    gradient_below: float
    gradient_above: float
    plain_below: float
    plain_above: float

    @property
    def verdict(self) -> str:
        """``"too weak"``, ``"destroying"`` or ``"in between"``, by the last site (rules of thumb, see the docs).

        ``"not seen"`` if every site lies before the cut.
        """
        behind = [e for e in self.effects if e.after_cut]
        if not behind:
            return "not seen: no compared site lies behind the cut"
        last = behind[-1]
        if last.alive == 0:
            return f"nothing to tell: without augmentation the activations at {last.site} are all 0"
        if last.recognised < LOST:
            return "destroying"
        return "too weak" if last.cosine > WEAK else "in between"

    def __str__(self) -> str:
        width = max(len("site"), *(len(e.site) for e in self.effects))
        lines = [
            f"{self.rows} of {self.batch} rows augmented, {self.dropped:.0%} of their units dropped: {self.verdict}",
            f"{'site'.ljust(width)}  cosine  others  recognised  gradient   plain",
        ]
        lines += [
            f"{e.site.ljust(width)}  {e.cosine:6.3f}  {e.others:6.3f}  {e.recognised:10.0%}  "
            f"{e.gradient:8.2e}  {e.plain_gradient:8.2e}"
            for e in self.effects
        ]
        for what, now, plain in (
            ("before the cut", self.gradient_below, self.plain_below),
            ("behind it", self.gradient_above, self.plain_above),
        ):
            lines.append(
                f"gradient norm of the parameters {what}: {now:.2e}, without augmentation {plain:.2e}"
            )
        return "\n".join(lines)


@checked_names
def dissect(
    aug: nn.Module,
    batch: Any,
    at: At | None = None,
    *,
    loss: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> Dissection:
    """Run a rewritten model on a batch with and without its augmentation, all else in eval mode, and compare.

    Args:
        aug: made by `graphaug.rewrite`; neither it nor its gradients are changed.
        batch: as `graphaug.analysis.cka` takes one: a tensor, tuple or dict with 4 rows or more.
        at: sites to look at, by default those of `graphaug.sites`.
        loss: of the model's output, a scalar; by default a fixed random direction of its first tensor.
        seed: of the rows, the noise and the default loss.

    Returns:
        A `Dissection`.

    Raises:
        NotRewritten: ``aug`` is a plain model.
        BatchError: fewer than 4 rows, or no row is augmented.
        SiteNotFound, CaptureError: as in `graphaug.rewrite`.

    Examples:
        >>> import torch, graphaug as ga
        >>> from graphaug.analysis import dissect
        >>> aug = ga.rewrite(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)), at="0", rate=1.0)
        >>> print(str(dissect(aug, torch.randn(8, 8))).splitlines()[0])
        4 of 8 rows augmented, 100% of their units dropped: destroying
    """
    if not isinstance(aug, AugmentedModule):
        raise NotRewritten(f"dissect takes what graphaug.rewrite returned, not {an(aug)}.")
    inputs = next(iter(batches(aug.original, [batch])))
    rows = rows_of(inputs)
    if rows < 4:
        raise BatchError(f"a batch of {rows} rows says little: dissect needs 4 or more.")
    if at is None:
        at = [str(site) for site in sites(aug.original, inputs) if site.module is not aug.original]
    augmentations = {t: RecordedAugmentation(module) for t, module in aug.augmentations.items()}
    cuts = _before_cuts(aug, list(augmentations), inputs)
    read = activation_reader(aug.original, at, inputs, augmentations=augmentations)
    behind = _behind(read)
    loss = loss or random_direction(seed)
    plain = run_pass(read, augmentations, inputs, loss, seed, augmented=False)
    found = run_pass(read, augmentations, inputs, loss, seed, augmented=True)
    changed = torch.stack([a.rows for a in augmentations.values() if a.rows is not None]).any(0)
    if not changed.any():
        raise BatchError("no row was augmented: the subset rounds to 0 rows of this batch.")
    for name, h, was in zip(read.names, found.values, plain.values, strict=True):
        if not bool((h.isfinite() & was.isfinite()).all()):
            raise DataError(
                f"the activations of '{name}' are not finite: the model has diverged, or its inputs are not finite."
            )
    below = set.intersection(*cuts)
    effects = tuple(
        _effect(name, after, h, was, changed, g, g_was)
        for name, after, h, was, g, g_was in zip(
            read.names, behind, found.values, plain.values, found.gradients, plain.gradients, strict=True
        )
    )
    norms = [
        _norm([g for name, g in run.parameters.items() if (name in below) == side])
        for run in (found, plain)
        for side in (True, False)
    ]
    units = sum(a.units for a in augmentations.values())
    dropped = sum(a.zeros for a in augmentations.values()) / max(units, 1)
    return Dissection(effects, int(changed.sum()), rows, dropped, *norms)


def _effect(
    name: str, after: bool, h: Tensor, plain: Tensor, rows: Tensor, gradient: Tensor, plain_gradient: Tensor
) -> SiteEffect:
    x, y = (F.normalize(v.flatten(1).float(), dim=1) for v in (h, plain))
    similarity = x[rows] @ y.T
    own = rows.nonzero()[:, 0]
    cosine = similarity[torch.arange(len(own)), own]
    apart = torch.ones_like(similarity, dtype=torch.bool)
    apart[torch.arange(len(own)), own] = False
    # an equal neighbour (a duplicate, a saturated unit) does not hide its own
    recognised = cosine >= similarity.masked_fill(~apart, -2.0).amax(1)
    recognised &= x[rows].any(1) | ~y[rows].any(1)  # a row of zeros is as near to any other
    return SiteEffect(
        name,
        after,
        float(cosine.mean()),
        float(similarity[apart].mean()),
        float(recognised.float().mean()),
        float(gradient[rows].norm()),
        float(plain_gradient[rows].norm()),
        float(y[rows].any(1).float().mean()),
    )


def _behind(read: ActivationReader) -> list[bool]:
    """Of every observer, whether an augmentation is among what its value is computed from."""
    added = read.module._parts.added
    nodes = {
        n: added[n.target] for n in read.module.graph.nodes if n.op == "call_module" and n.target in added
    }

    def holds(node: fx.Node, kind: type[nn.Module]) -> bool:
        return node in nodes and any(isinstance(m, kind) for m in nodes[node].modules())

    of_tap = {id(m): n for n, module in nodes.items() for m in module.modules()}
    return [
        any(holds(n, RecordedAugmentation) for n in before(of_tap[id(observer)]))
        for observer in read.observers
    ]


def _before_cuts(aug: AugmentedModule, targets: Sequence[Target], inputs: Any) -> list[set[str]]:
    """Names of the parameters that are used up to each site."""
    names = {target: f"cut_{i}" for i, target in enumerate(targets)}
    _, _, placed = place(ModelStructure(aug.original, inputs), names, training=False)
    model = aug.original
    found = []
    for node in placed.values():
        owned = {
            id(p)
            for n in before(node)
            if n.target not in names.values()
            for p in parameters_of(n, model.get_submodule, model.get_parameter)
        }
        found.append({name for name, p in model.named_parameters() if id(p) in owned})
    return found


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([t.float().norm() for t in tensors]).norm()) if tensors else 0.0
