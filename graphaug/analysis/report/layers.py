"""What the report says of a run's layers, on images or on text: their similarity, the advice, and the dissection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import graphaug
from graphaug.analysis.advise import advice_of
from graphaug.analysis.cka import cka
from graphaug.analysis.dissection import Dissection, dissect
from graphaug.analysis.report.findings import LayerFindings
from graphaug.analysis.report.read import Run
from graphaug.capture.inputs.signature import map_tensors
from graphaug.capture.target import Target
from graphaug.errors import DataError, GraphaugError
from graphaug.sites import structure_of
from graphaug.surgery.module import AugmentedModule

SEED = 0  # of the samples looked at and of their views: the same for every run


def spectrum(top: Tensor, run: Run) -> Tensor:
    """Singular values of a run's features, (samples, D), as shares of their sum; raises ``DataError`` if not finite."""
    if not bool(top.isfinite().all()):
        raise DataError(
            f"the features of the encoder in {str(run.path)!r} are not finite: the run has diverged."
        )
    values: Tensor = torch.linalg.svdvals(top.double() - top.double().mean(0))
    return values / values.sum().clamp(min=1e-30)


def compare_layers(
    run: Run,
    model: nn.Module,
    samples: Any,
    candidate: list[str],
    targets: list[Target],
    inside: list[Target],
    why: str,
) -> LayerFindings:
    """CKA between the candidates and the cuts, the advice it gives, and the dissection.

    Args:
        run: whose settings the augmentation has.
        model: in which all is looked at.
        samples: a tensor or a dict of tensors.
        candidate: sites that the advice may name.
        targets: where the run augmented.
        inside: such of them as are in the model.
        why: there is no dissection, as far as known.
    """
    spelled = [_compared(t, candidate) for t in inside]
    try:
        similarity = cka(model, samples, [*candidate, *(s for s in spelled if s not in candidate)])
    except GraphaugError:  # the cut has no activations of every row in eval mode: compared is what can be
        similarity = cka(model, samples, candidate)
    # a module that is called twice is named with the call
    cuts = [n for s, t in zip(spelled, inside, strict=True) for n in {s, str(t)} if n in similarity.rows]
    dissection = None
    if inside:
        dissection, why = _dissected(run, model, inside, samples, similarity.rows)
    return LayerFindings(
        tuple(map(plain_name, targets)) or tuple(map(str, run.config.at)),
        tuple(cuts),
        advice_of(similarity, leave_out=[c for c in cuts if c not in candidate]),
        dissection,
        why,
    )


def augmented_sites(run: Run, network: nn.Module, samples: Any) -> tuple[list[Target], str]:
    """The sites that a run augmented in the network that it trained, or why they are not to be had."""
    at: list[str | int] = list(run.config.at)
    try:
        if run.config.everywhere:
            at = [number for number in structure_of(network, first_rows(samples, 2)).stages if number >= 0]
        if not at:
            return [], ""
        return list(_rewritten(run, network, at, samples).augmentations), ""
    except GraphaugError as error:
        return [], str(error)


def _rewritten(run: Run, model: nn.Module, at: list[Any], samples: Any) -> AugmentedModule:
    options = {**run.config.deep_augmentation(), "freeze": None}
    aug: AugmentedModule = graphaug.rewrite(
        model,
        at=run.config.where(at),
        backward="dense",
        example_inputs=first_rows(samples, 2),
        **options,
    )
    return aug


def _dissected(
    run: Run, model: nn.Module, targets: list[Target], samples: Any, sites: Sequence[str]
) -> tuple[Dissection | None, str]:
    try:
        aug = _rewritten(run, model, list(map(str, targets)), samples)
        return dissect(aug, first_rows(samples, 128), list(sites)), ""
    # a subset that is 0 rows of the batch, a site that eval mode does not have
    except GraphaugError as error:
        return None, str(error)


def first_rows(samples: Any, count: int) -> Any:
    """Of a tensor, or of every tensor in a dict."""
    return map_tensors(lambda t: t[:count], samples)


def _compared(target: Target, sites: Sequence[str]) -> str:
    """An augmented site as the matrix names it: a container's output is that of its last entry."""
    name = plain_name(target)
    entries = [s for s in sites if is_within(s, name)]
    return name if name in sites or not entries else entries[-1]


def plain_name(target: Target) -> str:
    """A site's name, without the call where that is the first."""
    return str(target).removesuffix("@0")


def is_within(path: str, outer: str) -> bool:
    """Whether a module lies in another, or is it."""
    return path == outer or path.startswith(outer + ".")
