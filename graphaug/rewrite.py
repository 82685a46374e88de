"""The two verbs of the library: put Deep Augmentation into a model, and take it out again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Unpack, overload

from torch import nn

from graphaug.arguments import checked_names
from graphaug.augment.choices import check_flag
from graphaug.capture.recording.tables import undisturbed
from graphaug.errors import NotRewritten, an
from graphaug.operation import build, operate
from graphaug.select.resolve import At
from graphaug.sites import structure_of
from graphaug.surgery.again import earlier_rewrite, joined
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.plan import Asked, Plan
from graphaug.surgery.requests import (
    Change,
    Options,
    base_options,
    check_options,
    check_plan,
    may_stop,
    repeated,
    requested,
    suggested,
)
from graphaug.surgery.unwrap import plain_model, unwrap_hint


@overload
def rewrite(
    model: nn.Module,
    at: At | Plan | Mapping[Any, float | Change],
    *,
    dry_run: Literal[True],
    **options: Unpack[Options],
) -> Plan: ...
@overload
def rewrite(
    model: nn.Module,
    at: At | Plan | Mapping[Any, float | Change],
    *,
    dry_run: Literal[False] = False,
    **options: Unpack[Options],
) -> AugmentedModule: ...
@checked_names
def rewrite(
    model: nn.Module,
    at: At | Plan | Mapping[Any, float | Change],
    *,
    rate: float | None = None,
    subset: float = 0.5,
    stop_grad: bool = False,
    transform: Change | None = None,
    views: int = 1,
    one_site: bool = False,
    sampling: str = "exact",
    granularity: str | None = None,
    pairing: str = "any",
    freeze: str | None = None,
    side: str = "after",
    exclude: At | None = None,
    expect: int | None = None,
    allow_bypass: bool = False,
    backward: str = "auto",
    rows: int | str | None = None,
    example_inputs: Any = None,
    dry_run: bool = False,
) -> AugmentedModule | Plan:
    """Put Deep Augmentation into a model, at one or several of its layers.

    The model is not changed and nothing of it is copied: the result shares its modules, parameters and
    buffers, has the same ``state_dict`` keys, and computes the same in eval mode, bit for bit.

    Args:
        model: a plain ``nn.Module``; rewrite before wrapping it in DDP or compiling it.
        at: where: a selector, a list of them, or ``{selector: rate or transform}``; see the selection language. Or an
            entry of `graphaug.analysis.advise`, whose site and ``stop_grad`` are taken. Or a `Plan`, which has all
            options in it: what was done to another model of that architecture is done to this one.
        rate: dropout probability on the augmented rows, in [0, 1]; 0.5 if neither it nor a transform is given. Not
            beside a dict, which says it of each site.
        subset: share of the rows (the batch dimension at the cut) that is augmented, in [0, 1].
        stop_grad: stop the gradient of the augmented rows behind what is done to them.
        transform: what is done to the augmented rows instead of dropout: one of `graphaug.Noise`, `graphaug.Mix`, …, or
            any module or function of rows of shape (n, …). Options of the site that it was given come first.
        views: deep views: the prefix runs once, at the site every row becomes so many rows with draws of their own, and
            the output is ``[z1; …; zk]``. What the copies of the input would not share is in the plan's notes.
        one_site: of several sites one acts in a forward, drawn uniformly each time (Manifold Mixup, Verma et al. 2019).
        sampling: ``"exact"``, ``round(subset * rows)`` rows, or ``"bernoulli"``, each row by itself.
        granularity: of dropout, what is dropped together: ``"element"`` (the default), ``"channel"``, ``"position"``.
        pairing: ``"any"`` row; ``"one-sided"``: rows of the first half (the first view) only; ``"together"``: both
            views of a sample or neither (rows ``i`` and ``i + B/2``; with ``views=k`` all k of them).
        freeze: ``"before"``: nothing up to and including the cut is trained; ``"after"``: nothing behind.
        side: ``"after"``: the output of what ``at`` names; ``"before"``: its input.
        exclude: sites to leave out, in the same language as ``at``.
        expect: how many sites must match; with it, a module called several times is taken in all its calls.
        allow_bypass: accept a site that does not separate the input from the output.
        backward: ``"dense"`` runs the whole backward; ``"sparse"`` skips that of stopped rows below the cut,
            or raises; ``"proved"`` does so only where rows are proved independent; ``"auto"`` is sparse where
            they are, or where the example shows nothing against it and an operation is unknown, and the plan says
            which of it, and why not.
        rows: the dimension of the inputs that holds the samples, where it is not the one along which nothing meets; or
            the name of an input that tells the sample of every entry of dimension 0, as torch_geometric's ``batch``
            tells the graph of every node: subset, counts and the mask are then of those, and the backward is dense.
        example_inputs: what the model is called with (a tensor, a tuple, a dict of keywords; 2 rows or
            more). Only the final check, and the probe behind a sparse backward that is not proved, compute with it.
            Without it inputs are taken from what the model declares or from its first layers, as sizes without
            data; the plan says which.
        dry_run: return the plan and build nothing.

    Returns:
        The rewritten model, an `AugmentedModule`; with ``dry_run`` its `Plan`. It is called, trained and saved as the
        model was, and also has

        - ``plan``: what was done, what was proved, and why the backward is sparse or dense; ``print(aug.plan)``.
        - ``original``: the very model that was given; `strip` returns it.
        - ``augmentations``: the module that augments, by site: ``aug.augmentations["layer4"]``.
        - ``drawn``: what was drawn in the last step, by site: ``aug.drawn["layer4"].rows`` are the augmented rows.
        - ``set_rate(0.3)``, ``set_subset(0.25)``, ``set("layer4", sigma=0.1)``: change numbers while it trains.
        - ``given(labels=y)``: hands in what a transform needs to know of a batch, in a ``with`` block.
        - ``dense()``: runs the whole backward, in a ``with`` block; ``only_the_graph()``: also never the original model
          in eval mode.
        - ``keep_frozen_statistics(False)``: lets BatchNorms in a frozen region follow the batches.

    Raises:
        SiteNotFound, AmbiguousSite, SiteCountMismatch, SelectorError: ``at`` does not say where.
        BypassedSite: the site does not separate the input from the output.
        CaptureError: the forward cannot be captured.
        UnknownOption: an argument that there is not, one too many, or no ``at``.
        InvalidOption: an option is outside its domain, or of dropout where there is a transform.
        AlreadyRewritten: the model is augmented at that site already.
        SharedAcrossCut: ``freeze`` would freeze a parameter that is used on both sides.
        SparseBackwardError: ``backward="sparse"`` and it would not be exact, or ``"proved"`` and it is not proved.
        UnsupportedModel: the model is wrapped, compiled, or no module.

        What is returned raises in its calls: `AssumptionViolated` for inputs that differ from the example in something
        that the graph relies on, `BatchError` for a batch that the augmentation is not defined for.

    Examples:
        >>> import torch, graphaug as ga
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> batch = torch.randn(6, 4)
        >>> aug = ga.rewrite(model, at="1", rate=0.5, subset=0.5, stop_grad=True, example_inputs=batch)
        >>> aug.plan.backward
        'sparse'
        >>> aug.train()(batch).shape  # half of the rows were augmented behind the ReLU
        torch.Size([6, 2])
        >>> ga.rewrite(model, at={"0": 0.1, "1": 0.3}, dry_run=True).sites[1].request.rate
        0.3
    """
    at, stop_grad, why = suggested(at, stop_grad)
    earlier = earlier_rewrite(model)
    model = plain_model(model)
    options = base_options(rate, subset, stop_grad, sampling, granularity, pairing, transform, at)
    asked = Asked(freeze, backward, allow_bypass, rows, views, one_site)
    check_options(options, asked)
    check_flag("dry_run", dry_run)
    if isinstance(at, Plan):
        check_plan(at, options)

    with undisturbed(model, example_inputs):
        wanted = at.asked if isinstance(at, Plan) else asked
        flops = wanted.views != 1 or (may_stop(at, options) and wanted.backward != "dense")
        structure = structure_of(model, example_inputs, count_flops=flops)
        if isinstance(at, Plan):
            given = {"side": (side, "after"), "exclude": (exclude, None), "expect": (expect, None)}
            requests = repeated(structure, at, options, {**given, "options": (asked, Asked())})
        else:
            requests = requested(structure, at, options, side=side, exclude=exclude, expect=expect)
        if earlier is not None:
            requests = joined(earlier, requests, wanted)
        operation = operate(structure, requests, wanted, why)
        flags = [(m, m.training) for m in model.modules()]
        aug = build(operation)
    if dry_run:
        for module, flag in flags:  # frozen norms went to eval mode
            module.training = flag
        return aug.plan
    if aug._parts.frozen is not None:
        aug._parts.frozen.freeze()
    return aug


@checked_names
def strip(aug: nn.Module) -> nn.Module:
    """Take Deep Augmentation out again.

    Args:
        aug: a model made by `rewrite`.

    Returns:
        The very model that was rewritten, with its trained weights; what ``freeze`` froze and is still there is
        trainable again.

    Raises:
        NotRewritten: ``aug`` was not made by `rewrite`.

    Examples:
        >>> import torch, graphaug as ga
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> ga.strip(ga.rewrite(model, at="0")) is model
        True
    """
    if not isinstance(aug, AugmentedModule):
        raise NotRewritten(f"strip takes what graphaug.rewrite returned, not {an(aug)}.{unwrap_hint(aug)}")
    model = aug.original
    if aug._parts.frozen is not None:
        aug._parts.frozen.thaw()
    model.train(aug.training)
    return model
