"""The inputs of a recorded forward: a placeholder for each, and the fake tensors that opened code gets."""

from __future__ import annotations

import copy
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from graphaug.capture.inputs.signature import Signature, map_tensors
from graphaug.capture.names import differentiable
from graphaug.capture.recording.ledger import READ_IN_EVERY_CALL
from graphaug.capture.recording.recorder import Recorder
from graphaug.capture.recording.relied.classes import can_be_watched
from graphaug.capture.recording.relied.objects import AskedOfTensors
from graphaug.capture.recording.values.structures import holds, tensors_in
from graphaug.capture.recording.values.watched import Watched
from graphaug.errors import an
from graphaug.torch_private import FakeTensor


def placeholders(
    recorder: Recorder,
    signature: Signature,
    watch: bool,
    watch_object: Callable[[Any], None],
    asked: AskedOfTensors,
) -> dict[str, Any]:
    """A placeholder for every input, those without a default first; the values that opened code gets, by name.

    Args:
        recorder: what records the forward.
        signature: the inputs.
        watch: let dicts note what is asked of them, for `assume_asked`; else they are relied on as a whole.
        watch_object: notes what is read off an object of the user's.
        asked: what opened code asks of tensors as objects.

    Raises:
        CaptureError: an example holds tensors where they cannot be found, or with what a graph's tensors have not.
    """
    arguments: dict[str, Any] = {}
    _check_objects(recorder, signature, asked)
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
        if asked.identity and (one := _given_before(signature, name, arguments)):
            node.meta["value"], arguments[name] = example, arguments[one]
            recorder.shared = True
            continue
        example = map_tensors(differentiable, example)
        watching = can_be_watched(example) and not isinstance(example, Mapping)
        # the numbers in it are replaced by such as remember where they come from: in a copy
        arguments[name] = recorder.ledger.adopt(copy.copy(example) if watching else example, node)
        node.meta["value"] = example
        if watching:
            watch_object(arguments[name])
            continue
        if watch and type(example) is dict:
            arguments[name] = recorder.ledger.watch(arguments[name])
        known = isinstance(example, Tensor) or type(example) in READ_IN_EVERY_CALL
        if not known and not isinstance(arguments[name], Watched):
            recorder.nodes.assume_layout(node, example)
    return arguments


def assume_objects(recorder: Recorder, signature: Signature, asked: AskedOfTensors) -> None:
    """Rely on what opened code asked of its inputs as objects, or may ask where that is not seen.

    Args:
        recorder: what recorded the forward.
        signature: the inputs.
        asked: what the code may ask.
    """
    given = {str(n.target): n for n in recorder.nodes.graph.nodes if n in recorder.ledger.given}
    if given and (recorder.compared or asked.classes or asked.labels):
        examples = {name: signature.examples[name] for name in given}
        labels = tuple(sorted(asked.labels))
        recorder.nodes.assume_objects(given, examples, (recorder.compared, asked.classes, labels))


def _given_before(signature: Signature, name: str, before: Mapping[str, Any]) -> str:
    """The input in front of one that is the very same tensor, or an empty string."""
    value = signature.examples[name]
    same = (other for other in before if isinstance(value, Tensor) and signature.examples[other] is value)
    return next(same, "")


def _check_objects(recorder: Recorder, signature: Signature, asked: AskedOfTensors) -> None:
    """Refuse examples whose tensors are what a graph's tensors are not, if opened code may ask for it.

    Raises:
        CaptureError: one has an attribute that is looked up, or two in a container are one.
    """
    tensors = list(tensors_in(dict(signature.examples)))
    labels = {label for t in tensors for label in vars(t)} & asked.labels
    if labels:
        raise recorder.session.refuse(
            f"it looks up {min(labels)!r}, which was set on a tensor of example_inputs",
            reason=" A graph's tensors do not have it: make it an input, or choose a site outside that module.",
        )
    inside = {id(t) for v in signature.examples.values() if not isinstance(v, Tensor) for t in tensors_in(v)}
    twice = {i for i, count in Counter(map(id, tensors)).items() if count > 1}
    if asked.identity and inside & twice:
        raise recorder.session.refuse(
            "it may ask whether two tensors are one, and one is in example_inputs twice",
            reason=" Give tensors of their own (x.clone()), or choose a site outside the module that asks.",
        )


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
        found = (v for v in torch.utils._pytree.tree_leaves(value) if not isinstance(v, Tensor))
        holder = next((v for v in found if holds(v, lambda inner: isinstance(inner, Tensor))), value)
        raise recorder.session.refuse(
            f"example_inputs hold tensors inside of {an(holder)}",
            reason=" Give tensors, and tuples, lists and dicts of tensors.",
        )
    return fakes
