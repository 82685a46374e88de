"""What a call gets wrong about names and numbers of arguments, said in our own words."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from graphaug.errors import UnknownOption, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")


def checked_names(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function, or the ``__init__`` of a public class, answer a call that does not fit its signature.

    Raises:
        UnknownOption: by the function, for an argument that it does not have, one that is missing, or too many.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            said = wrong_call(function, signature, args, kwargs)
        else:
            return function(*args, **kwargs)
        raise UnknownOption(said)  # outside of the handler: Python's own words are not shown beside ours

    return call


def wrong_call(
    function: Callable[..., Any], signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """What does not fit, and what would."""
    name = function.__qualname__.removesuffix(".__init__")
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    known = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    wrong = [key for key in kwargs if key not in known]
    if wrong and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        hint = did_you_mean(wrong[0], known) or f" It has: {', '.join(known)}."
        return f"{name} has no option {wrong[0]!r}.{hint}"
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    given = len(args) - ("self" in signature.parameters)
    if given > len(by_position):
        by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        rest = f" Give the others by name: {by_name[0]}=…." if by_name else ""
        takes = f"only {', '.join(by_position)}" if by_position else "nothing"
        return f"{name} takes {takes} by position, and {given} were given.{rest}"
    twice = [key for key in by_position[:given] if key in kwargs]
    if twice:
        return f"{name} is given {twice[0]!r} twice, by position and by name."
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.name in known
        and p.name not in kwargs
        and p.name not in by_position[:given]
    ]
    return f"{name} needs {', '.join(f'{key}=' for key in missing)}: help(graphaug.{name}) says what it is."
