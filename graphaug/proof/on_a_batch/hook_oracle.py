"""The oracle of `verify`: forward hooks on the original that do what the plan says, with the masks that were drawn."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Collection, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from graphaug.capture.interpreter import Interpreter
from graphaug.capture.recording.relied.facts import Fact
from graphaug.capture.target import Target
from graphaug.proof.equivalence import with_forwards
from graphaug.proof.on_a_batch.outputs import first_tensor
from graphaug.proof.on_a_batch.places import set_apart
from graphaug.proof.on_a_batch.recorded import Aside, Recorded, again
from graphaug.surgery.called.tokens import followed
from graphaug.surgery.called.views import multiplied, repeated
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.plan import PlannedSite

Replay = Callable[[Any, Target], Any]

_DROPOUTS = {
    torch.dropout,
    torch.dropout_,
    torch.nn.functional.dropout,
    torch.nn.functional.dropout1d,
    torch.nn.functional.dropout2d,
    torch.nn.functional.dropout3d,
    torch.nn.functional.alpha_dropout,
    torch.nn.functional.feature_alpha_dropout,
}


class NoDropout(TorchFunctionMode):
    """Functional dropout does nothing in this block."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is torch.nn.functional.scaled_dot_product_attention:
            return func(*args[:4], **{**kwargs, "dropout_p": 0.0})
        return func(*args, **kwargs)


@contextlib.contextmanager
def hooked(
    aug: AugmentedModule,
    model: nn.Module,
    draws: dict[Target, list[Recorded]],
    aside: Aside = contextlib.nullcontext,
) -> Iterator[None]:
    """The oracle: forward hooks on the original that do what the plan says, with the recorded masks.

    An operation inside a forward has no hook; there the graph without augmentation is interpreted
    and the value replaced on the way. What an augmentation does is done ``aside``.
    """

    def replay(value: Any, target: Target) -> Any:
        with aside():
            return again(value, draws[target][0], aug.augmentations[target])

    targets = [site.request.target for site in aug.plan.sites]
    if any(t.op is not None for t in targets) or following(aug):
        with _interpreted(aug, model, draws, replay):
            yield
        return
    handles = [
        _hook(model, site, draws[target], replay, aug._parts.training_graph)
        for site, target in zip(aug.plan.sites, targets, strict=True)
    ]
    try:
        yield
    finally:
        for handle in reversed(handles):
            handle.close()


def _hook(
    model: nn.Module, site: PlannedSite, draws: list[Recorded], replay: Replay, graph: fx.Graph
) -> contextlib.ExitStack:
    target = site.request.target

    def change(value: Any) -> Any:  # a sparse step without rows to stop draws none
        return _at(value, site.entry, lambda v: replay(v, target)) if draws else value

    return hook_at(model, target, change, graph)


def _at(value: Any, entry: tuple[int | str, ...], change: Callable[[Any], Any]) -> Any:
    """A value with the entry changed that the keys lead to."""
    if not entry:
        return change(value)
    key, rest = entry[0], entry[1:]
    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", range(len(value)))
        entries = [
            _at(v, rest, change) if key in (i, name) else v
            for i, (name, v) in enumerate(zip(names, value, strict=True))
        ]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    changed = copy.copy(value)
    if isinstance(value, MutableMapping):
        key = key if key in value else list(value)[int(key)]  # transformers' outputs take a position too
        changed[key] = _at(value[key], rest, change)
    else:
        object.__setattr__(changed, str(key), _at(getattr(value, str(key)), rest, change))  # it may be frozen
    return changed


def hook_at(
    model: nn.Module, target: Target, change: Callable[[Any], Any], graph: fx.Graph
) -> contextlib.ExitStack:
    """Register a forward hook that changes the value at a module; close what is returned to take it out.

    It acts at that place alone, also where the module was put at another place that the ``graph`` calls.
    """
    counter = itertools.count()

    def replace(value: Any) -> Any:
        return change(value) if next(counter) == (target.call or 0) else value

    module, taken_out = model.get_submodule(target.path), contextlib.ExitStack()
    taken_out.callback(set_apart(model, target.path, graph))

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (replace(args[0]), *args[1:]), kwargs
        first = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
        return args, {**kwargs, first: replace(kwargs[first])}

    if target.side == "after":
        handle = module.register_forward_hook(lambda _, args, out: replace(out))
    else:
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    taken_out.callback(handle.remove)
    return taken_out


@contextlib.contextmanager
def _interpreted(
    aug: AugmentedModule, model: nn.Module, draws: dict[Target, list[Recorded]], replay: Replay
) -> Iterator[None]:
    """Let ``model`` run the captured graph node by node, with the oracle in place of the augmentation."""
    sites = {site.module: site.request.target for site in aug.plan.sites}

    class Replaying(Interpreter):
        def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if target in sites:
                place = sites[target]
                out = replay(args[0], place) if draws[place] else args[0]
                return (out, draws[place][0].kept) if len(args) > 1 else out
            return super().call_module(target, args, kwargs)

        def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if target in (repeated, multiplied):  # the rows come in as often as there are views
                return args[0]
            if target is followed:
                return _row_by_row(*args)
            return super().call_function(target, args, kwargs)

    graph = aug._parts.training_graph
    with interpreting(aug, model, Replaying(aug, garbage_collect_values=False, graph=graph)):
        yield


def interpreting(
    aug: AugmentedModule, model: nn.Module, interpreter: fx.Interpreter
) -> contextlib.AbstractContextManager[None]:
    """Let ``model`` run the training graph by an interpreter in the place of its forward, in this block."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        values = aug._parts.signature.bind(args, kwargs)
        inputs = [n for n in aug._parts.training_graph.nodes if n.op == "placeholder"]
        return interpreter.run(*[values.get(str(n.target), *n.args) for n in inputs])

    return with_forwards([(model, forward)])


def following(aug: AugmentedModule) -> int:
    """How many values behind a site that drops tokens keep the same ones."""
    return len({n.args[0] for n in aug._parts.training_graph.nodes if n.target is followed})


def _row_by_row(
    value: Tensor | None, kept: Tensor, at: tuple[int, int, int] | None, dims: tuple[int, ...]
) -> Tensor | None:
    """The entries of the kept tokens, picked for each row by itself; None has none to pick."""
    if value is None:
        return None
    if at is None:
        value, at = torch.cat([value] * len(kept)), (0, 1, 1)
    dim, outer, _ = at
    picked = []
    for block in value.chunk(outer, dim):  # the whole batch, so many times behind itself
        for part, index in zip(
            block.chunk(len(kept), dim), kept, strict=True
        ):  # a row with all its neighbours
            for place in dims:
                part = part.index_select(place, index)
            picked.append(part)
    return torch.cat(picked, dim)


def recorder(below: dict[Target, Tensor], target: Target) -> Callable[[nn.Module, Any], None]:
    """A forward pre-hook that keeps what first enters an augmentation."""

    def record(_: nn.Module, args: tuple[Any, ...]) -> None:
        below.setdefault(target, first_tensor(args[0]))

    return record


def asking_for_mode(aug: AugmentedModule) -> Collection[int]:
    """The modules of a sparse step's prefix, by their ids, that may compute something else in eval mode."""
    kept = aug._parts.kept
    return () if kept is None else kept.asked


def quieten(aug: AugmentedModule, model: nn.Module, awake: Collection[int] = ()) -> None:
    """Eval mode for every closed module, so that nothing but the augmentation is random or sees the batch.

    A flag that opened code reads stays as it was read: it decides what that code does, and the graph relies on it. So
    does the mode of modules whose ids are in ``awake``: training.
    """
    opened = {model, *(model.get_submodule(path) for path in aug.plan.opened)}
    facts = (fact for fact in aug._parts.facts.get(True, ()) if isinstance(fact, Fact))
    read = {model.get_submodule(fact.path): fact.expected for fact in facts if fact.name == "training"}
    for module in model.modules():
        module.training = read.get(module, module in opened or id(module) in awake)
        if isinstance(module, _BatchNorm) and not module.training and module.running_mean is None:
            _give_statistics(module, model)
    if aug._parts.kept is not None:
        aug._parts.kept.modes = False


def _give_statistics(norm: _BatchNorm, model: nn.Module) -> None:
    """Without any that it has kept, a norm uses those of the batch in eval mode too; who quietens puts it back."""
    like = next(
        (p for p in (*norm.parameters(), *model.parameters()) if p.is_floating_point()), torch.empty(0)
    )
    norm.running_mean = like.new_zeros(norm.num_features)
    norm.running_var = like.new_ones(norm.num_features)
