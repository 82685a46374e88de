"""What a capture refuses once the forward has run, and errors of the forward as errors of ours."""

from __future__ import annotations

import collections
import inspect
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graphaug.capture.inputs.signature import Signature, map_tensors
from graphaug.capture.recording.kept.kinds import is_of_a_capture
from graphaug.capture.recording.leaves import DATA_DEPENDENT
from graphaug.capture.recording.relied.classes import is_of_a_library
from graphaug.capture.recording.relied.code_names import written_in
from graphaug.capture.recording.relied.reached import Reached
from graphaug.capture.recording.relied.told import CACHED
from graphaug.capture.recording.session import RETURN_IT
from graphaug.capture.recording.values.inside import any_inside
from graphaug.capture.recording.walk import Walk
from graphaug.capture.state import undrawn
from graphaug.capture.user_code import is_internal
from graphaug.errors import CaptureError, an, in_a_line

_TRANSFORMS = ("_functorch/vmap.py", "_functorch/eager_transforms.py")


def refuse_changed(walk: Walk, changed: Sequence[Reached]) -> None:
    """Refuse what opened code may read and something else changes in a call: a closed module, or a hook."""
    if not changed:
        return
    written = frozenset[str]().union(*(written_in(f.__code__) for f in walk.in_reach.functions))
    for reached in changed:
        dotted = re.findall(r"\w+\.[\w.]+", reached.name)
        if written.isdisjoint(re.findall(r"[^\W\d]\w*", reached.name)) and not is_of_a_library(
            type(reached.holder).__module__, *dotted
        ):
            what, way = _what_changes(reached)
            raise walk.session.refuse(f"it may read {reached.name}, {what}", reason=way, line="")


def _what_changes(reached: Reached) -> tuple[str, str]:
    """What changes a thing in a call, as far as its kind tells, and what to do about it."""
    if isinstance(inspect.getattr_static(reached.holder, str(reached.key), None), CACHED):
        return (
            "a method whose results functools keeps for later calls",
            " A graph has no memory but buffers: make the result one (register_buffer), cache a function that no "
            "module owns, or choose a site outside that module, so that it stays closed.",
        )
    if isinstance(reached.holder, collections.defaultdict):
        return (
            "a defaultdict, which a read of a missing key fills",
            " Put the key there before, or read it by get.",
        )
    return "which is changed in its call, as by a closed module or a hook", RETURN_IT


def refuse_filled_constants(walk: Walk, model: nn.Module) -> None:
    """Refuse an object that opened code makes and its modules fill: a graph would go on filling it.

    Raises:
        CaptureError: there is one; names the argument that turns it off, if the forward has one.
    """
    for value in walk.constants.values():
        if isinstance(value, (Tensor, nn.Module)) or not any_inside(value, is_of_a_capture):
            continue
        otherwise = (
            " Return a tuple, a dict or a dataclass, or choose a site outside the module that does it."
        )
        raise CaptureError(
            f"{type(model).__name__}.forward cannot be captured: it makes {an(value)} in every call, "
            f"and a graph would have one for all calls.{walk.session.about_caches(value) or otherwise}"
        )


def drew(model: nn.Module, counted: str) -> CaptureError:
    """The refusal of a forward that draws in Python; ``counted`` says what moved on, if that is known."""
    return CaptureError(
        f"{type(model).__name__}.forward cannot be captured: {counted or 'it draws random numbers in Python'}, and a "
        "graph would keep those of its capture. Turn that off (layerdrop, a mask that is drawn), or choose a site "
        "outside the module that does it."
    )


def located(model: nn.Module, error: Exception, walk: Walk, signature: Signature) -> CaptureError:
    """Turn what went wrong inside opened code into a `CaptureError` that says where and what to do."""
    trace, where, detail = error.__traceback__, "", in_a_line(error)
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not is_internal(name):
            where = f" ({name.rpartition('/')[2]} line {trace.tb_lineno})"
        elif name.endswith(_TRANSFORMS):  # their own errors tell of torch's insides
            detail = (
                "it calls a transform of torch.func (vmap, grad), which works on wrapped tensors of its own"
            )
        trace = trace.tb_next
    if detail.startswith("TypeError: new(): "):
        detail = (
            "an old constructor of tensors takes no size of another one; write torch.empty or torch.zeros"
        )
    name = type(model).__name__
    given = f"those taken from {signature.guessed}" if signature.guessed else "example_inputs"
    text = f"{name}.forward failed on {given}{where}: {detail}"
    if not signature.guessed and _runs(model, signature):
        text = (
            f"{name}.forward cannot be captured: it runs on example_inputs, but not on tensors without data{where}: "
            f"{detail}. Keep what fails inside of a module that stays closed, and choose a site outside of that module."
        )
    if isinstance(error, DATA_DEPENDENT):  # with its numbers the model may well run
        text = (
            f"{name}.forward cannot be captured: what it calls{where} needs the numbers in its tensors, and a capture "
            f"knows those of integer inputs only ({detail}). Keep it inside of a module that stays closed, and choose "
            "a site outside of that module; of packed sequences the packing, the recurrent layer and the padding."
        )
    found = CaptureError(text)
    found.failed_in = walk.failed_in  # type: ignore[attr-defined]
    return found


def _runs(model: nn.Module, signature: Signature) -> bool:
    """Whether the forward itself runs on the examples."""
    args, kwargs = signature.arrange(map_tensors(lambda t: t.detach().clone(), dict(signature.examples)))
    try:
        with undrawn(), torch.no_grad():
            model.forward(*args, **kwargs)
    except Exception:
        return False
    return True
