"""Options of the command line that would do nothing: refused, as whoever gives them expects something of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphaug.errors import ConfigError

AUGMENTATION = (
    "transform",
    "rate",
    "rates",
    "rate_end",
    "subset",
    "subset_end",
    "stop_grad",
    "sampling",
    "granularity",
    "pairing",
    "deep_views",
    "augment_teacher",
    "freeze",
    "backward",
)
"""What is done at a site, and nothing without one."""


def refuse_idle(given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse what was typed and changes nothing.

    Only what was typed: a file, a preset or a run to resume may hold any setting. A ``False`` or ``None`` that was
    typed asks for nothing, and gets it.

    Args:
        given: settings of the command line, by name.
        settings: all that are known, those of the command line included.

    Raises:
        ConfigError: names the options, and what is missing.
    """
    asked = [name for name, value in given.items() if value is not None and value is not False]
    if not settings.get("at") and not settings.get("everywhere"):
        _refuse([name for name in AUGMENTATION if name in asked], "without a site", "name one with --at")
    if settings.get("rates") and "rate" in asked:
        _refuse(["rate"], "where each site has a rate of its own")
    other = "with another transform than dropout"
    rules = {
        "rate": (settings.get("transform", "dropout") != "dropout", other, ""),
        "granularity": (settings.get("transform", "dropout") != "dropout", other, ""),
        "momentum": (
            settings.get("optimizer") == "adamw",
            "with --optimizer adamw, which has moments of its own",
            "",
        ),
        "warmup_from": (settings.get("warmup") == 0, "without a warm-up", "give --warmup more than 0"),
        "freeze_until": (
            not settings.get("freeze_schedule"),
            "without a schedule of freezing",
            "name a module with --freeze-schedule",
        ),
        "watch_every": (
            (settings.get("watch_every") or 0) > (settings.get("epochs") or 0),
            "in a run of fewer epochs",
            "",
        ),
        "keep": (settings.get("checkpoint_every") == 0, "with --checkpoint-every 0, which keeps none", ""),
    }
    for name, (idle, reason, remedy) in rules.items():
        if idle and name in asked:
            _refuse([name], reason, remedy)


def refuse_without(context: Any, switch: str, *names: str) -> None:
    """Refuse options that belong to a switch which was not given.

    Args:
        context: of the command, a `typer.Context`.
        switch: the option that they belong to, as it is typed; its parameter is off.
        names: of the parameters that do nothing without it.

    Raises:
        ConfigError: one of them was typed.
    """
    refuse_typed(context, *names, reason=f"without {switch}", remedy=f"give {switch} too")


def refuse_typed(context: Any, *names: str, reason: str, remedy: str = "") -> None:
    """Refuse options that were typed and do nothing, for a reason.

    Args:
        context: of the command, a `typer.Context`.
        names: of the parameters.
        reason: as it stands behind "does nothing".
        remedy: what would make them do something.

    Raises:
        ConfigError: one of them was typed.
    """
    _refuse([name for name in names if _is_typed(context, name)], reason, remedy)


def _is_typed(context: Any, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _refuse(names: Sequence[str], reason: str, remedy: str = "") -> None:
    if names:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        does, them = ("does", "it") if len(names) == 1 else ("do", "them")
        remedy = f"{remedy}, or leave {them} out" if remedy else f"leave {them} out"
        raise ConfigError(f"{options} {does} nothing {reason}: {remedy}.")
