"""What a rewritten model consists of: its graphs, the modules that were added to the user's, and what was planned."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import fx, nn

from graphaug.capture.inputs.signature import Signature
from graphaug.capture.names import CONSTANTS
from graphaug.capture.recording.relied.facts import Relied
from graphaug.capture.target import Target
from graphaug.surgery.plan import Plan
from graphaug.surgery.rewritten.frozen import FrozenRegion
from graphaug.torch_private import as_eager

Answer = TypeVar("Answer")

_NUMBERS = itertools.count()
_PARTS: weakref.WeakValueDictionary[int, Parts] = weakref.WeakValueDictionary()


class Steps(Protocol):
    """A training forward in several graphs instead of one; a sparse backward is made of these."""

    @property
    def kept(self) -> Any:
        """The modules of which something was proved, as they were then; None where nothing is asked of them again."""

    def look_again(self, parts: Parts) -> None:
        """Let the plan say what the next step will do, if modules have changed or were put back."""

    def graphs(self) -> Mapping[str, fx.Graph]:
        """The graphs by name; each becomes a method ``_forward_<name>`` of the rewritten model."""

    def with_graphs(self, change: Callable[[fx.Graph], Any]) -> Any:
        """The same steps with every graph changed: packed, or unpacked again."""

    def run(self, owner: Any, values: dict[str, Any]) -> Any:
        """One training forward of the rewritten model, from its inputs by name."""


@dataclass
class Parts:
    """All that a rewritten model consists of, in a form that can be copied and pickled."""

    model: nn.Module
    training_graph: fx.Graph
    eval_graph: fx.Graph | None
    added: dict[str, nn.Module]
    signature: Signature
    plan: Plan
    split: Steps | None = None
    warned: set[str] = field(default_factory=set)
    facts: Mapping[bool, tuple[Relied, ...]] = field(default_factory=dict)
    """What the graphs of training (True) and eval mode rely on besides their inputs."""
    runs_original: bool = False
    """Whether eval mode is the original model's own forward, where no augmentation acts and nothing is compiled.

    Compiled it is the graph, and where that was not captured for a call the original again.
    """
    writes_into_inputs: bool = False
    """Whether the graph of eval mode changes an input: the original cannot begin anew then."""
    row_dims: Mapping[str, Sequence[int | None]] = field(default_factory=dict)
    """The dimension of samples of every leaf of an input, None where it has none or none is known."""
    targets: Mapping[str, Target] = field(default_factory=dict)
    """What was named to a verb whose plan has no sites, by the names of the modules there."""
    frozen: FrozenRegion | None = None
    """What a freeze acts on, as it is now."""
    sets_grad_mode: bool = field(default=False, init=False)
    """Whether a graph sets the grad mode for a part of its nodes."""
    number: int = field(default_factory=_NUMBERS.__next__, init=False)
    """By which compiled code names it; no two of a process have one."""

    def __post_init__(self) -> None:
        _PARTS[self.number] = self

    @property
    def kept(self) -> Any:
        """The modules of which something was proved, as they were then; None where nothing is asked of them again."""
        return None if self.split is None else self.split.kept

    def trained_in_frozen(self) -> list[str]:
        """The names of parameters that are trained in what is to be frozen: they came there, or were thawed, since."""
        return [] if self.frozen is None else self.frozen.trainable(self.model)


def once_compiled(question: Callable[[Parts], Answer]) -> Callable[[int], Answer]:
    """A question that torch's compiler asks whenever it compiles, by calling it: the answer is a constant.

    It is asked with the number of the parts, and sees all that an eager call sees, where the compiler would understand
    a part of its code. It is not asked again until something else makes the compiler compile anew.
    """

    def answer(number: int) -> Answer:
        with as_eager():
            return question(_PARTS[number])

    constant: Callable[[int], Answer] = torch.compiler.assume_constant_result(answer)
    return constant


class Constants(nn.Module):
    """What opened code refers to and no module owns, as it is: no buffers, which ``.to(dtype)`` would convert."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.__dict__.update(values)  # no child, even if it is a module


def constants_module(values: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The child that holds a graph's constants, or nothing if it has none."""
    return {CONSTANTS: Constants(values)} if values else {}
