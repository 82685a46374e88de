"""The augmentations of a rewritten model by site, with sites spelled as the plan spells them."""

from __future__ import annotations

from typing import Any

from graphaug.augment.site import Augmentation
from graphaug.capture.target import Target
from graphaug.errors import SiteNotFound, did_you_mean


class Augmentations(dict[Target, Augmentation]):
    """Site → its augmentation; a key is a `Target`, or its text as in the plan: ``aug.augmentations["blocks.5"]``."""

    def __getitem__(self, key: Target | str) -> Augmentation:
        spelled = self.spelled()
        if isinstance(key, Target) and super().__contains__(key):
            return super().__getitem__(key)
        if isinstance(key, str) and key in spelled:
            return spelled[key]
        raise SiteNotFound(
            f"this model is not augmented at {str(key)!r}.{did_you_mean(str(key), spelled)} "
            f"Its sites: {', '.join(spelled)}."
        )

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and key in self.spelled())

    def get(self, key: Any, default: Any = None) -> Any:
        """The augmentation at a site, or ``default`` if there is none."""
        try:
            return self[key]
        except SiteNotFound:
            return default

    def spelled(self) -> dict[str, Augmentation]:
        """The same by the text of each site."""
        return {str(target): augmentation for target, augmentation in self.items()}
