"""Errors of the library in the words of the command line: options instead of Python."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from graphaug.errors import GraphaugError

_VALUE = r"('[^']*'|\"[^\"]*\"|True|False|None|[\w.+-]*\w|\[\]|\(\))"
_GIVEN = re.compile(rf"(?<!has )(?<![\w.'\[(-])([a-z][a-z_]*)={_VALUE}")
_ALTERNATIVES = (  # said of Python's arguments, and no command has such options
    r",? or expect=\d+ for (both|all)",
    r",? or pass allow_bypass=True",
    r" Pass allow_bypass=True\.",
)
_LISTED = re.compile(r"graphaug\.sites\(model\) lists")
_EXAMPLE = (
    "Pass example_inputs: what you call it with",
    "Let the file of the model have example_inputs: what the model is called with",
)
_AT = re.compile(r"\bat= \(--at\)|\bat=(?![\w'\"\[(])")


def in_options(message: str, options: Collection[str]) -> str:
    """A message with ``name=value`` as ``--name value``, for the options that the command has.

    Args:
        message: of one of graphaug's errors.
        options: names of the command's parameters.
    """
    if "allow_bypass" not in options:
        for pattern in _ALTERNATIVES:
            message = re.sub(pattern, "", message)
    message = message.replace(*_EXAMPLE)
    if "size" in options:
        message = message.replace("failed on example_inputs", "failed on the example image (--size sets it)")
    message = _AT.sub("--at", message)
    if "deep_views" in options:
        message = re.sub(r"\bviews=2\b", "--deep-views", message)
    # "init= (--init)", "task='none' (--task none)": said both ways
    message = re.sub(r"\b([a-z_]+)=\S* \((--[a-z-]+(?: \w+)?)\)", r"\2", message)
    message = re.sub(r"(--[a-z-]+) \([a-z_]+=\w+\)", r"\1", message)  # "--force (force=True)": the same

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


def options_of(app: Any, arguments: Sequence[str]) -> set[str]:
    """The parameters of the command that was typed, as far as it can be told."""
    import typer.main

    commands = getattr(typer.main.get_command(app), "commands", {})
    name = next((word for word in arguments if word in commands), None)
    return set() if name is None else {parameter.name for parameter in commands[name].params}


@contextmanager
def about(model: str) -> Iterator[None]:
    """Errors from inside say the command that lists the sites of a model, whose name is as ``graphaug sites`` takes it.

    Settings, a preset or a run may have said which model it is; the words that were typed need not.
    """
    try:
        yield
    except GraphaugError as error:
        lists = f"'graphaug sites {shlex.quote(model)}' lists"
        error.args = (_LISTED.sub(lambda _: lists, str(error)), *error.args[1:])
        raise
