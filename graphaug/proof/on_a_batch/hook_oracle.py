"""The oracle of `verify`: forward hooks on the original that do what the plan says, with the masks that were drawn."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from graphaug.augment.deep_augment import DeepAugment
from graphaug.augment.rows import Rows
from graphaug.capture.target import Target
from graphaug.proof.on_a_batch.outputs import first_tensor
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.plan import Request

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
    aug: AugmentedModule, model: nn.Module, draws: dict[Target, list[tuple[Tensor, Tensor]]]
) -> Iterator[None]:
    """The oracle: forward hooks on the original that do what the plan says, with the recorded masks.

    An operation inside a forward has no hook; there the graph without augmentation is interpreted
    and the value replaced on the way.
    """
    requests = [site.request for site in aug.plan.sites]
    if any(r.target.op is not None for r in requests):
        with _interpreted(aug, model, draws):
            yield
        return
    handles = [_hook(model, r, draws[r.target], aug.augmentations[r.target]) for r in requests]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def slices(rows: Tensor, value: Tensor, place: Rows) -> Tensor:
    """The indices of the chosen rows' slices: by the definition, index ``(o * B + b) * inner + i`` is row ``b``'s."""
    index = torch.arange(value.shape[place.dim], device=value.device)
    return index[rows.to(value.device)[index // place.inner % len(rows)]]


def _oracle(value: Any, rows: Tensor, noise: Tensor, stop: bool, place: Rows) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)([_oracle(value[0], rows, noise, stop, place), *value[1:]])
    if not isinstance(value, Tensor):
        first = next(iter(value))
        return type(value)(**{**value, first: _oracle(value[first], rows, noise, stop, place)})
    index = slices(rows, value, place)
    if noise.shape[place.dim] == value.shape[place.dim]:
        noise = noise.index_select(place.dim, index)  # a sparse step draws noise for the augmented rows alone
    dropped = value.index_select(place.dim, index) * noise
    return value.index_copy(place.dim, index, (dropped.detach() if stop else dropped).to(value.dtype))


def _redraw(augmentation: DeepAugment, value: Any) -> None:
    """Use up the random numbers that the augmentation used, so that the model's own dropout draws the same."""
    h = first_tensor(value)
    augmentation.draw_rows(h.shape[augmentation.place.dim] // augmentation.place.slices, h.device)
    augmentation.draw_noise(h)


def _hook(
    model: nn.Module, request: Request, draws: list[tuple[Tensor, Tensor]], augmentation: DeepAugment
) -> Any:
    counter = itertools.count()
    target, stop = request.target, request.stop_grad

    def replace(value: Any) -> Any:
        if next(counter) != (target.call or 0) or not draws:  # a sparse step without rows to stop draws none
            return value
        _redraw(augmentation, value)
        return _oracle(value, *draws[0], stop, augmentation.place)

    module = model.get_submodule(target.path)
    if target.side == "after":
        return module.register_forward_hook(lambda _, args, out: replace(out))

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (replace(args[0]), *args[1:]), kwargs
        first = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
        return args, {**kwargs, first: replace(kwargs[first])}

    return module.register_forward_pre_hook(before, with_kwargs=True)


@contextlib.contextmanager
def _interpreted(
    aug: AugmentedModule, model: nn.Module, draws: dict[Target, list[tuple[Tensor, Tensor]]]
) -> Iterator[None]:
    """Let ``model`` run the captured graph node by node, with the oracle in place of the augmentation."""
    stops = {site.module: (site.request.target, site.request.stop_grad) for site in aug.plan.sites}

    class Replaying(fx.Interpreter):
        def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if target in stops:
                place, stop = stops[target]
                if not draws[place]:
                    return args[0]
                _redraw(aug.augmentations[place], args[0])
                return _oracle(args[0], *draws[place][0], stop, aug.augmentations[place].place)
            return super().call_module(target, args, kwargs)

    def forward(*args: Any, **kwargs: Any) -> Any:
        values = aug._parts.signature.bind(args, kwargs)
        given = [values.get(str(n.target), *n.args) for n in aug.graph.nodes if n.op == "placeholder"]
        return Replaying(aug, garbage_collect_values=False, graph=aug._parts.training_graph).run(*given)

    model.__dict__["forward"] = forward
    try:
        yield
    finally:
        del model.__dict__["forward"]


def record_draws(augmentation: DeepAugment, into: list[tuple[Tensor, Tensor]]) -> None:
    """Keep what a node draws: by instance attributes, which are taken away again."""
    draw_rows, draw_noise = type(augmentation).draw_rows, type(augmentation).draw_noise
    latest: list[Tensor] = []

    def rows(count: int, device: torch.device) -> Tensor:
        latest[:] = [draw_rows(augmentation, count, device)]
        return latest[0]

    def noise(h: Tensor) -> Tensor:
        drawn = draw_noise(augmentation, h)
        into.append((latest[0], drawn))
        return drawn

    augmentation.__dict__["draw_rows"] = rows
    augmentation.__dict__["draw_noise"] = noise


def recorder(below: dict[Target, Tensor], target: Target) -> Callable[[nn.Module, Any], None]:
    """A forward pre-hook that keeps what first enters an augmentation."""

    def record(_: nn.Module, args: tuple[Any, ...]) -> None:
        below.setdefault(target, first_tensor(args[0]))

    return record


def quieten(aug: AugmentedModule, model: nn.Module) -> None:
    """Eval mode for every closed module, so that nothing but the augmentation is random or sees the batch."""
    opened = {model, *(model.get_submodule(path) for path in aug.plan.opened)}
    for module in model.modules():
        module.training = module in opened
