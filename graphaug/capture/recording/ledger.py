"""Which node every value of a recorded forward belongs to, and how a value becomes an argument of a node."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor, fx, nn

from graphaug.capture.known import given_at, integers
from graphaug.capture.names import CONSTANTS, tensor_names
from graphaug.capture.recording.closures import closes_over_a_capture
from graphaug.capture.recording.nodes import Nodes
from graphaug.capture.recording.objects import Objects
from graphaug.capture.recording.session import RETURN_IT, Session
from graphaug.capture.recording.values.aliases import Aliases
from graphaug.capture.recording.values.handles import Handle
from graphaug.capture.recording.values.labels import Labels
from graphaug.capture.recording.values.numbers import Float, Int
from graphaug.capture.recording.values.structures import (
    DEPTH,
    PLAIN,
    WATCHED_DEPTH,
    Key,
    changed,
    contents,
    entries,
    holds,
    is_structure,
    plain,
    rebuilt,
)
from graphaug.capture.recording.values.tracked import Answers, is_tracked
from graphaug.capture.recording.values.watched import Watched, watched
from graphaug.torch_private import FakeTensor, FakeTensorMode, is_functorch_wrapper

READ_IN_EVERY_CALL = (int, float, torch.device)
"""Types of values that remember where they come from; all others are relied on as they are."""


class Ledger:
    """The origins of values: nodes of inputs, operations and modules, tensors that the model owns, constants.

    Args:
        root: the model.
        session: refuses what a graph cannot hold.
        nodes: the graph.
        answers: who answers for the numbers of what is adopted.

    Attributes:
        fake_mode: what makes the model's tensors fake.
        given: the example's value of every input.
        home: where tensors on the meta device are taken to lie.
        labels: what was set on tensors.
        aliases: tensors that were handed on as they are.
        objects: how objects are made in a graph.
    """

    def __init__(self, root: nn.Module, session: Session, nodes: Nodes, answers: Answers) -> None:
        self.session, self.nodes, self.answers = session, nodes, answers
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.home = torch.device("cpu")
        self.labels, self.aliases = Labels(), Aliases()
        self.paths: dict[nn.Module, str] = {m: name for name, m in root.named_modules()}
        self.owned = tensor_names(root)
        self.constants: dict[str, Any] = {}
        self.given: dict[fx.Node, Any] = {}
        self._origins: dict[int, tuple[fx.Node, tuple[Key, ...]]] = {}
        self._whole: dict[int, tuple[fx.Node, tuple[Key, ...], Any]] = {}
        self._entries: dict[tuple[fx.Node, tuple[Key, ...]], fx.Node] = {}
        self._fakes: dict[int, Tensor] = {}
        self._kept: list[Any] = []
        self.objects = Objects(self)
        self._watching = False

    # --- values as they come ------------------------------------------------------------------

    def claim(self, value: Any, node: fx.Node, keys: tuple[Key, ...] = ()) -> None:
        """Note that a value, and all that it holds, is found in ``node``."""
        self._kept.append(value)  # its id is its name: it may not be given to another object
        if isinstance(value, Tensor):
            self._origins[id(value)] = (node, keys)
            self.labels.note(value)
            return
        if not is_structure(value) or len(keys) > DEPTH:
            return
        self._whole[id(value)] = (node, keys, [id(v) for _, v in entries(value)])
        for key, entry in entries(value):
            self.claim(entry, node, (*keys, key))

    def adopt(self, value: Any, node: fx.Node, keys: tuple[Key, ...] = ()) -> Any:
        """A value as opened code gets it from ``node``, with numbers that remember where they come from.

        What a module hands on as it is (its input, a parameter) becomes a tensor of its own, for another site.
        """
        kind = type(value)
        if isinstance(value, Tensor):
            if self.knows(value):
                value = self.aliases.made_of(value)
            self.claim(value, node, keys)
            return value
        if kind is int:
            return Int(self.answers, value, lambda: self.entry(node, keys))
        if kind is float:
            return Float(self.answers, value, lambda: self.entry(node, keys))
        if kind is torch.device:
            return Handle(self.answers, value, lambda: self.entry(node, keys))
        # made anew in every call, and no constant
        if isinstance(value, (np.ndarray, torch.Generator)):
            self._kept.append(value)
            self._whole[id(value)] = (node, keys, contents(value))
            return value
        if not is_structure(value) or len(keys) > DEPTH:
            return value
        fields = entries(value)
        new = [self.adopt(v, node, (*keys, key)) for key, v in fields]
        if any(a is not v for a, (_, v) in zip(new, fields, strict=True)):
            value = rebuilt(value, [k for k, _ in fields], new)
        self._kept.append(value)
        self._whole[id(value)] = (node, keys, contents(value))
        return value

    def watch(self, value: Any, depth: int = WATCHED_DEPTH) -> Any:
        """A dict that was adopted, and those in it, as dicts that note what opened code asks of them."""
        if type(value) is not dict or depth == 0 or id(value) not in self._whole:
            return value
        made = watched({key: self.watch(entry, depth - 1) for key, entry in value.items()})
        self._kept.append(made)
        self._watching = True
        self._whole[id(made)] = (*self._whole[id(value)][:2], contents(made))
        return made

    def knows(self, value: Tensor) -> bool:
        """Whether a tensor has a node already, or is the model's."""
        return id(value) in self._origins or id(value) in self.owned

    def fake(self, tensor: Tensor) -> Tensor:
        """The fake that stands for a tensor of the model; a parameter's requires a gradient, whatever the flag."""
        if id(tensor) not in self._fakes:
            fake = self.fake_like(tensor)
            if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                fake.requires_grad_(True)  # what is differentiable is a question about the code
            self._fakes[id(tensor)] = fake
        return self._fakes[id(tensor)]

    def fake_like(self, tensor: Tensor) -> Tensor:
        """A fake of any tensor; one on the meta device is taken to lie where the others lie."""
        if not tensor.is_meta:
            return self.fake_mode.from_tensor(tensor)
        with self.fake_mode, torch.no_grad():
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.home)
            return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake

    def evaluable(self, value: Any) -> Any:
        """Arguments as a function can run on them: numbers as they are on the example, the model's tensors as fakes."""
        return changed(value, self._evaluable)

    def _evaluable(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.fake(value) if id(value) in self.owned else value
        return plain(value)

    def integers(self, value: Tensor) -> Tensor | None:
        """The integers of a fake on the example, where its inputs alone tell them."""
        if value.is_floating_point() or id(value) not in self._origins:
            return None
        return integers(*self._origins[id(value)], self.given)

    def example_of(self, value: Tensor) -> Tensor | None:
        """The tensor of the example that a fake stands for, if it is an input, and one with data."""
        origin = self._origins.get(id(value))
        return None if origin is None else given_at(*origin, self.given)

    # --- values as arguments of nodes -----------------------------------------------------------

    def entry(self, node: fx.Node, keys: tuple[Key, ...]) -> fx.Node:
        """The node of what lies in the value of ``node`` under these keys."""
        if not keys:
            return node
        if (node, keys) not in self._entries:
            parent = self.entry(node, keys[:-1])
            kind, key = keys[-1]
            function = getattr if kind == "attribute" else operator.getitem
            self._entries[node, keys] = self.nodes.create("call_function", function, (parent, key), {})
        return self._entries[node, keys]

    def nodes_within(self, module: nn.Module) -> tuple[str, ...]:
        """The names of the nodes that there are by now for the tensors of a module, by whatever name they were read."""
        held = map(self._origins.get, tensor_names(module))
        return tuple(node.name for node, _ in filter(None, held))

    def node_of(self, value: Tensor) -> fx.Node:
        """The node of a tensor.

        Raises:
            CaptureError: nothing that was recorded made it.
        """
        if id(value) in self._origins:
            return self.entry(*self._origins[id(value)])
        if id(value) in self.owned:
            node = self.nodes.fact(self.owned[id(value)][1], self.fake(value))
            self._origins[id(value)] = (node, ())
            return node
        if isinstance(value, FakeTensor):
            if kept := self._kept_by_closed(value):
                raise self.session.refuse(
                    f"it uses {kept[1]!r}, a tensor that {kept[0]!r} keeps when it is called",
                    reason=RETURN_IT,
                )
            raise self.session.refuse(
                "it uses a tensor that no recorded function of torch made: one that a closed module keeps or a hook "
                "computed, or the result of an old constructor (for torch.FloatTensor(...) write torch.tensor(...)), "
                "of a traced function, of torch.func, or of code outside of Python"
            )
        if is_functorch_wrapper(value):
            raise self.session.refuse("it calls a transform of torch.func (vmap, grad) on it")
        return self.constant("tensor", value)

    def _kept_by_closed(self, value: Tensor) -> tuple[str, str] | None:
        """The path of the module that holds a tensor as an attribute, and the attribute's."""
        for module, path in self.paths.items():
            for name, held in vars(module).items():
                if held is value and path:
                    return path, f"{path}.{name}"
        return None

    def constant(self, kind: str, value: Any) -> fx.Node:
        """The node of an object that no module owns; the graph holds the object itself."""
        if self._watching:
            holds(value, _is_handed_on)
        known = next((name for name, v in self.constants.items() if v is value), None)
        if known is None:
            if closes_over_a_capture(value):
                raise self.session.refuse("it hands on a function that holds tensors of this call")
            known = f"{kind}_{len(self.constants)}"
            self.constants[known] = value
        return self.nodes.fact(f"{CONSTANTS}.{known}", value)

    def lower(self, value: Any) -> Any:
        """What a node holds for a value of opened code.

        Raises:
            CaptureError: the graph cannot make it.
        """
        kind = type(value)
        if kind is Watched:
            value.note_whole()
        if is_tracked(value):
            return value._fx_node()
        if isinstance(value, Tensor):
            return self.node_of(value)
        if kind in PLAIN or isinstance(value, torch.memory_format):
            return value
        if isinstance(value, nn.Module):
            path = self.paths.get(value)
            return self.nodes.fact(path, value) if path else self.constant("module", value)
        whole = self._whole.get(id(value))
        if whole is not None and whole[2] == contents(value):
            return self.entry(*whole[:2])
        if kind is slice:
            return slice(self.lower(value.start), self.lower(value.stop), self.lower(value.step))
        if kind is Size or kind is tuple:
            return tuple(map(self.lower, value))
        if kind is list:
            return list(map(self.lower, value))
        if kind in (dict, Watched):
            return {k: self.lower(v) for k, v in value.items()}
        if isinstance(value, np.generic):
            return value.item()
        return self.objects.lower(value)

    def is_made(self, value: Any) -> bool:
        """Whether a value is a tensor or a number of this call."""
        return is_tracked(value) or (isinstance(value, Tensor) and (id(value) in self._origins))


def _is_handed_on(value: Any) -> bool:
    if isinstance(value, Watched):
        value.note_whole()
    return False
