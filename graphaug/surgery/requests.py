"""From what a caller asked for to the sites and options of a rewrite."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from graphaug.augment.deep_augment import DeepAugment, check_choice, check_probability
from graphaug.augment.rows import BATCH, Rows
from graphaug.errors import AlreadyRewritten, InvalidOption, SelectorError, SiteCountMismatch
from graphaug.select.model_structure import ModelStructure
from graphaug.select.resolve import At, resolve
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.place import call_of
from graphaug.surgery.plan import Request


class Options(TypedDict, total=False):
    """The keywords of `graphaug.rewrite`, with their types; what they mean is documented there."""

    rate: float
    subset: float
    stop_grad: bool
    sampling: str
    granularity: str
    pairing: str
    freeze: str | None
    side: str
    exclude: At | None
    expect: int | None
    allow_bypass: bool
    backward: str
    rows: int | None
    example_inputs: Any


def check_options(
    options: Request, freeze: str | None, backward: str, allow_bypass: bool, rows: int | None
) -> None:
    """Raise ``InvalidOption`` if one of the options is outside its domain."""
    augmentation_of(options)
    check_choice("freeze", freeze)
    check_choice("backward", backward)
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 0):
        raise InvalidOption(f"rows={rows!r} is no dimension of the inputs: give 0, 1, …")
    if not isinstance(allow_bypass, bool):
        raise InvalidOption(f"allow_bypass={allow_bypass!r} is neither True nor False.")


def augmentation_of(request: Request, place: Rows = BATCH) -> DeepAugment:
    """The module that does what was requested at a site, where the rows lie as told."""
    return DeepAugment(
        request.rate,
        request.subset,
        request.stop_grad,
        request.sampling,
        request.granularity,
        request.pairing,
        place,
    )


def suggested(at: Any, stop_grad: bool) -> tuple[Any, bool, str]:
    """The site and the setting of an entry of ``advise(...)``, and why it was advised; anything else as it is.

    Raises:
        InvalidOption: the entry is for training without stopped gradients, and they were asked for.
    """
    site, stop, reason = (getattr(at, name, None) for name in ("at", "stop_grad", "reason"))
    if not (isinstance(site, str) and isinstance(stop, bool)):
        return at, stop_grad, ""
    if stop_grad and not stop:
        raise InvalidOption(
            f"'{site}' is advised for stop_grad=False. Take an entry for stop_grad=True, or its site: at={site!r}."
        )
    return site, stop, f"advised: {reason}"


def requested(
    structure: ModelStructure,
    at: At | Mapping[Any, float],
    options: Request,
    *,
    side: str,
    exclude: At | None,
    expect: int | None,
) -> list[Request]:
    """Resolve ``at`` into sites with their options."""
    if not isinstance(at, Mapping):
        targets = resolve(at, structure, side=side, exclude=exclude, expect=expect)
        rates = dict.fromkeys(targets, options.rate)
    else:
        if not at:
            raise SelectorError("at={} names no site: give {selector: rate}.")
        rates = {}
        for selector, rate in at.items():
            check_probability(f"rate at {selector!r}", rate)
            for target in resolve(selector, structure, side=side, exclude=exclude):
                if target in rates:
                    raise InvalidOption(f"at= gives '{target}' two rates: {rates[target]} and {rate}.")
                rates[target] = float(rate)
        if expect is not None and len(rates) != expect:
            found = ", ".join(map(str, rates))
            raise SiteCountMismatch(f"expect={expect}, but at= matches {len(rates)} sites: {found}.")
    canonical = {dataclasses.replace(t, path=structure.canonical(t.path)): rate for t, rate in rates.items()}
    return [dataclasses.replace(options, target=t, rate=rate) for t, rate in canonical.items()]


def joined(earlier: AugmentedModule, requests: Sequence[Request], freeze: str | None) -> list[Request]:
    """The sites of a model that is rewritten a second time: the earlier ones and the new ones."""
    current = earlier.augmentations  # a rate may have been set since
    before = [
        dataclasses.replace(r, rate=current[r.target]._rate, subset=current[r.target]._subset)
        for r in (site.request for site in earlier.plan.sites)
    ]
    taken = {call_of(r.target) for r in before}
    again = [str(r.target) for r in requests if call_of(r.target) in taken]
    if again:
        raise AlreadyRewritten(
            f"this model is already rewritten at {', '.join(again)}: use aug.set_rate to change the rate there, "
            "or rewrite(strip(aug), ...) to start over."
        )
    if earlier.plan.freeze is not None or freeze is not None:
        raise AlreadyRewritten(
            "this model is already rewritten, and freeze has one cut to go by: "
            "rewrite(strip(aug), at=[...]) with all sites in one call."
        )
    return [*before, *requests]
