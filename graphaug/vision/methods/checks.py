"""What a method does not go with: refused when the settings are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from graphaug.errors import ConfigError
from graphaug.vision.methods.table import METHOD_SETTINGS, METHODS, having
from graphaug.vision.methods.teacher import SCHEDULES


def check_method(settings: Any) -> None:
    """Refuse a method's settings with another one, values outside their domain, and options it does not go with.

    Args:
        settings: a `PretrainConfig`, which calls this; what None means is filled in.

    Raises:
        ConfigError: names the setting, and what to do.
    """
    settings.one_of(method=METHODS)
    kind, method = type(settings), METHODS[settings.method]
    found = {name: getattr(settings, name) for name in METHOD_SETTINGS}
    refuse_foreign(settings.method, {n: value for n, value in found.items() if value != getattr(kind, n)})
    for name in ("projection", "hidden", "queue"):
        if getattr(settings, name) is not None:
            settings.at_least(**{name: 1})
    settings.shares("teacher_momentum")
    settings.not_negative("redundancy")
    if settings.teacher_schedule is not None:
        settings.one_of(teacher_schedule=SCHEDULES)
    if settings.queue is not None and settings.queue < settings.batch_size:
        raise ConfigError(
            f"queue={settings.queue} with batch_size={settings.batch_size}: the keys of one step have no place in it. "
            f"Give at least {settings.batch_size}."
        )
    _check_weights(settings.vicreg_weights)
    if method.rows == 1:
        _check_one_view(settings)
    if not method.labels:
        return
    _check_mix(settings)


def refuse_foreign(method: str, given: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for settings that a method does not have."""
    own = METHODS[method].settings
    foreign = [name for name in given if name in METHOD_SETTINGS and name not in own]
    if not foreign:
        return
    spelled = ", ".join(f"{name}={given[name]!r}" for name in foreign)
    others = "; ".join(f"{name} is of {', '.join(having(name))}" for name in foreign)
    raise ConfigError(
        f"{spelled} with method={method!r}, which does not have {'it' if len(foreign) == 1 else 'them'}: {others}. "
        "Leave out one or the other."
    )


def _check_weights(weights: tuple[float, ...]) -> None:
    if weights and (len(weights) != 3 or not all(math.isfinite(w) and w >= 0 for w in weights)):
        raise ConfigError(
            "vicreg_weights are three numbers of at least 0, of invariance, variance and covariance, not "
            f"{list(weights)}."
        )


def _check_one_view(settings: Any) -> None:
    """Refuse what needs both views in the trained network."""
    if settings.pairing != "any":
        raise ConfigError(
            f"pairing={settings.pairing!r} with method={settings.method!r}: one view of an image enters the trained "
            "network, so that there is no second half of the rows. Give pairing='any'."
        )


def _check_mix(settings: Any) -> None:
    """Refuse mixed rows where nothing could be said of their labels."""
    if settings.transform != "mix":
        return
    if settings.method == "supcon":
        raise ConfigError(
            "transform='mix' with method='supcon': a mixed row is of two classes, and this loss knows one. Give "
            "method='supervised', or another transform."
        )
    if settings.everywhere or len(settings.at) > 1:
        raise ConfigError(
            f"transform='mix' at several sites with method={settings.method!r}: a row that is mixed twice has no loss "
            "here. Name one site with at= (--at)."
        )
