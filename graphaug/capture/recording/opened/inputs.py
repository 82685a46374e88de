"""The inputs of a recorded forward: a placeholder for each, and the fake tensors that opened code gets."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from graphaug.capture.inputs.signature import Signature, map_tensors
from graphaug.capture.names import differentiable
from graphaug.capture.recording.ledger import READ_IN_EVERY_CALL
from graphaug.capture.recording.recorder import Recorder
from graphaug.capture.recording.relied.classes import can_be_watched
from graphaug.capture.recording.values.structures import holds, tensors_in
from graphaug.capture.recording.values.watched import Watched
from graphaug.errors import an
from graphaug.torch_private import FakeTensor


def placeholders(
    recorder: Recorder,
    signature: Signature,
    *,
    watch: bool,
    watch_object: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """A placeholder for every input, those without a default first; the values that opened code gets, by name.

    Args:
        recorder: what records the forward.
        signature: the inputs.
        watch: let dicts note what is asked of them, for `assume_asked`; else they are relied on as a whole.
        watch_object: notes what is read off an object of the user's.

    Raises:
        CaptureError: an example holds tensors where they cannot be found.
    """
    arguments: dict[str, Any] = {}
    inputs = list(signature.inputs(functools.partial(_faked, recorder)))
    for name, default, example in sorted(inputs, key=lambda i: i[1] is not inspect.Parameter.empty):
        constant = default is not inspect.Parameter.empty
        node = recorder.nodes.create("placeholder", name, (default,) if constant else (), {})
        if constant:
            node.meta["value"] = example
            recorder.nodes.assume(node, default)
            arguments[name] = default
            continue
        if isinstance(example, Tensor):
            node.meta["requires_grad"] = example.requires_grad
        recorder.ledger.given[node] = signature.examples[name]
        example = map_tensors(differentiable, example)
        watching = watch_object is not None and can_be_watched(example) and not isinstance(example, Mapping)
        # the numbers in it are replaced by such as remember where they come from: in a copy
        arguments[name] = recorder.ledger.adopt(copy.copy(example) if watching else example, node)
        node.meta["value"] = example
        if watching and watch_object is not None:
            watch_object(arguments[name])
            continue
        if watch and type(example) is dict:
            arguments[name] = recorder.ledger.watch(arguments[name])
        known = isinstance(example, Tensor) or type(example) in READ_IN_EVERY_CALL
        if not known and not isinstance(arguments[name], Watched):
            recorder.nodes.assume_layout(node, example)
    return arguments


def assume_asked(recorder: Recorder, arguments: dict[str, Any], reads: Set[tuple[int, str]]) -> None:
    """Rely on what opened code asked of the dicts and objects among the inputs.

    Args:
        recorder: what recorded the forward.
        arguments: what `placeholders` made, as opened code left it.
        reads: the attributes that were read, with the ids of their objects.
    """
    for node in [n for n in recorder.nodes.graph.nodes if n.op == "placeholder"]:
        value = arguments.get(str(node.target))
        if isinstance(value, Watched):
            recorder.nodes.assume_asked(node, node.meta["value"], value.asked())
        elif can_be_watched(value) and not isinstance(value, Mapping):
            names = sorted(name for held, name in reads if held == id(value) and name != "__class__")
            if names:  # of `vars(value)` it is not seen what is read
                asked = None if "__dict__" in names else (False, tuple((name, True) for name in names))
                recorder.nodes.assume_asked(node, node.meta["value"], asked)


def _faked(recorder: Recorder, value: Any) -> Any:
    ledger = recorder.ledger
    tensors = [*(t for t, _ in ledger.owned.values()), *tensors_in(value)]
    ledger.home = next((t.device for t in tensors if not t.is_meta), torch.device("cpu"))
    fakes = map_tensors(ledger.fake_like, value)
    if holds(fakes, lambda v: isinstance(v, Tensor) and not isinstance(v, FakeTensor)):
        raise recorder.session.refuse(
            f"example_inputs hold tensors inside of {an(value)}",
            reason=" Give tensors, and tuples, lists and dicts of tensors.",
        )
    return fakes
