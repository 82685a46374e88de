"""Shadow runs: does a captured graph do what the model's own forward does, operation by operation?

Both run, in training and in eval mode, with stand-ins for the modules that are closed in the graph; their records, and
what they leave changed, have to be equal. Nothing is computed but the few operations between closed modules.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphaug.augment.deep_augment import DeepAugment
from graphaug.capture.signature import Signature, map_tensors
from graphaug.capture.state import python_draws, seed, undrawn
from graphaug.errors import AssumptionViolated, CaptureError
from graphaug.proof.equivalence import ANOTHER_LENGTH, check_equivalence, variants
from graphaug.proof.shadow.differences import Difference, first_difference
from graphaug.proof.shadow.stand_ins import CannotStandIn, StandIns
from graphaug.proof.shadow.surroundings import Surroundings
from graphaug.proof.shadow.traces import Record, Recorder
from graphaug.surgery.module import AugmentedModule
from graphaug.torch_private import FakeTensor

_MATERIALISED = 1 << 26
_FEW_ROWS = 4
_MOST_ON_META = 1 << 30
"""Numbers that a model may own on the meta device; the activations of a larger one take gigabytes to stand in for."""


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


@dataclass(frozen=True)
class CapturedModel:
    """What is compared with the model: its graph as a module, and which modules are calls in it.

    Attributes:
        run: the module that runs the graph.
        opened: paths of the modules that were traced through.
        closed: by mode (training or not), the paths of the modules that are calls.
        identities: the modules that the model does not have; they return what they are given.
        one_graph: whether both modes run the same graph.
    """

    run: nn.Module
    opened: tuple[str, ...]
    closed: Mapping[bool, frozenset[str]]
    identities: Mapping[str, nn.Module]
    one_graph: bool = False


def as_captured(aug: AugmentedModule) -> CapturedModel:
    """A rewritten model as what is to be compared with the original: its augmentations act as the identity."""
    parts = aug._parts
    augmentations = {name: m for name, m in parts.added.items() if isinstance(m, DeepAugment)}
    graphs = {True: parts.training_graph, False: parts.eval_graph or parts.training_graph}
    calls = {
        mode: frozenset(str(n.target) for n in graph.nodes if n.op == "call_module") - augmentations.keys()
        for mode, graph in graphs.items()
    }
    return CapturedModel(aug, parts.plan.opened, calls, augmentations, parts.eval_graph is None)


def check_faithful(model: nn.Module, captured: CapturedModel, signature: Signature) -> str:
    """Compare model and graph by shadow runs; where there can be none, by a trial run in eval mode.

    Args:
        model: the original.
        captured: its graph, sharing its modules.
        signature: the inputs with their examples.

    Returns:
        A note for the plan: what was not compared and why, or an empty string.

    Raises:
        CaptureError: they differ; names the first difference and the user's line.
    """
    if not signature.has_examples:
        return "not compared with the original: no example_inputs"
    if sum(t.numel() for t in (*model.parameters(), *model.buffers()) if t.is_meta) > _MOST_ON_META:
        return "not compared with the original: too large a model on the meta device"
    try:
        try:
            notes = _Shadow(model, captured, signature, shared=True).compare()
        except CannotCompare:
            notes = _Shadow(model, captured, signature, shared=False).compare()
    except CannotCompare as why:
        note = check_equivalence(model, captured.run, signature)
        return "; ".join(filter(None, [f"compared by a trial run only: {why}", note]))
    return "; ".join(notes)


class _Shadow:
    """Shadow runs of one model and its graph."""

    def __init__(
        self, model: nn.Module, captured: CapturedModel, signature: Signature, *, shared: bool
    ) -> None:
        self.model, self.captured, self.signature, self.shared = model, captured, signature, shared
        self.opened = [m for p, m in model.named_modules() if p in captured.opened or not p]
        self.graph_ids: dict[Any, int] = {}
        self.notes: dict[str, None] = {}

    def compare(self) -> list[str]:
        """Compare in both modes and all situations; the notes for the plan."""
        flags = [(m, m.training) for m in (self.model, *self.captured.run.modules())]
        owned = [
            (n, p) for n, p in (*self.model.named_parameters(), *self.model.named_buffers()) if p.is_meta
        ]
        real = {f"model.{name}": _materialised(p) for name, p in owned if p.numel() <= _MATERIALISED}
        try:
            # random states before anything else: code that looks at them is restored last
            with undrawn(), warnings.catch_warnings(), _as_traced() as asked:
                warnings.simplefilter("ignore")
                if real:
                    torch.func.functional_call(_Holder(self.model), real, (self._compare,))
                else:
                    self._compare()
        finally:
            for module, flag in flags:
                module.training = flag
        if asked and (note := check_equivalence(self.model, self.captured.run, self.signature)):
            self.notes[note] = (
                None  # where the model does something else when traced, its results are compared as well
            )
        return list(self.notes)

    def _compare(self) -> None:
        surroundings = Surroundings(self.model, self.opened)
        for training in (True, False):
            self.captured.run.train(training)
            surroundings.note_modes()
            stand_ins = StandIns(self.model, self.captured.closed[training], shared=self.shared)
            with stand_ins.in_place(self.captured.identities), self._one_graph():
                for i, situation in enumerate(self._situations()):
                    if situation.what == ANOTHER_LENGTH and not training and self.captured.one_graph:
                        continue
                    mode = "training" if training else "eval"
                    try:
                        self._in(situation, mode, stand_ins, surroundings)
                    except CannotCompare:
                        if i == 0:
                            raise
                    finally:
                        surroundings.restore()

    def _one_graph(self) -> contextlib.AbstractContextManager[None]:
        run = self.captured.run
        return run.only_the_graph() if isinstance(run, AugmentedModule) else contextlib.nullcontext()

    def _situations(self) -> Iterator[Situation]:
        first: Mapping[str, Any] | None = None
        for what, inputs in variants(self.signature.examples):
            first = inputs if first is None else first
            yield Situation(what, inputs, calls=2 if inputs is first else 1)
        assert first is not None
        yield Situation("the example inside of autocast", first, autocast=True)
        yield Situation("the example without gradients", first, gradients=False)

    def _in(self, situation: Situation, mode: str, stand_ins: StandIns, surroundings: Surroundings) -> None:
        where = f"{situation.what}, in {mode} mode"
        stand_ins.learned = False
        expected = self._records(self.model, situation, stand_ins, surroundings)
        if isinstance(expected, Exception):
            raise CannotCompare(f"on {where}, {_said(self.signature.model, expected)}") from expected
        for record in expected:
            if record.unseen:
                raise CaptureError(
                    f"{self.signature.model}.forward cannot be captured: {record.unseen}. A graph cannot hold it; "
                    "choose a site outside that module, so that it stays closed."
                )
        found = self._records(self.captured.run, situation, stand_ins, surroundings)
        if isinstance(found, AssumptionViolated) and situation.calls == 1:
            said = str(found).partition(", but")[0].removeprefix("this model was ")
            self.notes[f"fixed to this example: {said}"] = None
            return
        if isinstance(found, Exception):
            raise CaptureError(
                f"the captured graph fails where the original does not ({where}): {type(found).__name__}: {found}"
            ) from found
        difference = first_difference(expected, found)
        if difference is not None and stand_ins.learned:
            # what a stand-in returns was found by a call of its module, whose hooks ran once more then
            difference = self._again(situation, stand_ins, surroundings)
        if difference is not None:
            raise self._refusal(where, difference)

    def _again(
        self, situation: Situation, stand_ins: StandIns, surroundings: Surroundings
    ) -> Difference | None:
        """The difference of two runs in which no stand-in has to learn anything."""
        expected = self._records(self.model, situation, stand_ins, surroundings)
        found = self._records(self.captured.run, situation, stand_ins, surroundings)
        for records in (expected, found):
            if isinstance(records, Exception):
                raise CannotCompare(f"of two equal runs one fails with {type(records).__name__}") from records
        assert not isinstance(expected, Exception)
        assert not isinstance(found, Exception)
        return first_difference(expected, found)

    def _refusal(self, where: str, difference: Difference) -> CaptureError:
        line = difference.line
        if difference.attribute:
            line = _line_of(self.model, difference.attribute)
        return CaptureError(
            f"the captured {self.signature.model} differs from the original on {where}: {difference.what}{line}. Its "
            "forward does something that a graph does not keep: choose a site that opens fewer modules, and please "
            "report the model."
        )

    def _records(
        self, module: nn.Module, situation: Situation, stand_ins: StandIns, surroundings: Surroundings
    ) -> list[Record] | Exception:
        """The records of consecutive calls; what they changed is put back. Or the error that a call ended with."""
        recorders: list[Recorder] = []
        try:
            for number in range(situation.calls):
                arguments = map_tensors(_own, self.signature.arrange(situation.inputs))
                recorder = Recorder(self._named(arguments), self.graph_ids)
                recorders.append(recorder)
                self._call(module, recorder, arguments, situation, stand_ins, number)
                recorder.record.left.update(self._left(recorder, surroundings))
        except CannotStandIn as error:
            raise CannotCompare(str(error)) from error
        except Exception as error:
            return error
        finally:
            surroundings.restore()
            for recorder in reversed(recorders):
                recorder.restore()
        return [recorder.record for recorder in recorders]

    def _call(
        self,
        module: nn.Module,
        recorder: Recorder,
        arguments: Any,
        situation: Situation,
        stand_ins: StandIns,
        number: int,
    ) -> None:
        random.seed(number)
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed(number)
        device = next((t.device.type for t in _leaves(arguments) if isinstance(t, Tensor)), "cpu")
        around: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if situation.autocast:
            around = torch.autocast(device, dtype=torch.bfloat16)
        stand_ins.recorder = recorder
        seed(number)
        before = torch.is_autocast_enabled(device)
        try:
            with torch.set_grad_enabled(situation.gradients), around:
                modes = torch.is_grad_enabled(), torch.is_autocast_enabled(device)
                with recorder:
                    output = module(*arguments[0], **arguments[1])
                after = torch.is_grad_enabled(), torch.is_autocast_enabled(device)
        finally:
            stand_ins.recorder = None
            torch.set_autocast_enabled(device, before)
        record = recorder.record
        record.left["the grad mode of the caller"] = (after[0], modes[0])
        record.left["autocast of the caller"] = (after[1], modes[1])
        tensors = [t for t in _leaves(output) if isinstance(t, Tensor)]
        record.output = (
            recorder.token(output),
            tuple((recorder.gradient(t), t.requires_grad) for t in tensors),
        )
        record.values = [t.detach().clone() for t in tensors]

    def _named(self, arguments: Any) -> dict[str, Tensor]:
        named = {f"input {i}": t for i, t in enumerate(_leaves(arguments)) if isinstance(t, Tensor)}
        for path, module in self.model.named_modules():
            for group in (module._parameters, module._buffers, vars(module)):
                for name, tensor in group.items():
                    if isinstance(tensor, Tensor):
                        named[f"{path}.{name}".removeprefix(".")] = tensor
        return named

    def _left(self, recorder: Recorder, surroundings: Surroundings) -> dict[str, Any]:
        python, numpy = python_draws()
        left: dict[str, Any] = {
            "the state of torch's random generator": hash(torch.get_rng_state().numpy().tobytes()),
            "the state of Python's random generator": hash(python),
            "the state of numpy's random generator": hash(repr(numpy)),
        }
        for name, value in surroundings.changes():
            left[name] = recorder.token(value)
        return left


class _Holder(nn.Module):
    """Lets `torch.func.functional_call` put other tensors into a model while a function runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], None]) -> None:
        run()


@contextlib.contextmanager
def _as_traced() -> Iterator[list[bool]]:
    """Let transformers take the way through its masks that it takes when it is traced, as the capture did.

    It looks at a mask's numbers otherwise, to leave out one that masks nothing. The list is not empty if it asked.
    """
    asked: list[bool] = []

    def is_tracing(*_: Any, **__: Any) -> bool:
        asked.append(True)
        return True

    scopes = [vars(m) for name, m in list(sys.modules.items()) if name.partition(".")[0] == "transformers"]
    patched = [
        (scope, scope["is_tracing"]) for scope in scopes if inspect.isfunction(scope.get("is_tracing"))
    ]
    for scope, _ in patched:
        scope["is_tracing"] = is_tracing
    try:
        yield asked
    finally:
        for scope, before in patched:
            scope["is_tracing"] = before


def _materialised(tensor: Tensor) -> Tensor:
    """A real tensor in place of one on the meta device; memory that nobody touches costs nothing."""
    # numpy leaves its zeros to the operating system, and torch writes them
    memory = torch.from_numpy(np.zeros(tensor.numel() * tensor.element_size(), dtype=np.uint8))
    made = memory.view(tensor.dtype).reshape(tensor.shape)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _own(tensor: Tensor) -> Tensor:
    """An input of the shadow run: a copy with memory of its own, real also where the example is not."""
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        made = torch.zeros(tensor.shape, dtype=tensor.dtype)
        return made.requires_grad_(tensor.requires_grad)
    made = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return made if tensor.is_leaf or not tensor.requires_grad else made.clone()


def _leaves(value: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(value)


def _said(model: str, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{model} itself fails with {type(error).__name__}: {lines[0][:160] if lines else ''}"


def _line_of(model: nn.Module, attribute: str) -> str:
    """Where the code of a model sets an attribute, as far as its source tells."""
    path, _, name = attribute.rpartition(".")
    owners = [m for p, m in model.named_modules() if p == path] or [model]
    for owner in owners:
        for cls in type(owner).__mro__:
            for function in vars(cls).values():
                if cls is nn.Module or not inspect.isfunction(function) or function.__name__ == "__init__":
                    continue
                with contextlib.suppress(OSError, TypeError):
                    lines, first = inspect.getsourcelines(function)
                    for i, line in enumerate(lines):
                        if (f".{name}" in line and "=" in line) or f".{name}." in line or f"'{name}'" in line:
                            file = function.__code__.co_filename.rpartition("/")[2]
                            return f" ({file} line {first + i})"
    return ""
