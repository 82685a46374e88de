"""What a call gets wrong about names and numbers of arguments, said in our own words."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from graphaug.errors import UnknownOption, did_you_mean

_ELSEWHERE = {
    "rate": ("p", "prob", "drop", "dropout", "dropout_rate"),
    "at": ("layer", "layers", "site", "sites", "where"),
    "subset": ("fraction", "share", "subset_rate"),
    "stop_grad": ("detach", "stopgrad"),
    "example_inputs": ("input", "inputs", "x", "batch", "example", "sample_input"),
}
"""What other libraries call an option of ours."""
_HINTS = {"at": "graphaug.sites(model) lists what it can name"}
"""What helps to find the value of an option that is missing."""

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
        passed = {*kwargs, *[p.name for p in parameters][: len(args) - ("self" in signature.parameters)]}
        meant = [
            name
            for name, others in _ELSEWHERE.items()
            if wrong[0].lower() in others and name in known and name not in passed
        ]
        hint = f" Did you mean '{meant[0]}'?" if meant else did_you_mean(wrong[0], known)
        hint = hint or f" It has: {', '.join(known)}."
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
    needed, hints = ", ".join(f"{key}=" for key in missing), [_HINTS[key] for key in missing if key in _HINTS]
    return f"{name} needs {needed}: {'; '.join([*hints, f'help(graphaug.{name}) says what it is'])}."
