"""Deep views in a run: two views of a sample that the site makes of one row, and what they do not go with."""

from __future__ import annotations

from typing import Any

from graphaug.errors import ConfigError

VIEWS = 2
"""How many views a contrastive loss takes here."""


def check_deep_views(settings: Any) -> None:
    """Refuse settings with which the rows of one pass would not become two views.

    Args:
        settings: a `Settings`, which calls this.

    Raises:
        ConfigError: no site or several, nothing that differs between the views, or a sparse backward of views that
            are not drawn together.
    """
    if not settings.deep_views:
        return
    if settings.everywhere or len(settings.at) != 1:
        there = f"there are {len(settings.at)} sites" if settings.at else "there is no site"
        there = "everywhere means every stage" if settings.everywhere else there
        raise ConfigError(
            f"deep_views=True makes the two views at one site, and {there}: name one with at= (--at)."
        )
    rates = (*(settings.rates or (settings.rate,)), getattr(settings, "rate_end", None) or 0.0)
    subsets = (settings.subset, getattr(settings, "subset_end", None) or 0.0)
    if not max(rates) or not max(subsets):
        name = "subset" if max(rates) else "rate"
        raise ConfigError(
            f"deep_views=True with {name}={0.0!r}: nothing would be drawn at the site, where the two views of a row "
            f"come to differ. Give a {name} above 0."
        )
    if settings.backward == "sparse" and settings.pairing != "together":
        raise ConfigError(
            "deep_views=True with backward='sparse': a row is stopped in one view and not in the other, so that none "
            "can be skipped. Give pairing='together', which stops both or neither, or backward='auto'."
        )
