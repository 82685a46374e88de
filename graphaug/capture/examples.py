"""Example inputs for a model that was given none: what it declares or its layers tell, tried one after the other."""

from __future__ import annotations

import contextlib
import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from graphaug.capture.capture import Captured, capture
from graphaug.capture.inputs.declared import Proposed, declared
from graphaug.capture.inputs.first_layer import of_layers
from graphaug.capture.inputs.signature import Signature
from graphaug.errors import CaptureError

MOST_TRIES = 32
_PASS_EXAMPLES = "Pass example_inputs: what you call it with, 2 rows or more."


def captured_on_a_guess(model: nn.Module, *, training: bool, count_flops: bool = False) -> Captured:
    """Capture a model without opening any module in it, on the first inputs proposed for it that it takes.

    Args:
        model: the model; inputs that it does not take leave nothing behind in it.
        training: the mode to capture it in.
        count_flops: count each node's FLOPs.

    Returns:
        The capture; its signature says where the examples come from (``guessed``).

    Raises:
        CaptureError: it takes none of them, or its forward cannot be captured on them.
    """
    name, tried, refusal = type(model).__name__, list[str](), None
    for source, inputs in itertools.islice(_distinct(model), MOST_TRIES):
        spelled = f"{source}: {_spell(inputs)}"
        try:
            signature = Signature.of(model, inputs, spelled)
            with _quiet():
                return capture(model, (), signature, training=training, count_flops=count_flops)
        except CaptureError as error:
            if error.__cause__ is None and refusal is None:
                refusal = error, spelled  # the forward did not fail, a graph cannot hold it
            tried.append(str(error).removeprefix(f"{name}.forward "))
    if refusal is not None:
        raise CaptureError(
            f"{refusal[0]} (No example_inputs were given; this is of those taken from {refusal[1]}. "
            "If the model takes others, give them.)"
        ) from refusal[0]
    if not tried:
        raise CaptureError(
            f"{name}.forward needs example_inputs: neither its signature and its layers nor a declaration of its own "
            f"say what it is called with. {_PASS_EXAMPLES}"
        )
    raise CaptureError(
        f"{name}.forward needs example_inputs: it takes none of the {len(tried)} that were tried. It {tried[0]}. "
        f"{_PASS_EXAMPLES}"
    )


def _distinct(model: nn.Module) -> Iterator[Proposed]:
    """All proposals, each once."""
    seen: set[Any] = set()
    for source, inputs in itertools.chain(declared(model), of_layers(model)):
        key = tuple((k, (v.shape, v.dtype) if isinstance(v, Tensor) else v) for k, v in inputs.items())
        if key not in seen:
            seen.add(key)
            yield source, inputs


def _spell(inputs: Mapping[str, Any]) -> str:
    """``2×3×224×224``, or with more than one input ``input_ids 3×5, use_cache False``."""
    sizes = {k: "×".join(map(str, v.shape)) if isinstance(v, Tensor) else repr(v) for k, v in inputs.items()}
    if len(inputs) == 1:
        (value,) = inputs.values()
        return f"{sizes.popitem()[1]}{'' if value.is_floating_point() else ' ids'}"
    return ", ".join(f"{k} {size}" for k, size in sizes.items())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A guess that does not fit is no news: torch logs an error before it raises it, and models warn."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before
