"""What a model is given, read as a call of it: every input by the name of its parameter."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from graphaug.capture.inputs.misfits import as_one_input, batch_of, left_over
from graphaug.errors import CaptureError, an, did_you_mean, nearest


def given(
    model: nn.Module, inputs: Any, called: str
) -> tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]:
    """Give every input the name of a parameter of ``model.forward``.

    Args:
        model: the model.
        inputs: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
        called: what the caller calls them, for messages.

    Returns:
        The names of the positional parameters, in order; every named one with its default; and the inputs by name.

    Raises:
        CaptureError: they do not fit the forward, or one is called ``self``.
    """
    name = type(model).__name__
    parameters = inspect.signature(model.forward).parameters
    positional = tuple(
        p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )
    variadic = next((p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL), None)
    open_keywords = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {
        p.name: p.default for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    required = [p for p, default in named.items() if default is inspect.Parameter.empty]

    if isinstance(inputs, Mapping):
        examples = dict(inputs)
        for key in examples:
            left = [p for p in named if p not in examples]
            misspelled = nearest(str(key), left, limit=1, cutoff=0.85)
            if key not in named and (misspelled or not open_keywords):
                whole = "" if misspelled else as_one_input(inputs, required, named)
                raise CaptureError(
                    f"{called} has {key!r}, which {name}.forward does not take."
                    f"{did_you_mean(str(key), named)} It takes: {', '.join(named)}.{whole}"
                )
    else:
        values = (inputs,) if isinstance(inputs, Tensor) else inputs
        if not isinstance(values, (tuple, list)):
            raise CaptureError(
                f"{called} is {an(inputs)}: give a tensor, a tuple of "
                f"positional inputs, or a dict of keyword inputs.{batch_of(inputs)}"
            )
        extra = [f"{variadic}_{i}" for i in range(len(values) - len(positional))] if variadic else []
        positional = (*positional, *extra)
        if len(values) > len(positional):
            raise CaptureError(
                f"{called} has {len(values)} entries, but {name}.forward takes "
                f"{len(positional)} positional inputs: {', '.join(positional)}."
                f"{left_over(values, positional, required, named)}"
            )
        examples = dict(zip(positional, values, strict=False))
    if "self" in examples:
        raise CaptureError(
            f"{name}.forward has an input that is called 'self', as the model is in the code of a graph: give it "
            "another name."
        )
    missing = [p for p in required if p not in examples]
    if missing:
        raise CaptureError(f"{called} lacks {', '.join(map(repr, missing))}, which {name}.forward requires.")
    return positional, named, examples
