"""A model that is rewritten a second time: its earlier sites and the new ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from graphaug.augment.site import Augmentation
from graphaug.augment.transformed import Transformed
from graphaug.errors import AlreadyRewritten
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.place import call_of
from graphaug.surgery.plan import Asked, Request


def earlier_rewrite(model: object) -> AugmentedModule | None:
    """The model, if it was rewritten before.

    Raises:
        AlreadyRewritten: it is what another verb made, and would be lost.
    """
    if not isinstance(model, AugmentedModule):
        return None
    purpose = model.plan.purpose
    if purpose != "rewrite":
        raise AlreadyRewritten(
            f"this is what graphaug.{purpose} made of a model, and a rewrite would lose it: "
            "rewrite(strip(it), ...) rewrites the model itself."
        )
    return model


def joined(earlier: AugmentedModule, requests: Sequence[Request], asked: Asked) -> list[Request]:
    """The sites of a model that is rewritten a second time: the earlier ones and the new ones."""
    current = earlier.augmentations  # numbers may have been set since
    before = [_as_set(site.request, current[site.request.target]) for site in earlier.plan.sites]
    taken = {call_of(r.target) for r in before}
    again = [str(r.target) for r in requests if call_of(r.target) in taken]
    if again:
        raise AlreadyRewritten(
            f"this model is already rewritten at {', '.join(again)}: use aug.set_rate to change the rate there, "
            "or rewrite(strip(aug), ...) to start over."
        )
    either = (earlier.plan.asked, asked)
    once = {
        "freeze has one cut to go by": any(a.freeze is not None for a in either),
        "views are made at one site": any(a.views > 1 for a in either),
        "one_site is drawn from the sites of one call": any(a.one_site for a in either),
    }
    for why, is_asked in once.items():
        if is_asked:
            raise AlreadyRewritten(
                f"this model is already rewritten, and {why}: "
                "rewrite(strip(aug), at=[...]) with all sites in one call."
            )
    return [*before, *requests]


def _as_set(request: Request, augmentation: Augmentation) -> Request:
    """A request with the numbers that its site has now."""
    numbers = augmentation.numbers()
    if isinstance(augmentation, Transformed):
        transform = augmentation.transform.own()
        return dataclasses.replace(request, subset=numbers["subset"], transform=transform)
    return dataclasses.replace(request, subset=numbers["subset"], rate=numbers["rate"])
