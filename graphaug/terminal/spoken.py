"""Errors of the library in the words of the command line: options instead of Python."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

_VALUE = r"('[^']*'|\"[^\"]*\"|True|False|None|[\w.+-]*\w|\[\]|\(\))"
_GIVEN = re.compile(rf"(?<!has )(?<![\w.'\[(-])([a-z][a-z_]*)={_VALUE}")
_ALTERNATIVES = (  # said of Python's arguments, and no command has such options
    r",? or expect=\d+ for (both|all)",
    r",? or pass allow_bypass=True",
    r" Pass allow_bypass=True\.",
)
_LISTED = re.compile(r"graphaug\.sites\(model\) lists")
_AT = re.compile(r"\bat= \(--at\)|\bat=(?![\w'\"\[(])")


def in_options(message: str, options: Collection[str], model: str = "MODEL") -> str:
    """A message with ``name=value`` as ``--name value``, for the options that the command has.

    Args:
        message: of one of graphaug's errors.
        options: names of the command's parameters.
        model: what the command line was given for a model.
    """
    if "allow_bypass" not in options:
        for pattern in _ALTERNATIVES:
            message = re.sub(pattern, "", message)
    message = _LISTED.sub(f"'graphaug sites {model}' lists", message)
    message = _AT.sub("--at", message)
    if "deep_views" in options:
        message = re.sub(r"\bviews=2\b", "--deep-views", message)
    message = re.sub(r"\b([a-z_]+)=\S* \((--[a-z-]+)\)", r"\2", message)  # "init= (--init)": said both ways

    def option(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in options:
            return match[0]
        flag = "--" + name.replace("_", "-")
        if value == "True":
            return flag
        if value == "False":
            return f"--no-{flag.removeprefix('--')}"
        return f"{flag} {'none' if value in ('None', '[]', '()') else value.strip(chr(39) + chr(34))}"

    message = _GIVEN.sub(option, message)
    first, _, rest = message.partition(" ")
    if (first in options and "_" in first) or (first in options and rest.startswith("must be")):
        message = f"--{first.replace('_', '-')} {rest}"
    return message


def options_of(app: Any, arguments: Sequence[str]) -> tuple[set[str], str]:
    """The parameters of the command that was typed, and the model that it was given, as far as both can be told."""
    import typer.main

    commands = getattr(typer.main.get_command(app), "commands", {})
    name = next((word for word in arguments if word in commands), None)
    if name is None:
        return set(), "MODEL"
    model = "MODEL"
    rest = list(arguments[arguments.index(name) + 1 :])
    if "--model" in rest[:-1]:
        model = rest[rest.index("--model") + 1]
    elif name in ("sites", "draw"):
        model = next((word for word in rest if not word.startswith("-")), model)
    return {parameter.name for parameter in commands[name].params}, model
