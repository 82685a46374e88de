"""One run of a model, or of its graph, in the shadow: closed modules stand still, and everything else is recorded."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.inputs.signature import Signature, map_tensors
from graphaug.capture.recording.checks import all_true_as_assertion, as_assertion, replaced_by
from graphaug.capture.recording.opened.function_modes import unnoticed
from graphaug.capture.regions import Modes
from graphaug.capture.state import seed
from graphaug.capture.switches import switched_back, switches
from graphaug.capture.user_checks import begins_a_forward
from graphaug.proof.equivalence import quiet
from graphaug.proof.shadow.recorder import Recorder
from graphaug.proof.shadow.records import Record, Token
from graphaug.proof.shadow.stand_ins import CannotStandIn, StandIns
from graphaug.proof.shadow.surroundings import Surroundings
from graphaug.torch_private import FakeTensor


class CannotCompare(Exception):
    """The model cannot be run in the shadow; says why."""


@dataclass(frozen=True)
class Situation:
    """Inputs, and what surrounds the call."""

    what: str
    inputs: Mapping[str, Any]
    calls: int = 1
    autocast: bool = False
    gradients: bool = True


@dataclass
class Runs:
    """Runs that can be compared with each other.

    Attributes:
        model: the original; its tensors have their names in the records.
        signature: how inputs become arguments.
        stand_ins: what stands for the closed modules.
        surroundings: what a run may leave changed, and is put back behind it.
        graph_ids: numbers of gradient graphs.
    """

    model: nn.Module
    signature: Signature
    stand_ins: StandIns
    surroundings: Surroundings
    graph_ids: dict[Token, int] = field(default_factory=dict)

    def records(self, module: nn.Module, situation: Situation) -> list[Record] | Exception:
        """The records of consecutive calls; what they changed is put back. Or the error that a call ended with.

        Args:
            module: the original, or its graph.
            situation: what is called, and how often.

        Raises:
            CannotCompare: a closed module cannot be stood in for.
        """
        recorders: list[Recorder] = []
        try:
            with switched_back():
                for number in range(situation.calls):
                    arguments = map_tensors(self._own, self.signature.arrange(situation.inputs))
                    recorder = Recorder(self._named(arguments), self.graph_ids)
                    recorders.append(recorder)
                    self._call(module, recorder, arguments, situation, number)
                    recorder.record.left.update(self.surroundings.left(recorder.origins.token))
        except CannotStandIn as error:
            raise CannotCompare(str(error)) from error
        except Exception as error:
            return error
        finally:
            self.surroundings.restore()
            for recorder in reversed(recorders):
                recorder.restore()
        return [recorder.record for recorder in recorders]

    @begins_a_forward
    def _call(
        self, module: nn.Module, recorder: Recorder, arguments: Any, situation: Situation, number: int
    ) -> None:
        random.seed(number)
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed(number)
        device = next((t.device.type for t in _leaves(arguments) if isinstance(t, Tensor)), "cpu")
        around: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if situation.autocast:
            around = torch.autocast(device, dtype=torch.bfloat16)
        self.stand_ins.recorder = recorder
        seed(number)
        before = Modes.here()
        try:
            with torch.set_grad_enabled(situation.gradients), around:
                inside = Modes.here()
                # checks of data as in the graph; and what stays closed is not asked what it sees
                unseen = unnoticed(lambda _: not recorder.origins.paused)
                with recorder, replaced_by(as_assertion, all_true_as_assertion), unseen:
                    output = quiet(module)(*arguments[0], **arguments[1])
                after = Modes.here()
        finally:
            self.stand_ins.recorder = None
            before.put_back()
        record, origins = recorder.record, recorder.origins
        record.left["the grad mode of the caller"] = (after.gradients, inside.gradients)
        record.left["autocast of the caller"] = (after.autocast, inside.autocast)
        record.left["the switches of torch of the caller"] = switches()
        tensors = [t for t in _leaves(output) if isinstance(t, Tensor)]
        gradients = tuple((origins.gradient(t), t.requires_grad) for t in tensors)
        record.output = (origins.token(output), gradients)
        record.values = [t.detach().clone() for t in tensors]

    def _own(self, tensor: Tensor) -> Tensor:
        """An input: a copy with memory of its own, real also where the example is not."""
        if tensor.is_meta or isinstance(tensor, FakeTensor):
            made = torch.zeros(tensor.shape, dtype=tensor.dtype, device=self.stand_ins.home)
            return made.requires_grad_(tensor.requires_grad)
        made = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        return made if tensor.is_leaf or not tensor.requires_grad else made.clone()

    def _named(self, arguments: Any) -> dict[str, Tensor]:
        named = {f"input {i}": t for i, t in enumerate(_leaves(arguments)) if isinstance(t, Tensor)}
        for path, module in self.model.named_modules():
            for group in (module._parameters, module._buffers, vars(module)):
                for name, tensor in group.items():
                    if isinstance(tensor, Tensor):
                        named[f"{path}.{name}".removeprefix(".")] = tensor
        return named


def _leaves(value: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(value)
