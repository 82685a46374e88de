"""What a saved state has to hold for a run to go on exactly, beside the weights, which torch compares itself."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from graphaug.contrastive.gather import process_count
from graphaug.errors import CheckpointError, an, several

LINE = ("epoch", "loss", "lr", "seconds", "views_per_second")
"""Numbers that every line of the metrics has."""

HOW = ("foreach", "fused", "capturable")
"""Settings of torch's optimizers that choose a kernel, and may be others on another device."""

PROBE = (2, 3)
"""The shape of the parameter that tells what an optimizer keeps."""


class Steps(Protocol):
    """Of a feed: how many steps an epoch has."""

    steps: int


class Run(Protocol):
    """What a state is compared with; see `graphaug.contrastive.engine.Engine`."""

    epochs: int

    @property
    def objective(self) -> nn.Module:
        """What is trained."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of its parameters."""

    @property
    def feed(self) -> Steps:
        """Where batches come from."""

    @property
    def learning_rate(self) -> Callable[[float], float]:
        """Of the fractional epoch."""


def contents(optimizer: torch.optim.Optimizer, sums: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a state says of itself, so that one with less in it is not taken for whole.

    Which parameters have moments cannot be told without a step: one that no gradient has reached has none.
    """
    return {"moments": sorted(optimizer.state_dict()["state"]), "sums": sorted(sums)}


def check_state(state: Mapping[str, Any], run: Run, name: str, step: int | None) -> None:
    """Refuse a state that is not whole, or not of this run.

    Args:
        state: as `Engine.state_dict` gave it.
        run: the engine that is to go on from it.
        name: of the checkpoint, for the message.
        step: in the name of the file, if there is one.

    Raises:
        CheckpointError: it was made by another number of processes.
        ValueError: it does not fit; the message says what.
        KeyError: something is missing in it.

    """
    processes = state["processes"]
    if _count("processes", processes) != process_count():
        raise CheckpointError(
            f"{name} was made by {processes} process(es), and there are {process_count()}: resume with as many devices."
        )
    _check_position(state, run, step)
    _check_sums(state)
    _check_settings(state, run)
    _check_moments(state, run)


def _check_position(state: Mapping[str, Any], run: Run, named: int | None) -> None:
    """The step is that of the file's name and of this run's length, and the metrics end where they are said to."""
    step, lined, metrics = _count("step", state["step"]), _count("lined", state["lined"]), state["metrics"]
    steps = run.feed.steps
    if named is not None and step != named:
        raise ValueError(f"its step is {step}, and its name says {named}")
    if step > run.epochs * steps:
        raise ValueError(f"its step is {step}, and the run has {run.epochs * steps}")
    if not isinstance(metrics, list) or not all(isinstance(line, dict) for line in metrics):
        raise ValueError("its metrics are no list of lines")
    for number, line in enumerate(metrics, 1):
        if lacking := [key for key in LINE if not _is_number(line.get(key))]:
            raise ValueError(f"line {number} of its metrics has no number for {', '.join(lacking)}")
    ends = [0.0, *(line["epoch"] * steps for line in metrics)]
    if any(end <= before for before, end in pairwise(ends)):
        raise ValueError("the lines of its metrics are not in the order of their epochs")
    if lined > step or not math.isclose(ends[-1], lined, abs_tol=1e-6):
        raise ValueError(
            f"it has made {step} steps and written its metrics down after {lined}, and they end after {ends[-1]:g}"
        )


def _check_sums(state: Mapping[str, Any]) -> None:
    """Since the last line every measure was summed, the loss among them, or none where no step was made."""
    sums, said = state["sums"], state["contents"]["sums"]
    _mapping("sums", sums)
    if sorted(sums, key=str) != said:
        raise ValueError(f"it sums {_listed(sums)}, and {_listed(said)} when it was made")
    if bool(sums) != (state["step"] > state["lined"]) or (sums and "loss" not in sums):
        raise ValueError(
            f"it sums {_listed(sums)}, {several(state['step'] - state['lined'], 'step')} after its last metrics"
        )
    for name, values in sums.items():
        if not isinstance(values, Tensor) or values.shape != (process_count(),):
            raise ValueError(f"the sum {name!r} is not one number for each process")


def _check_settings(state: Mapping[str, Any], run: Run) -> None:
    """The optimizer's groups are the run's, but for the learning rate, which is that of the last step."""
    saved = state["optimizer"]["param_groups"]
    own = run.optimizer.state_dict()["param_groups"]
    if not isinstance(saved, list) or not all(isinstance(group, dict) for group in saved):
        raise ValueError("the optimizer's groups are no list of settings")
    if len(saved) != len(own):
        raise ValueError(f"the optimizer has {several(len(saved), 'group')}, and {len(own)} in this run")
    epoch, rest = divmod(max(state["step"] - 1, 0), run.feed.steps)
    rate = run.learning_rate(epoch + rest / run.feed.steps)
    for found, wanted in zip(saved, own, strict=True):
        if found["params"] != wanted["params"]:
            raise ValueError("a group of the optimizer has other parameters than in this run")
        for key, value in wanted.items():
            if key == "lr":
                # before the first step it is what the optimizer was made with
                wanted_now = rate if state["step"] else value
                if not _is_number(found[key]) or not math.isclose(found[key], wanted_now, rel_tol=1e-6):
                    raise ValueError(
                        f"the optimizer's lr is {found[key]!r}, and {wanted_now!r} at that step of this run"
                    )
            elif key not in ("params", *HOW) and not _same(found[key], value):
                raise ValueError(f"the optimizer's {key} is {found[key]!r}, and {value!r} in this run")


def _check_moments(state: Mapping[str, Any], run: Run) -> None:
    """Every parameter that had moments has all that this optimizer keeps: a missing one would begin again at 0."""
    saved, said = state["optimizer"]["state"], state["contents"]["moments"]
    _mapping("the optimizer's state", saved)
    if sorted(saved, key=str) != sorted(said, key=str):
        raise ValueError(
            f"the optimizer has moments of {several(len(saved), 'parameter')}, and had them of {len(said)} when it was "
            "made"
        )
    names = {id(parameter): name for name, parameter in run.objective.named_parameters()}
    packed = run.optimizer.state_dict()["param_groups"]
    kept = _kept(run.optimizer)
    if not saved and any(kept) and state["step"]:
        raise ValueError(f"the optimizer has no moments after {several(state['step'], 'step')}")
    for group, own, wanted in zip(packed, run.optimizer.param_groups, kept, strict=True):
        for number, parameter in zip(group["params"], own["params"], strict=True):
            if number in saved:
                name = names.get(id(parameter), f"parameter {number}")
                _check_moment(saved[number], wanted, parameter, name)


def _check_moment(found: Any, wanted: Mapping[str, Any], parameter: Tensor, name: str) -> None:
    _mapping(f"the optimizer's state of {name}", found)
    if found.keys() != wanted.keys():
        raise ValueError(
            f"the optimizer keeps {_listed(wanted)} of a parameter, and {_listed(found)} of {name} is there"
        )
    for key, example in wanted.items():
        moment = found[key]
        if not isinstance(example, Tensor):
            if type(moment) is not type(example):
                raise ValueError(f"{key} of the optimizer is {an(moment)} for {name}, not {an(example)}")
            continue
        if not isinstance(moment, Tensor):
            raise ValueError(f"{key} of the optimizer is {an(moment)} for {name}, and no tensor")
        # torch does not look, and broadcasts
        shape = parameter.shape if example.shape == PROBE else example.shape
        if example.shape in (PROBE, ()) and moment.shape != shape:
            raise ValueError(
                f"{key} of the optimizer has the shape {tuple(moment.shape)} for {name}, not {tuple(shape)}"
            )


def _kept(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the optimizer keeps of a parameter of each group behind a step, told by a step of a small one."""
    found = []
    for group in optimizer.param_groups:
        parameter = torch.zeros(PROBE, dtype=group["params"][0].dtype, device=group["params"][0].device)
        parameter.grad = torch.zeros_like(parameter)
        alike = copy.copy(optimizer)
        alike.state, alike.param_groups = defaultdict(dict), [{**group, "params": [parameter]}]
        type(optimizer).step(alike)  # the instance's may be bound to the optimizer itself, by a scheduler
        found.append(dict(alike.state[parameter]))
    return found


def _count(name: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"its {name} is {value if _is_number(value) else an(value)}, and no count")
    return value


def _mapping(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {an(value)}, and no mapping")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _same(found: Any, wanted: Any) -> bool:
    """Tuples and lists are alike, tensors are numbers."""
    found, wanted = (v.tolist() if isinstance(v, Tensor) else v for v in (found, wanted))
    found, wanted = (list(v) if isinstance(v, tuple) else v for v in (found, wanted))
    return bool(found == wanted)


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "nothing"
