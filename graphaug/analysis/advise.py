"""Advice: which site to augment, read off the stretches of co-adapted layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from torch import Tensor, nn

from graphaug.analysis.activations import first_of
from graphaug.analysis.batches import batches, rows_of
from graphaug.analysis.cka import CKA, cka
from graphaug.analysis.segments import Stretch, stretches, threshold_of
from graphaug.arguments import checked_names
from graphaug.capture.values import value_of
from graphaug.errors import SiteNotFound
from graphaug.select.opening import openable
from graphaug.select.resolve import At
from graphaug.sites import Site, sites_of, structure_of
from graphaug.surgery.unwrap import plain_model

FEWEST = 3
"""Sites that a stretch can be told among."""

ADDITION = re.compile(r"i?add(_\d+)?")
"""Names of operations at which a forward of residual branches does separate its input from its output."""


@dataclass(frozen=True)
class Suggestion(Mapping[str, Any]):
    """A site with the setting that goes with it; ``graphaug.rewrite(model, **suggestion)``.

    Attributes:
        at: the site, in the selection language.
        stop_grad: whether to stop the gradient of augmented rows there.
        reason: why, in a sentence.
        score: strength of the stretch that it lies at the end of, the higher the better.
        stretch: names of the first and last site of that stretch.

    Examples:
        >>> from graphaug.analysis import Suggestion
        >>> best = Suggestion("layer3", True, "the start of a stretch", score=0.4, stretch=("layer3", "layer4"))
        >>> dict(best)  # what graphaug.rewrite(model, **best) takes
        {'at': 'layer3', 'stop_grad': True}
    """

    at: str
    stop_grad: bool
    reason: str = field(compare=False)
    score: float = field(compare=False)
    stretch: tuple[str, str] = field(compare=False)

    def __getitem__(self, name: str) -> Any:
        if name not in ("at", "stop_grad"):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(("at", "stop_grad"))

    def __len__(self) -> int:
        return 2

    def __str__(self) -> str:
        return f"{self.at}, stop_grad={self.stop_grad}: {self.reason}"


class Advice(Sequence[Suggestion]):
    """Suggestions, the best first; ``print`` shows them.

    Attributes:
        similarity: the CKA matrix behind it.
        stretches: what was found in it.
        threshold: above which mean similarity sites form a stretch.
        sites: those that stretches were looked for in: without such as have the same values as the one before.

    Examples:
        >>> import torch
        >>> from graphaug.analysis import advise
        >>> layers = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(3)]
        >>> found = advise(torch.nn.Sequential(*layers), torch.randn(64, 8))
        >>> [s.score for s in found] == sorted((s.score for s in found), reverse=True)  # the best comes first
        True
    """

    def __init__(
        self,
        suggestions: Sequence[Suggestion],
        similarity: CKA,
        found: Sequence[Stretch],
        threshold: float,
        sites: Sequence[str] | None = None,
    ):
        self.suggestions, self.similarity = list(suggestions), similarity
        self.stretches, self.threshold = list(found), threshold
        self.sites = tuple(similarity.rows if sites is None else sites)

    @overload
    def __getitem__(self, index: int) -> Suggestion: ...
    @overload
    def __getitem__(self, index: slice) -> list[Suggestion]: ...
    def __getitem__(self, index: int | slice) -> Suggestion | list[Suggestion]:
        return self.suggestions[index]

    def __len__(self) -> int:
        return len(self.suggestions)

    def __str__(self) -> str:
        if not self.suggestions:
            found = f"of {len(self.sites)} sites, {self.similarity.samples} samples"
            if self.threshold >= 1 or len(self.sites) == 1:
                return f"no stretch of co-adapted sites: all are the same, with a CKA of 1 ({found})."
            return (
                f"no stretch of co-adapted sites: none has a mean CKA above {self.threshold:.2f} and a boundary, "
                f"where similarity falls by more than the distance between sites explains ({found})."
            )
        return "\n".join(f"{i}. {s}" for i, s in enumerate(self.suggestions, 1))

    def score(self, at: str, stop_grad: bool) -> float:
        """Score of a setting: that of its suggestion, or 0 where none is made."""
        return next((s.score for s in self if s.at == at and s.stop_grad == stop_grad), 0.0)


@checked_names
def advise(
    model: nn.Module,
    data: Any,
    sites: At | None = None,
    *,
    estimator: str = "unbiased",
    tokens: str = "mean",
    threshold: float | None = None,
    batch_size: int = 256,
) -> Advice:
    """Suggest where to put Deep Augmentation in a trained model.

    The paper finds that it works best around the ends of stretches of co-adapted layers: with the gradient stopped at
    the start of one, without at its end. The stretches come from `stretches` on the CKA matrix of the sites.

    Args:
        model: plain or rewritten, after some training; it is not changed.
        data: as for `cka`; 500 samples or more are advisable.
        sites: candidates, by default those block-level sites of `graphaug.sites` that separate input from output.
        estimator, tokens, batch_size: as for `cka`.
        threshold: as for `stretches`.

    Returns:
        An `Advice`, a list of `Suggestion`s that `graphaug.rewrite` takes as ``**suggestion``. It is empty if no
        stretch stands out. A site that does not separate input from output is not suggested, but the nearest one of its
        stretch that does. Sites with the values of the one before, as of a flatten or of dropout, which does nothing
        in eval mode, are compared, but neither make a stretch nor are suggested.

    Raises:
        SiteNotFound: fewer than 3 sites.
        Whatever `cka` raises.

    Examples:
        >>> import torch
        >>> from graphaug.analysis import advise
        >>> layers = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(3)]
        >>> found = advise(torch.nn.Sequential(*layers), torch.randn(64, 8))
        >>> {suggestion.at for suggestion in found} <= {"0", "1", "2"}
        True
    """
    plain = plain_model(model)
    stream = batches(plain, data, batch_size)
    example = next(stream)
    if not isinstance(data, (Tensor, Mapping, list, tuple)):
        # what can be read once has lost its first batch to the look at the sites
        data = _rejoined(example, stream)
    chosen = sites
    if sites is None:
        sites = candidates(plain, example)
    similarity = cka(plain, data, sites, estimator=estimator, tokens=tokens, batch_size=batch_size)
    if len(similarity.rows) < FEWEST:
        which = "Without sites= those that separate input from output are compared, of a block its whole or its parts. "
        raise SiteNotFound(
            f"advice needs {FEWEST} sites or more to compare, not {len(similarity.rows)}. "
            f"{which if chosen is None else ''}graphaug.sites(model) lists sites to choose from."
        )
    through = None if chosen is None else _separating(plain, example)  # candidates are such already
    return advice_of(similarity, threshold=threshold, suggest=through)


def advice_of(
    similarity: CKA,
    *,
    threshold: float | None = None,
    leave_out: Sequence[str] = (),
    suggest: Collection[str] | None = None,
) -> Advice:
    """What a CKA matrix of one model's sites advises.

    Args:
        similarity: as `cka` gives it.
        threshold: as for `stretches`.
        leave_out: sites that are not looked at.
        suggest: sites that may be suggested, all if None: the outermost such of a stretch are.
    """
    shown = [i for i, name in enumerate(similarity.rows) if name not in leave_out]
    kept = [shown[i] for i in _distinct(similarity.values[shown][:, shown])]
    values = similarity.values[kept][:, kept]
    found = [replace(s, start=kept[s.start], end=kept[s.end]) for s in stretches(values, threshold=threshold)]
    suggestions = [s for stretch in found for s in _suggest(similarity.rows, stretch, suggest)]
    limit = threshold_of(values) if threshold is None else threshold
    return Advice(suggestions, similarity, found, limit, [similarity.rows[i] for i in kept])


def candidates(model: nn.Module, example_inputs: Any) -> list[str]:
    """The sites worth comparing: blocks and numbered stages that separate input from output, in order, once each.

    A model without blocks (a plain sequence of layers) is compared layer by layer; one whose forward adds what its
    layers give to what came in, so that they separate nothing, at those additions too.
    """
    structure = structure_of(model, example_inputs)
    rows = rows_of(example_inputs)
    nodes = structure.capture_deep(openable(structure.model, None, False)).graph.nodes  # kept from the table
    values = {node.meta.get("site"): first_of(value_of(node)) for node in nodes}

    def holds_batch(site: Site) -> bool:  # a block may return a tuple, of which one entry is augmented
        value = values.get(site.target)
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows

    found = [
        site
        for site in sites_of(structure, depth=None, everything=False)
        if site.separates and site.target.side == "after" and holds_batch(site)
    ]
    blocks = [s for s in found if s.stage is not None or (s.op is None and _is_block(s.module))]
    layers = [s for s in found if s.op is None]
    chosen = next((some for some in (blocks, layers) if len(some) >= FEWEST), None)
    if chosen is None:
        chosen = [s for s in found if s.op is None or ADDITION.fullmatch(s.op)]
    paths = [s.path for s in chosen]
    # a container's output is that of its last entry
    return [str(s) for s in chosen if not any(p.startswith(s.path + ".") for p in paths)]


def _is_block(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and any(True for _ in module.parameters())


def _distinct(values: Tensor) -> list[int]:
    """Indices of the sites whose values differ, beyond rounding, from those of the one before."""
    kept = [0]
    for i in range(1, len(values)):
        same = values[i, kept[-1]] > 1 - 1e-6 and (values[i] - values[kept[-1]]).abs().max() < 1e-5
        if not same:
            kept.append(i)
    return kept


def _rejoined(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    for inputs in (first, *rest):
        yield inputs if isinstance(inputs, Mapping) or len(inputs) > 1 else inputs[0]


def _separating(model: nn.Module, example_inputs: Any) -> set[str]:
    """Sites that separate input from output, as `cka` names them."""
    structure = structure_of(model, example_inputs)
    return {str(site) for site in sites_of(structure, depth=None, everything=True) if site.separates}


def _suggest(names: Sequence[str], stretch: Stretch, allowed: Collection[str] | None) -> Iterator[Suggestion]:
    first, last = names[stretch.start], names[stretch.end]
    fit = [n for n in names[stretch.start : stretch.end + 1] if allowed is None or n in allowed]
    if not fit:
        return
    where = (
        f"of the stretch {first} … {last} of co-adapted sites (mean CKA {stretch.similarity:.2f} inside, "
        f"{stretch.outside:.2f} to the other sites)"
    )
    for end, name, site, stop_grad in (("end", last, fit[-1], False), ("start", first, fit[0], True)):
        said = f"the {end}" if site == name else f"nearest to the {end}"
        yield Suggestion(site, stop_grad, f"{said} {where}", stretch.strength, (first, last))
