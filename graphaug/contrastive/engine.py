"""The training loop: over any objective that gives a loss for a batch, exactly resumable, on one device or several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from graphaug.contrastive.fitting import fitting
from graphaug.contrastive.gather import all_rows, process_count, process_rank
from graphaug.contrastive.resumable import check_state, contents
from graphaug.errors import TrainingDiverged

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Feed(Protocol):
    """Where batches come from: an epoch of ``steps`` steps, the same for the same state.

    ``batches`` gives the arguments of the objective's forward, once for each part that a step is computed in. The
    state as of ``state_dict(new_epoch)`` begins the present epoch again, or with ``new_epoch`` the one after it;
    either way what is drawn within an epoch goes on from where it was.
    """

    steps: int

    def start_epoch(self) -> None:
        """Draw the order of an epoch."""

    def batches(self, step: int) -> Iterable[tuple[Tensor, ...]]:
        """The parts of the batch of a step, numbered within the epoch."""

    def state_dict(self, new_epoch: bool) -> dict[str, Any]:
        """All generators."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""


@dataclass
class Position:
    """``step``: optimizer steps made; ``sums`` of the measures since step ``lined``, the last line of ``metrics``."""

    step: int = 0
    lined: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)


class Engine:
    """Trains an objective.

    Args:
        fabric: Lightning Fabric, launched; it places the objective, runs it in its precision, and averages gradients
            over processes.
        objective: its forward takes a batch and returns measures by name, scalars; ``"loss"`` is trained on.
        feed: gives the batches.
        optimizer: of the objective's parameters.
        learning_rate: of the fractional epoch, 0 at the first step.
        epochs: passes over the feed.
        accumulate: parts that a step is computed in; their gradients are averaged.
        compile: compile the objective with its backward. In one process this is one graph, or an error; with several,
            the communication of the loss is left out of it.
        cuda_graphs: replay what is compiled as CUDA graphs; in one process, with ``accumulate`` of 1.
        dynamic: as for ``torch.compile``; False compiles once for every shape that the feed gives.
        clip: largest norm of the gradients of all parameters together; longer ones are shortened to it.
        line_every: steps between lines of the metrics; by default an epoch.
        before_step: called with the fractional epoch before each step.
        after_update: called with the same behind each optimizer step.
        views: that are made of a row of a batch, for their count a second.

    """

    def __init__(
        self,
        fabric: Fabric,
        objective: nn.Module,
        feed: Feed,
        optimizer: torch.optim.Optimizer,
        learning_rate: Callable[[float], float],
        *,
        epochs: int,
        accumulate: int = 1,
        compile: bool = False,
        cuda_graphs: bool = False,
        dynamic: bool | None = None,
        clip: float | None = None,
        line_every: int | None = None,
        before_step: Callable[[float], None] | None = None,
        after_update: Callable[[float], None] | None = None,
        views: int = 2,
    ) -> None:
        self.fabric, self.objective, self.feed, self.optimizer = fabric, objective, feed, optimizer
        self.learning_rate, self.epochs, self.accumulate = learning_rate, epochs, accumulate
        self.before_step, self.clip, self.line_every = before_step, clip, line_every or feed.steps
        self.after_update, self.views = after_update, views
        self.cuda_graphs = cuda_graphs
        options: dict[str, Any] = {"mode": "reduce-overhead"} if cuda_graphs else {}
        forward: Any = objective
        if compile:
            forward = torch.compile(objective, fullgraph=process_count() == 1, dynamic=dynamic, **options)
        # DDP around what is compiled, not the other way round: its hooks need no graph of their own.
        self.forward = fabric.setup_module(forward, _reapply_compile=False)
        self.position = Position()
        self.resumed = ""  # from what, until the first step behind it

    def fit(
        self,
        after_step: Callable[[int], None] | None = None,
        after_line: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Train from the present position to the end.

        Args:
            after_step: called with the number of steps made.
            after_line: called with a line of the metrics, which it may add to: ``epoch``, how many there were, the
                means of the measures since the line before, ``lr`` of the last step, ``seconds`` and
                ``views_per_second``.

        Returns:
            The metrics, those before a resume included.

        Raises:
            TrainingDiverged: a loss became NaN or infinite.

        """
        position, steps = self.position, self.feed.steps
        last = self.epochs * steps
        self.objective.train()
        start, rows = time.perf_counter(), 0
        while position.step < last:
            epoch, first = divmod(position.step, steps)
            self.feed.start_epoch()
            for step in range(first, steps):
                rows += self._step(epoch + step / steps, step)
                position.step += 1
                if position.step % self.line_every == 0 or position.step == last:
                    line = self._line(start, rows)
                    position.sums, position.lined = {}, position.step
                    if after_line is not None:
                        after_line(line)
                    position.metrics.append(line)
                    start, rows = time.perf_counter(), 0
                if after_step is not None:
                    after_step(position.step)
        return position.metrics

    def _step(self, epoch: float, step: int) -> int:
        """Make one optimizer step; returns the rows of a batch of all processes."""
        rate = self.learning_rate(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.before_step is not None:
            self.before_step(epoch)
        self.optimizer.zero_grad()
        if self.cuda_graphs:
            # What the last step left in the graphs' memory, gradients and measures, is used up.
            torch.compiler.cudagraph_mark_step_begin()
        rows = 0
        for part, batch in enumerate(self.feed.batches(step)):
            with self._unsynced(part + 1 < self.accumulate):
                measures = self.forward(*batch)
                loss = measures["loss"]
                self.fabric.backward(loss if self.accumulate == 1 else loss / self.accumulate)
            self._add(measures)
            rows += len(batch[0])
        if self.clip is not None:
            self.fabric.clip_gradients(
                self.forward, self.optimizer, max_norm=self.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        if self.after_update is not None:
            self.after_update(epoch)
        return rows * process_count()

    def _unsynced(self, enabled: bool) -> AbstractContextManager[None]:
        """Leaves averaging over processes to the last part of a batch."""
        if not enabled or process_count() == 1:
            return nullcontext()
        return self.fabric.no_backward_sync(self.forward)

    def _add(self, measures: Mapping[str, Tensor]) -> None:
        sums = self.position.sums
        if self.resumed and sums and sums.keys() != measures.keys():
            with fitting(self.resumed):
                raise ValueError(f"it sums {', '.join(sums)}, and this run {', '.join(measures)}")
        self.resumed = ""
        for name, value in measures.items():
            sums.setdefault(name, torch.zeros((), device=value.device)).add_(value.detach())

    def _line(self, start: float, rows: int) -> dict[str, Any]:
        means = self.means()
        self.check(means["loss"])
        seconds = time.perf_counter() - start
        whole, rest = divmod(self.position.step, self.feed.steps)
        epoch = whole + rest / self.feed.steps if rest else whole
        line: dict[str, Any] = {"epoch": epoch, **means, "lr": self.optimizer.param_groups[0]["lr"]}
        line |= {"seconds": round(seconds, 3), "views_per_second": round(self.views * rows / seconds, 1)}
        return line

    def means(self) -> dict[str, float]:
        """Means of the measures since the last line, over the processes too."""
        names = list(self.position.sums)
        count = (self.position.step - self.position.lined) * self.accumulate
        sums = torch.stack([self.position.sums[name] for name in names])
        if process_count() > 1:
            dist.all_reduce(sums)
        return {
            name: value / process_count() / count for name, value in zip(names, sums.tolist(), strict=True)
        }

    def check(self, loss: float) -> None:
        """Raise ``TrainingDiverged`` unless a mean loss is finite."""
        if not math.isfinite(loss):
            last, steps = self.position.step - 1, self.feed.steps
            highest = max(self.learning_rate(e) for e in (*range(last // steps + 1), last / steps))
            raise TrainingDiverged(
                f"the loss is {loss} in epoch {last // steps + 1}; try a learning rate below {highest:g}."
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on; to be called in all processes.

        Raises:
            TrainingDiverged: the loss is no longer finite: such a state is not worth keeping.

        """
        position = self.position
        if position.sums:
            self.check(self.means()["loss"])
        # The loss is of before the last step, which may have been the bad one.
        if not torch.stack([p.detach().isfinite().all() for p in self.objective.parameters()]).all():
            self.check(math.nan)
        return {
            "step": position.step,
            "lined": position.lined,
            "sums": {name: all_rows(value[None]).clone() for name, value in position.sums.items()},
            "metrics": position.metrics,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "feed": self.feed.state_dict(position.step % self.feed.steps == 0),
            "generators": _generators(self.fabric.device),
            "processes": process_count(),
            "contents": contents(self.optimizer, position.sums),
        }

    def load_state_dict(
        self, state: Mapping[str, Any], name: str = "this checkpoint", step: int | None = None
    ) -> None:
        """Go on from a state; ``name`` says in errors where it comes from, ``step`` where that says it is.

        Raises:
            CheckpointError: it was made by another number of processes, or does not fit: a key is missing, a shape is
                another one, the optimizer's settings are.

        """
        with fitting(name):
            # The objective first: of another model torch says what differs, and the rest what follows of that.
            self.objective.load_state_dict(state["objective"])
            check_state(state, self, name, step)
            self._load(state)
        self.resumed = name

    def _load(self, state: Mapping[str, Any]) -> None:
        device = self.fabric.device
        self.optimizer.load_state_dict(state["optimizer"])
        self.feed.load_state_dict(state["feed"])
        sums = {name: values[process_rank()].clone().to(device) for name, values in state["sums"].items()}
        self.position = Position(state["step"], state["lined"], sums, list(state["metrics"]))
        # clones: of a view with an offset torch reads the beginning of its storage
        own = {name: states[process_rank()].clone() for name, states in state["generators"].items()}
        torch.set_rng_state(own["cpu"])
        if device.type == "cuda" and "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"], device)


def _generators(device: torch.device) -> dict[str, Tensor]:
    """States of torch's own generators, a row for each process."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    # NCCL moves tensors of its device only.
    return {name: all_rows(state[None].to(device)).cpu() for name, state in states.items()}
