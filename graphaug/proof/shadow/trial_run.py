"""A trial run of model and graph on the example, where stand-ins cannot take the place of closed modules.

Every module runs in earnest: results are compared bit by bit, and so is everything that the calls leave changed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.inputs.signature import Signature, map_tensors
from graphaug.capture.state import SMALL, evaluating, modes_kept, seed, unchanged, undrawn
from graphaug.errors import AssumptionViolated, CaptureError
from graphaug.proof.equivalence import ANOTHER_SIZE, as_identities, quiet, same, tensors_in, variants
from graphaug.proof.shadow.differences import first_difference, refusal_of
from graphaug.proof.shadow.origins import Origins
from graphaug.proof.shadow.records import Record
from graphaug.proof.shadow.surroundings import Surroundings
from graphaug.surgery.module import AugmentedModule


def compare_by_trial_run(
    model: nn.Module,
    aug: nn.Module,
    signature: Signature,
    identities: Mapping[str, nn.Module] | None,
    opened: Iterable[nn.Module] = (),
) -> str:
    """Run model and graph in eval mode on the examples, at another batch size and length; then twice in each mode.

    Where shadow runs have compared everything but the numbers, two rows of the examples do, in eval mode.

    Args:
        model: the original.
        aug: the captured model, sharing its modules.
        signature: the inputs with their examples.
        identities: the modules of the graph that the model does not have, which return what they are given; None: both
            were compared by shadow runs.
        opened: the modules whose code the graph stands for: what it can reach is compared and put back.

    Returns:
        A note for the plan: which of it could not be checked, or an empty string.

    Raises:
        CaptureError: the outputs differ, or what is left changed.
    """
    examples = signature.examples
    if any(t.is_meta for t in [*model.parameters(), *model.buffers(), *tensors_in(examples)]):
        data = "no example_inputs" if signature.guessed else "it lies on the meta device"
        return f"not compared with the original on data: {data}"
    surroundings = Surroundings(model, list(opened))
    try:
        notes = _results(model, aug, signature, few=identities is None)
    finally:
        surroundings.restore()
    if identities is not None:
        trial = _Trial(model, aug, signature, surroundings)
        with as_identities(identities.values()):
            notes += [trial.compare(training) for training in (True, False)]
    return "; ".join(dict.fromkeys(filter(None, notes)))


def _results(model: nn.Module, aug: nn.Module, signature: Signature, few: bool) -> list[str]:
    """Compare what both return in eval mode; the notes for the plan."""
    # both begin from one state: calls may count, or keep what they saw
    with unchanged(model), evaluating(model):
        situations, expected = _expected(model, signature, few)
    notes = []
    with unchanged(model), evaluating(model), evaluating(aug):
        for (what, inputs), wanted in zip(situations, expected, strict=True):
            if wanted is None:
                continue  # the model itself does not take this size
            try:
                found = _run_captured(aug, *signature.arrange(inputs))
            except AssumptionViolated as error:
                notes.append(fixed(error))
                continue
            if not same(wanted, found):
                raise CaptureError(
                    f"the captured {signature.model} differs from the original on {what}: its forward does something "
                    "that a graph does not keep. Choose a site that opens fewer modules, and please report the model."
                )
    return notes


def _expected(model: nn.Module, signature: Signature, few: bool) -> tuple[list[Any], list[Any]]:
    """The situations that are tried, with what the model gives in each; None where it does not take it.

    Raises:
        CaptureError: it does not take the example.
    """
    if few and (two := _two_rows(signature.examples)):
        # two rows of more are another batch size already
        situations = [(what, inputs) for what, inputs in variants(two) if what != ANOTHER_SIZE]
        expected = [_run(model, *signature.arrange(inputs), must=False) for _, inputs in situations]
        if expected[0] is not None:
            return situations, expected
    situations = list(variants(signature.examples))
    return situations, [
        _run(model, *signature.arrange(v), must=i == 0) for i, (_, v) in enumerate(situations)
    ]


def _two_rows(examples: Mapping[str, Any]) -> dict[str, Any]:
    """The first and the last row of the examples; nothing if they have no more."""
    rows = {t.shape[0] for t in tensors_in(examples) if t.dim() > 0}
    if len(rows) != 1 or next(iter(rows)) <= 2:
        return {}
    found: dict[str, Any] = map_tensors(lambda t: t[[0, -1]] if t.dim() else t, dict(examples))
    return found


@dataclass(frozen=True)
class _Numbers:
    """Stands for a tensor; equal to another's if their numbers are."""

    token: Any


class _ByNumbers(Origins):
    """Tensors are told by their numbers alone, wherever they come from."""

    def of_tensor(self, tensor: Tensor) -> _Numbers:
        """What stands for a tensor."""
        return _Numbers(super().of_tensor(tensor))


class _Trial:
    """Two consecutive calls of a model and of its graph, with all that they leave changed."""

    def __init__(
        self, model: nn.Module, aug: nn.Module, signature: Signature, surroundings: Surroundings
    ) -> None:
        self.model, self.aug, self.signature, self.surroundings = model, aug, signature, surroundings

    def compare(self, training: bool) -> str:
        """A note for the plan: why both were not compared in this mode, or an empty string.

        Raises:
            CaptureError: they differ.
        """
        mode = "training" if training else "eval"
        try:
            expected, again = (self._calls(self.model, _call, training) for _ in range(2))
        except Exception as error:
            return f"not compared in {mode} mode, in which the model itself fails with {type(error).__name__}"
        if first_difference(expected, again, self.model) is not None:
            return f"not compared in {mode} mode, in which two equal runs of the model differ"
        try:
            found = self._calls(self.aug, _run_captured, training)
        except AssumptionViolated as error:
            return fixed(error)
        if (difference := first_difference(expected, found, self.model)) is not None:
            raise refusal_of(self.model, self.signature.model, f"in {mode} mode", difference)
        return ""

    def _calls(self, module: nn.Module, call: Callable[..., Any], training: bool) -> list[Record]:
        records = []
        with unchanged(self.model), modes_kept(self.model, self.aug):
            self.model.train(training)
            self.aug.train(training)
            self.surroundings.note_modes()
            try:
                for _ in range(2):
                    record = Record()
                    note = functools.partial(self._note, record)
                    given = self.signature.arrange(self.signature.examples)
                    output = call(module, *given, note, gradients=training)
                    record.output = Origins({}, {}).token(map_tensors(lambda t: t.shape, output))
                    record.values = [t.detach().clone() for t in tensors_in(output)]
                    records.append(record)
            finally:
                self.surroundings.restore()
        return records

    def _note(self, record: Record) -> None:
        """Write down what is changed now, by its place, and the numbers that the model's tensors hold."""
        origins = _ByNumbers({}, {})
        small = ((n, p) for n, p in self.model.named_parameters() if p.numel() <= SMALL)
        held = {f"the numbers in {n}": t for n, t in (*small, *self.model.named_buffers())}
        record.left = self.surroundings.left(origins.token)
        record.left |= {name: origins.token(t) for name, t in held.items()}


def fixed(error: AssumptionViolated) -> str:
    """The note for the plan that a graph does not serve where it was tried."""
    return f"fixed to this example: {captured_for(error)}"


def captured_for(error: AssumptionViolated) -> str:
    """What a graph does not serve for, as a note says it."""
    return str(error).partition(", but")[0].removeprefix("this model was ")


def _run(model: nn.Module, args: list[Any], kwargs: dict[str, Any], *, must: bool) -> Any:
    try:
        return _call(model, args, kwargs)
    except Exception as error:
        if must:
            raise CaptureError(
                f"{type(model).__name__} itself fails on example_inputs in eval mode: {type(error).__name__}: {error}"
            ) from error
        return None


def _run_captured(
    aug: nn.Module,
    args: Any,
    kwargs: dict[str, Any],
    then: Callable[[], None] = lambda: None,
    gradients: bool = False,
) -> Any:
    alone: Any = aug.only_the_graph() if isinstance(aug, AugmentedModule) else contextlib.nullcontext()
    try:
        with alone:
            return _call(aug, args, kwargs, then, gradients)
    except AssumptionViolated:
        raise
    except Exception as error:
        raise CaptureError(
            f"the captured graph fails where the original does not: {type(error).__name__}: {error}"
        ) from error


def _call(
    model: nn.Module,
    args: Any,
    kwargs: dict[str, Any],
    then: Callable[[], None] = lambda: None,
    gradients: bool = False,
) -> Any:
    """Call it from one seed; ``then`` is called before the random states are put back."""

    def run() -> Any:
        copies = map_tensors(lambda t: t.clone(), (args, kwargs))  # a forward may change its inputs
        seed(0)
        output = quiet(model)(*copies[0], **copies[1])
        then()
        return output

    with undrawn(), torch.set_grad_enabled(gradients):
        try:
            return map_tensors(Tensor.detach, run()) if gradients else run()
        except AssumptionViolated:
            raise
        except RuntimeError as error:
            if "requires_grad" not in str(error) and "require gradient" not in str(error):
                raise
            with torch.enable_grad():  # a forward that registers hooks on its activations
                return map_tensors(Tensor.detach, run())
