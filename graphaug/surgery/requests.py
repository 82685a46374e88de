"""From what a caller asked for to the sites and options of a rewrite."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, TypedDict

from torch import Tensor, fx

from graphaug.augment.choices import CHOICES, check_choice, check_flag, check_probability, check_rate
from graphaug.augment.deep_augment import DeepAugment
from graphaug.augment.rows import BATCH, Rows
from graphaug.augment.site import Augmentation
from graphaug.augment.transform import Transform
from graphaug.augment.transformed import Transformed
from graphaug.augment.transforms.call import as_transform
from graphaug.augment.transforms.drop import GRANULARITIES, Dropout
from graphaug.augment.turns import Turns
from graphaug.capture.target import Target
from graphaug.errors import InvalidOption, SelectorError, SiteCountMismatch
from graphaug.select.model_structure import ModelStructure
from graphaug.select.resolve import At, resolve
from graphaug.surgery.called.views import check_views
from graphaug.surgery.plan import Asked, Plan, Request

Change = Transform | Callable[[Tensor], Tensor]
"""What can be done to the rows at a site: a transform, or any module or function of them."""


class Options(TypedDict, total=False):
    """The keywords of `graphaug.rewrite`, with their types; what they mean is documented there."""

    rate: float | None
    subset: float
    stop_grad: bool
    transform: Change | None
    views: int
    one_site: bool
    sampling: str
    granularity: str | None
    pairing: str
    freeze: str | None
    side: str
    exclude: At | None
    expect: int | None
    allow_bypass: bool
    backward: str
    rows: int | str | None
    example_inputs: Any


def base_options(
    rate: float | None,
    subset: float,
    stop_grad: bool,
    sampling: str,
    granularity: str | None,
    pairing: str,
    transform: object = None,
    at: object = None,
) -> Request:
    """The options of every site that has none of its own.

    Raises:
        InvalidOption: a rate is no probability, it is given together with a dict of them, or options of dropout are
            given together with a transform.
    """
    spelled = 0.5 if rate is None else check_rate(rate)
    dropped = "element" if granularity is None else granularity
    if dropped in GRANULARITIES and dropped not in CHOICES["granularity"]:
        raise InvalidOption(
            f"granularity={dropped!r} has options of its own: transform=graphaug.Dropout({spelled:g}, {dropped!r}, …)."
        )
    options = Request(Target(""), spelled, subset, stop_grad, sampling, dropped, pairing)
    if rate is not None and isinstance(at, Mapping) and at:
        raise InvalidOption(
            f"rate={rate!r} is of no site, as at= says of each what is done there: leave it out, or give at= a list."
        )
    if transform is None:
        return options
    for name, value in (("rate", rate), ("granularity", granularity)):
        if value is not None:
            raise InvalidOption(
                f"{name}={value!r} spells dropout, and transform= says what is done instead: give one of them, "
                "rate= or transform=graphaug.Dropout(...)."
            )
    return with_change(options, as_transform(transform))


def check_options(options: Request, asked: Asked) -> None:
    """Raise ``InvalidOption`` if one of the options is outside its domain."""
    augmentation_of(options)
    check_choice("freeze", asked.freeze)
    check_choice("backward", asked.backward)
    check_views(asked.views)
    for name in ("allow_bypass", "one_site"):
        check_flag(name, getattr(asked, name))
    rows = asked.rows
    told = rows is None or isinstance(rows, str)
    if not told and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 0):
        raise InvalidOption(
            f"rows={rows!r} is no dimension of the inputs: give 0, 1, …, or the name of an input that tells the "
            "sample of each entry."
        )


def check_plan(plan: Plan, options: Request) -> None:
    """Raise ``InvalidOption`` if a plan is of no rewrite, or its options are outside their domains."""
    if plan.purpose != "rewrite":
        raise InvalidOption(
            f"this plan is of graphaug.{plan.purpose}, and rewrite repeats those of rewrite: call "
            f"graphaug.{plan.purpose}."
        )
    if not plan.sites:
        raise InvalidOption("this plan has no sites, so there is nothing to repeat.")
    check_options(options, plan.asked)


def augmentation_of(request: Request, place: Rows = BATCH) -> Augmentation:
    """The module that does what was requested at a site, where the rows lie as told.

    Raises:
        InvalidOption: an option outside its domain, or one that the transform cannot have.
    """
    r = request
    if r.transform is not None:
        return Transformed(r.transform.own(), r.subset, r.stop_grad, r.sampling, r.pairing, place)
    return DeepAugment(r.rate, r.subset, r.stop_grad, r.sampling, r.granularity, r.pairing, place)


def take_turns(augmentations: Mapping[str, Augmentation], graph: fx.Graph) -> None:
    """Let one of the sites act in a forward: the first in the graph draws whose turn it is.

    Raises:
        InvalidOption: there is one site only.
    """
    if len(augmentations) < 2:
        raise InvalidOption("one_site=True draws one of several sites, and at= selects one only.")
    for augmentation in augmentations.values():
        transform = getattr(augmentation, "transform", None)
        if transform is not None and transform.needs.new_tokens:
            raise InvalidOption(
                f"one_site=True leaves a site alone where it is another's turn, and {type(transform).__name__} makes "
                "all rows of a batch shorter: give it a site of its own."
            )
    turns = Turns(len(augmentations))
    called = [str(n.target) for n in graph.nodes if n.op == "call_module" and n.target in augmentations]
    for number, name in enumerate(called):
        augmentations[name].turns, augmentations[name].number = turns, number


def with_change(options: Request, change: object) -> Request:
    """The options of a site with what is to be done there: a rate, or a transform with options of its own.

    Raises:
        InvalidOption: it is neither.
    """
    if isinstance(change, Real):
        return dataclasses.replace(options, rate=check_probability("rate", change), transform=None)
    transform = as_transform(change)
    options = dataclasses.replace(options, **transform.site_options)
    # one spelling of dropout is the other
    if type(transform) is Dropout and transform.granularity in ("element", "channel", "position"):
        rate = transform.numbers()["rate"]
        return dataclasses.replace(options, rate=rate, granularity=transform.granularity, transform=None)
    return dataclasses.replace(options, transform=transform.own())


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


def may_stop(at: object, options: Request) -> bool:
    """Whether a site may get a stopped gradient, by the options of all or by its own."""
    if isinstance(at, Plan):
        return any(site.request.stop_grad for site in at.sites)
    own = at.values() if isinstance(at, Mapping) else ()
    return options.stop_grad or any(
        isinstance(change, Transform) and change.site_options.get("stop_grad", False) for change in own
    )


def repeated(
    structure: ModelStructure, plan: Plan, options: Request, given: Mapping[str, Any]
) -> list[Request]:
    """The sites and options of a plan, for a model that has such sites.

    Args:
        structure: the model.
        plan: what to repeat.
        options: of the call, which has to leave them to the plan.
        given: more options of the call with their defaults, which it has to leave to the plan too: name to
            (value, default).

    Raises:
        InvalidOption: the call gives options besides the plan.
        SiteNotFound: the model has no such site.
    """
    plain = base_options(None, 0.5, False, "exact", None, "any")
    named = {f.name: (getattr(options, f.name), getattr(plain, f.name)) for f in dataclasses.fields(options)}
    for name, (value, default) in {**named, **given}.items():
        if value != default:
            raise InvalidOption(f"{name}={value!r} is said by the plan already: give the plan alone.")
    found = []
    for site in plan.sites:
        request = site.request
        transform = None if request.transform is None else request.transform.own()
        for target in resolve(str(request.target), structure):
            target = dataclasses.replace(target, path=structure.canonical(target.path))
            found.append(dataclasses.replace(request, target=target, transform=transform))
    return found


def requested(
    structure: ModelStructure,
    at: At | Mapping[Any, float | Change],
    options: Request,
    *,
    side: str,
    exclude: At | None,
    expect: int | None,
) -> list[Request]:
    """Resolve ``at`` into sites with their options."""
    if not isinstance(at, Mapping):
        chosen = dict.fromkeys(resolve(at, structure, side=side, exclude=exclude, expect=expect), options)
    else:
        chosen = _by_selector(structure, at, options, side=side, exclude=exclude)
        if expect is not None and len(chosen) != expect:
            found = ", ".join(map(str, chosen))
            raise SiteCountMismatch(f"expect={expect}, but at= matches {len(chosen)} sites: {found}.")
    canonical = {dataclasses.replace(t, path=structure.canonical(t.path)): r for t, r in chosen.items()}
    return [dataclasses.replace(r, target=t) for t, r in canonical.items()]


def _by_selector(
    structure: ModelStructure,
    at: Mapping[Any, float | Change],
    options: Request,
    *,
    side: str,
    exclude: At | None,
) -> dict[Target, Request]:
    """The options of every site that ``{selector: rate or transform}`` selects."""
    if not at:
        raise SelectorError("at={} names no site: give {selector: rate} or {selector: transform}.")
    if options.transform is not None:
        raise InvalidOption("at= says what is done at each site, and so does transform=: give one of them.")
    chosen: dict[Target, Request] = {}
    for selector, change in at.items():
        if not callable(change):
            check_probability(f"rate at {selector!r}", change)
        request = with_change(options, change)
        augmentation_of(request)  # says what it cannot have
        for target in resolve(selector, structure, side=side, exclude=exclude):
            if target in chosen:
                first, second = _change(chosen[target]), _change(request)
                kind = "rates" if isinstance(change, (int, float)) else "changes"
                raise InvalidOption(f"at= gives '{target}' two {kind}: {first} and {second}.")
            chosen[target] = request
    return chosen


def _change(request: Request) -> str:
    return str(request.rate) if request.transform is None else request.transform.in_words()
