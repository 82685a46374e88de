"""Shadow runs: does a captured graph do what the model's own forward does, operation by operation?

Both run, in training and in eval mode, with stand-ins for the modules that are closed in the graph; their records, and
what they leave changed, have to be equal. Nothing is computed but the few operations between closed modules.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from graphaug.augment.site import Augmentation
from graphaug.capture.inputs.signature import Signature
from graphaug.capture.recording.tables import undisturbed
from graphaug.capture.state import modes_kept, others_draw, undrawn
from graphaug.errors import AssumptionViolated, CaptureError
from graphaug.proof.equivalence import ANOTHER_LENGTH, THE_EXAMPLE, variants
from graphaug.proof.shadow.differences import Difference, first_difference, refusal_of
from graphaug.proof.shadow.readiness import as_traced, with_memory
from graphaug.proof.shadow.runs import CannotCompare, Runs, Situation
from graphaug.proof.shadow.stand_ins import StandIns
from graphaug.proof.shadow.surroundings import Surroundings
from graphaug.proof.shadow.trial_run import captured_for, compare_by_trial_run, fixed
from graphaug.surgery.module import AugmentedModule

_MOST_ON_META = 1 << 30
"""Numbers that a model may own on the meta device; the activations of a larger one take gigabytes to stand in for."""

_TRIES = 3
"""Runs while another thread draws now and then."""


@dataclass(frozen=True)
class CapturedModel:
    """What is compared with the model: its graph as a module, and which modules are calls in it.

    Attributes:
        run: the module that runs the graph.
        opened: paths of the modules that were traced through.
        closed: by mode (training or not), the paths of the modules that are calls.
        identities: the modules that the model does not have; they return what they are given.
        one_graph: whether both modes run the same graph.
        falls_back: whether the model itself runs in eval mode where the graph does not hold.
    """

    run: nn.Module
    opened: tuple[str, ...]
    closed: Mapping[bool, frozenset[str]]
    identities: Mapping[str, nn.Module]
    one_graph: bool = False
    falls_back: bool = False

    def opened_modules(self, model: nn.Module) -> list[nn.Module]:
        """The model itself and its modules that were traced through."""
        return [m for path, m in model.named_modules() if path in self.opened or not path]


def as_captured(aug: AugmentedModule) -> CapturedModel:
    """A rewritten model as what is to be compared with the original: its augmentations act as the identity."""
    parts = aug._parts
    augmentations = {name: m for name, m in parts.added.items() if isinstance(m, Augmentation)}
    graphs = {True: parts.training_graph, False: parts.eval_graph or parts.training_graph}
    calls = {
        mode: frozenset(str(n.target) for n in graph.nodes if n.op == "call_module") - augmentations.keys()
        for mode, graph in graphs.items()
    }
    return CapturedModel(
        aug, parts.plan.opened, calls, augmentations, parts.eval_graph is None, not parts.writes_into_inputs
    )


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
    if sum(t.numel() for t in (*model.parameters(), *model.buffers()) if t.is_meta) > _MOST_ON_META:
        return "not compared with the original: too large a model on the meta device"
    try:
        try:
            notes = _Shadow(model, captured, signature, shared=True).compare()
        except CannotCompare:
            notes = _Shadow(model, captured, signature, shared=False).compare()
    except CannotCompare as why:
        if signature.guessed:
            return f"not compared with the original: {why}, and there are no example_inputs to run it on"
        opened = captured.opened_modules(model)
        note = compare_by_trial_run(model, captured.run, signature, captured.identities, opened)
        return "; ".join(filter(None, [f"compared by a trial run only: {why}", note]))
    return "; ".join(notes)


class _Shadow:
    """Shadow runs of one model and its graph."""

    def __init__(
        self, model: nn.Module, captured: CapturedModel, signature: Signature, *, shared: bool
    ) -> None:
        self.model, self.captured, self.signature, self.shared = model, captured, signature, shared
        self.graph_ids: dict[Any, int] = {}
        self.notes: dict[str, None] = {}
        self.instead: dict[str, list[str]] = {}  # why the original runs in eval mode: in which situations
        self.by_results = False  # an operation of the original was not to be recorded

    def compare(self) -> list[str]:
        """Compare in both modes and all situations; the notes for the plan."""
        # random states before anything else: code that looks at them is restored last
        with (
            modes_kept(self.model, self.captured.run),
            undrawn(),
            undisturbed(self.model),
            warnings.catch_warnings(),
            as_traced() as asked,
        ):
            warnings.simplefilter("ignore")
            with_memory(self.model, self._compare)
        for why, where in self.instead.items():
            on = where[0] if where[0] == THE_EXAMPLE else ", ".join(where)
            self.notes[f"in eval mode the original runs on {on}: {why}"] = None
        # where the model does something else when traced, its results are compared as well
        if asked or self.by_results:
            note = compare_by_trial_run(self.model, self.captured.run, self.signature, None)
            if note:
                self.notes[note] = None
        return list(self.notes)

    def _compare(self) -> None:
        surroundings = Surroundings(self.model, self.captured.opened_modules(self.model))
        for training in (True, False):
            self.captured.run.train(training)
            surroundings.note_modes()
            stand_ins = StandIns(self.model, self.captured.closed[training], shared=self.shared)
            stand_ins.changes = surroundings.seen_by
            runs = Runs(self.model, self.signature, stand_ins, surroundings, self.graph_ids)
            mode = "training" if training else "eval"
            with stand_ins.in_place(self.captured.identities), self._one_graph():
                for i, situation in enumerate(self._situations()):
                    if situation.what == ANOTHER_LENGTH and not training and self.captured.one_graph:
                        continue
                    try:
                        self._in(situation, mode, runs)
                    except CannotCompare:
                        if not self._settled(situation, mode, runs) and i == 0:
                            raise
                    finally:
                        surroundings.restore()

    @contextlib.contextmanager
    def _one_graph(self) -> Iterator[None]:
        """Run the graph alone, and do not ask what it relies on: what is watched here has been replaced."""
        run = self.captured.run
        if not isinstance(run, AugmentedModule):
            yield
            return
        parts = run._parts
        before, parts.facts = parts.facts, {}
        try:
            with run.only_the_graph():
                yield
        finally:
            parts.facts = before

    def _situations(self) -> Iterator[Situation]:
        first: Mapping[str, Any] | None = None
        for what, inputs in variants(self.signature.examples):
            first = inputs if first is None else first
            yield Situation(what, inputs, calls=2 if inputs is first else 1)
        assert first is not None
        yield Situation("the example inside of autocast", first, autocast=True)
        yield Situation("the example without gradients", first, gradients=False)

    def _in(self, situation: Situation, mode: str, runs: Runs) -> None:
        where = f"{situation.what}, in {mode} mode"
        runs.stand_ins.learned = False
        expected = runs.records(self.model, situation)
        if isinstance(expected, Exception):
            raise CannotCompare(f"on {where}, {_said(self.signature.model, expected)}") from expected
        for record in expected:
            if record.unseen:
                raise CaptureError(
                    f"{self.signature.model}.forward cannot be captured: {record.unseen}. A graph cannot hold it; "
                    "choose a site outside that module, so that it stays closed."
                )
        found = runs.records(self.captured.run, situation)
        if isinstance(found, AssumptionViolated) and self._noted(found, situation, mode):
            return
        if isinstance(found, AssumptionViolated):
            raise CaptureError(
                f"the captured graph does not hold for example_inputs themselves ({where}): "
                f"{str(found).partition(' Call ')[0]} It has one path: choose a site outside of the module that asks "
                "for this, so that it stays closed, or switch off there what asks (enable_nested_tensor=False of an "
                "nn.TransformerEncoder)."
            ) from found
        if isinstance(found, Exception):
            raise CaptureError(
                f"the captured graph fails where the original does not ({where}): {type(found).__name__}: {found}"
            ) from found
        difference = first_difference(expected, found, self.model, runs.stand_ins.closed)
        if difference is not None and runs.stand_ins.learned:
            # what a stand-in returns was found by a call of its module, whose hooks ran once more then
            difference = self._again(situation, runs)
        if difference is not None and _may_be_drawn(difference):
            difference = self._undisturbed(difference, situation, runs)
        if difference is not None:
            raise refusal_of(self.model, self.signature.model, f"on {where}", difference)

    def _noted(self, violated: AssumptionViolated, situation: Situation, mode: str) -> bool:
        """Note that the graph is not for a situation; False if it has to be, as for the example in training mode."""
        if mode == "eval" and self.captured.falls_back:
            self.instead.setdefault(captured_for(violated), []).append(situation.what)
        elif situation.calls == 1:
            self.notes[fixed(violated)] = None
        else:
            return False
        return True

    def _settled(self, situation: Situation, mode: str, runs: Runs) -> bool:
        """Whether a graph need not be compared where the original cannot be run: it does not hold there.

        Kernels of torch for inference alone make nested tensors, of which there are no records.
        """
        if mode == "training" or (situation.gradients and situation.what != THE_EXAMPLE):
            return False
        found: Any = None
        with contextlib.suppress(CannotCompare):
            found = runs.records(self.captured.run, situation)
        if isinstance(found, AssumptionViolated) and self._noted(found, situation, mode):
            return True
        self.by_results |= not situation.gradients
        return False

    def _again(self, situation: Situation, runs: Runs) -> Difference | None:
        """The difference of two runs in which no stand-in has to learn anything."""
        expected = runs.records(self.model, situation)
        found = runs.records(self.captured.run, situation)
        for records in (expected, found):
            if isinstance(records, Exception):
                raise CannotCompare(f"of two equal runs one fails with {type(records).__name__}") from records
        assert not isinstance(expected, Exception)
        assert not isinstance(found, Exception)
        return first_difference(expected, found, self.model, runs.stand_ins.closed)

    def _undisturbed(self, difference: Difference, situation: Situation, runs: Runs) -> Difference | None:
        """The difference of runs in which no other thread has drawn, if there are others: generators are shared.

        Raises:
            CaptureError: another thread draws all the time.
        """
        if threading.active_count() == 1:
            return difference
        for _ in range(_TRIES):
            if (again := self._again(situation, runs)) is None:
                return None
            difference = again
        if others_draw():
            raise CaptureError(
                f"{self.signature.model} cannot be compared with its graph: another thread draws random numbers all "
                "the time, from the generator that this model's are from. Call rewrite while no other thread draws."
            )
        return difference


def _may_be_drawn(difference: Difference) -> bool:
    """Whether numbers that another thread drew could make a difference."""
    return "random generator" in difference.attribute or "value" in difference.what


def _said(model: str, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{model} itself fails with {type(error).__name__}: {lines[0][:160] if lines else ''}"
