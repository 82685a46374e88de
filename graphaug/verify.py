"""Prove a rewritten model on a real batch: against closed forms, and against forward hooks on the original."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from graphaug.augment.deep_augment import DeepAugment, noise_shape
from graphaug.augment.rows import Rows
from graphaug.capture.signature import evaluating, map_tensors
from graphaug.capture.target import Target
from graphaug.errors import NotRewritten, VerificationError
from graphaug.proof.equivalence import same
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.plan import Request

_SCALE_TOLERANCE = 1e-2  # of the mean factor: float16 and bfloat16 round 1/(1-rate)

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


@dataclass(frozen=True)
class Verification:
    """What `verify` proved: one line per claim. Falsy never; a failed claim raises."""

    claims: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(f"ok  {claim}" for claim in self.claims)


def verify(aug: nn.Module, x: Any, *, tolerance: float = 1e-5) -> Verification:
    """Prove on a batch that a rewritten model does what its plan says.

    1. In eval mode it equals the original bit for bit.
    2. Fed with ones, every augmentation node drops, scales, stops and passes exactly what its options
       say: checked against their closed form, in value and in gradient.
    3. In training mode, its output and all gradients equal those of the original model with plain
       forward hooks that apply the same masks; no gradient of stopped rows passes the cut.
    4. Frozen parameters receive no gradient.

    Nothing is left behind: buffers, modes, gradients and random states are as before.

    Args:
        aug: a model made by `graphaug.rewrite`, not compiled.
        x: a batch: a tensor, a tuple of positional inputs or a dict of keyword inputs; 2 rows or more.
        tolerance: for 3, relative to the largest entry of the tensor compared.

    Returns:
        The claims that were proved; print it.

    Raises:
        VerificationError: a claim does not hold; says which, where, and by how much.
        NotRewritten: ``aug`` was not made by `graphaug.rewrite`.
    """
    if not isinstance(aug, AugmentedModule):
        raise NotRewritten(f"verify takes what graphaug.rewrite returned, not a {type(aug).__name__}.")
    args, kwargs = ((), dict(x)) if hasattr(x, "keys") else (x if isinstance(x, (tuple, list)) else (x,), {})

    def call(model: nn.Module) -> Any:
        copies = map_tensors(lambda t: t.detach().clone(), (tuple(args), kwargs))
        return model(*copies[0], **copies[1])

    model = aug._parts.model
    claims = []
    with _untouched(aug, model):
        claims.append(_eval_equals(aug, model, call))
        aug.train()
        with aug.dense():
            for target, augmentation in aug.augmentations.items():
                claims.extend(_probe(target, augmentation, aug, call))
        claims.extend(_against_hooks(aug, model, call, tolerance))
    return Verification(tuple(claims))


def _eval_equals(aug: AugmentedModule, model: nn.Module, call: Callable[[nn.Module], Any]) -> str:
    with evaluating(model), evaluating(aug), torch.no_grad():
        torch.manual_seed(0)
        expected = call(model)
        torch.manual_seed(0)
        found = call(aug)
    if not same(expected, found):
        raise VerificationError(
            f"in eval mode the rewritten {type(model).__name__} differs from the original{_by(expected, found)}: "
            "an augmentation leaks into eval, or the graph is not the model."
        )
    return "eval mode: output bit-equal to the original"


def _probe(
    target: Target, augmentation: DeepAugment, aug: AugmentedModule, call: Callable[[nn.Module], Any]
) -> Iterator[str]:
    """Run one node alone on ones: every entry and every gradient then tells what was done to it."""
    value = _value_at(augmentation, aug, call)
    request = next(s.request for s in aug.plan.sites if s.request.target == target)
    rate, subset = augmentation._rate, augmentation._subset
    ones = torch.ones_like(value, dtype=torch.float64 if value.device.type == "cpu" else value.dtype)
    ones.requires_grad_(True)
    out = augmentation(ones)
    (gradient,) = torch.autograd.grad(out.sum() + 0 * ones.sum(), ones)
    rows = ones.shape[augmentation.place.dim] // augmentation.place.slices
    own = [_slices(torch.arange(rows) == row, ones, augmentation.place) for row in range(rows)]
    flat, slope = (
        torch.stack([t.index_select(augmentation.place.dim, index).flatten() for index in own])
        for t in (out.detach(), gradient)
    )

    untouched = (flat == 1).all(1) & (slope == 1).all(1)
    changed = ~untouched
    scale = 0.0 if rate == 1 else 1 / (1 - rate)
    stopped = (slope == 0).all(1)
    planned = augmentation._exactly(rows)
    visible = rate > 0 or request.stop_grad
    if request.sampling == "exact" and visible:
        # a row may by chance keep everything (or drop it all) only where rate and width allow it
        certain = (
            rate in (0.0, 1.0) or flat.shape[1] * min(rate, 1 - rate) > 30 or request.stop_grad or scale != 1
        )
        if certain and int(changed.sum()) != planned:
            raise VerificationError(
                f"'{target}': {int(changed.sum())} of {rows} rows are augmented, planned were {planned} "
                f"(subset {subset:g})."
            )
    if request.pairing == "one-sided" and bool(changed[rows // 2 :].any()):
        raise VerificationError(
            f"'{target}': rows of the second view are augmented despite pairing='one-sided'."
        )
    entries = flat[changed]
    legal = (entries == 0) | ((entries - scale).abs() <= _SCALE_TOLERANCE * max(scale, 1))
    if not bool(legal.all()):
        wrong = float(entries[~legal][0])
        raise VerificationError(
            f"'{target}': an augmented unit of value 1 became {wrong:.4g}; dropout at rate {rate:g} gives 0 or "
            f"{scale:.4g} (inverted scaling)."
        )
    if entries.numel():
        kept = (entries != 0).double().mean().item()
        decisions = _decisions(augmentation, value, int(changed.sum()))
        spread = 6 * max((rate * (1 - rate) / decisions) ** 0.5, 1e-12)
        if abs(kept - (1 - rate)) > spread:
            raise VerificationError(
                f"'{target}': {1 - kept:.1%} of the units are dropped, the rate is {rate:.1%}."
            )
    if request.stop_grad:
        if not bool(stopped[changed].all()):
            raise VerificationError(
                f"'{target}': stop_grad is on, but gradient of augmented rows passes the cut "
                f"({int((~stopped[changed]).sum())} of {int(changed.sum())} rows)."
            )
    elif not torch.equal(slope[changed], entries):
        raise VerificationError(
            f"'{target}': the gradient of the augmented rows is not that of their dropout."
        )
    count = (
        f"{planned} of {rows}"
        if request.sampling == "exact"
        else f"each of {rows} with probability {subset:g}"
    )
    yield f"'{target}': {count} rows augmented, dropout at rate {rate:g} with its scale, other rows untouched"
    if request.stop_grad:
        yield f"'{target}': no gradient of augmented rows below the cut"


def _decisions(augmentation: DeepAugment, value: Tensor, rows: int) -> int:
    place = augmentation.place
    shape = noise_shape(tuple(value.shape), augmentation.granularity, place.dim)
    return max(rows * int(torch.Size(shape).numel()) * place.slices // max(shape[place.dim], 1), 1)


def _value_at(augmentation: DeepAugment, aug: AugmentedModule, call: Callable[[nn.Module], Any]) -> Tensor:
    """The value that enters an augmentation on this batch."""
    seen: list[Tensor] = []
    handle = augmentation.register_forward_pre_hook(lambda _, args: seen.append(_first(args[0])))
    try:
        with torch.no_grad():
            call(aug)
    finally:
        handle.remove()
    if not seen:
        raise VerificationError("an augmentation of the plan is never called: the graph was edited.")
    return seen[0].detach()


def _first(value: Any) -> Tensor:
    leaves = [v for v in torch.utils._pytree.tree_leaves(_plain(value)) if isinstance(v, Tensor)]
    return leaves[0]


def _against_hooks(
    aug: AugmentedModule, model: nn.Module, call: Callable[[nn.Module], Any], tolerance: float
) -> Iterator[str]:
    """Compare values and gradients of one training step with hooks on the original, under the same masks."""
    draws: dict[Target, list[tuple[Tensor, Tensor]]] = {t: [] for t in aug.augmentations}
    below: dict[Target, Tensor] = {}
    handles = []
    for target, augmentation in aug.augmentations.items():
        handles.append(augmentation.register_forward_pre_hook(_recorder(below, target)))
        _record_draws(augmentation, draws[target])
    buffers = [(b, b.clone()) for b in model.buffers()]
    how = "training mode"
    if aug.plan.backward == "sparse":
        how += " (sparse; dropout and batch statistics of the model itself off)"
        _quieten(aug, model)  # two runs of the prefix draw other dropout than one
    quiet = _NoDropout() if aug.plan.backward == "sparse" else contextlib.nullcontext()
    try:
        torch.manual_seed(1)
        with quiet:
            found = call(aug)
    finally:
        for handle in handles:
            handle.remove()
        for augmentation in aug.augmentations.values():
            augmentation.__dict__.pop("draw_rows", None)
            augmentation.__dict__.pop("draw_noise", None)
    loss, weights = _loss(found)
    parameters = dict(model.named_parameters())
    trained = {n: p for n, p in parameters.items() if p.requires_grad}
    inputs = [*trained.values(), *(t for t in below.values() if t.requires_grad)]
    grads = (
        torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else [None] * len(inputs)
    )
    mine = dict(zip(trained, grads, strict=False))
    reaching = dict(zip([t for t, v in below.items() if v.requires_grad], grads[len(trained) :], strict=True))

    for b, saved in buffers:
        b.copy_(saved)
    torch.manual_seed(1)
    with hooked(aug, model, draws), quiet:
        expected = call(model)
    other, _ = _loss(expected, weights)
    theirs: dict[str, Tensor | None] = dict.fromkeys(trained)
    if other.requires_grad:
        theirs = dict(
            zip(trained, torch.autograd.grad(other, list(trained.values()), allow_unused=True), strict=True)
        )

    worst = _distance(expected, found)
    if worst > tolerance:
        raise VerificationError(
            f"in training mode the output differs by {worst:.2g} (relative) from that of forward hooks "
            "with the same masks."
        )
    largest = max((float(g.abs().max()) for g in theirs.values() if g is not None and g.numel()), default=0.0)
    for name in trained:
        gap = _distance(theirs[name], mine[name], largest)
        if gap > tolerance:
            raise VerificationError(
                f"the gradient of {name!r} differs by {gap:.2g} (relative) from that of forward hooks "
                "with the same masks."
            )
    yield f"{how}: output and {len(trained)} gradients equal those of forward hooks with the same masks"

    for target, gradient in reaching.items():
        request = next(s.request for s in aug.plan.sites if s.request.target == target)
        place = aug.augmentations[target].place
        rows = draws[target][0][0]
        if request.stop_grad and gradient is not None and aug.plan.sites[0].note.startswith("separates"):
            stopped = gradient.index_select(place.dim, _slices(rows, gradient, place))
            leaked = stopped.abs().max().item() if bool(rows.any()) else 0.0
            if leaked:
                raise VerificationError(
                    f"'{target}': stopped rows pass a gradient of up to {leaked:.2g} below the cut."
                )
    if aug.plan.freeze is not None:
        still = [n for n in aug.plan.freeze.parameters if parameters[n].requires_grad]
        if still:
            raise VerificationError(f"frozen parameters are trainable: {', '.join(still[:5])}.")
        yield f"{len(aug.plan.freeze.parameters)} frozen parameters receive no gradient"


class _NoDropout(TorchFunctionMode):
    """Functional dropout does nothing in this block."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is torch.nn.functional.scaled_dot_product_attention:
            return func(*args[:4], **{**kwargs, "dropout_p": 0.0})
        return func(*args, **kwargs)


def _quieten(aug: AugmentedModule, model: nn.Module) -> None:
    """Eval mode for every closed module, so that nothing but the augmentation is random or sees the batch."""
    opened = {model, *(model.get_submodule(path) for path in aug.plan.opened)}
    for module in model.modules():
        module.training = module in opened


def _recorder(below: dict[Target, Tensor], target: Target) -> Callable[[nn.Module, Any], None]:
    def record(_: nn.Module, args: tuple[Any, ...]) -> None:
        below.setdefault(target, _first(args[0]))

    return record


def _record_draws(augmentation: DeepAugment, into: list[tuple[Tensor, Tensor]]) -> None:
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


def _slices(rows: Tensor, value: Tensor, place: Rows) -> Tensor:
    """The indices of the chosen rows' slices: by the definition, index ``(o * B + b) * inner + i`` is row ``b``'s."""
    index = torch.arange(value.shape[place.dim], device=value.device)
    return index[rows.to(value.device)[index // place.inner % len(rows)]]


def _oracle(value: Any, rows: Tensor, noise: Tensor, stop: bool, place: Rows) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)([_oracle(value[0], rows, noise, stop, place), *value[1:]])
    if not isinstance(value, Tensor):
        first = next(iter(value))
        return type(value)(**{**value, first: _oracle(value[first], rows, noise, stop, place)})
    index = _slices(rows, value, place)
    if noise.shape[place.dim] == value.shape[place.dim]:
        noise = noise.index_select(place.dim, index)  # a sparse step draws noise for the augmented rows alone
    dropped = value.index_select(place.dim, index) * noise
    return value.index_copy(place.dim, index, (dropped.detach() if stop else dropped).to(value.dtype))


def _redraw(augmentation: DeepAugment, value: Any) -> None:
    """Use up the random numbers that the augmentation used, so that the model's own dropout draws the same."""
    h = _first(value)
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


def _loss(output: Any, weights: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
    """A fixed random projection of every floating-point output to one number."""
    leaves = [
        v
        for v in torch.utils._pytree.tree_leaves(_plain(output))
        if isinstance(v, Tensor) and v.is_floating_point()
    ]
    if not leaves:
        raise VerificationError("the model returns no floating-point tensor to differentiate.")
    if weights is None:
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(v.shape, generator=generator).to(v) for v in leaves]
    return torch.stack([(v * w).float().sum() for v, w in zip(leaves, weights, strict=True)]).sum(), weights


def _plain(value: Any) -> Any:
    """Outputs as plain containers, which every pytree knows."""
    if hasattr(value, "items"):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


def _distance(a: Any, b: Any, terms: float = 0.0) -> float:
    """Largest difference between two structures of tensors, relative to the largest entry; inf: other form.

    Of terms of the size ``terms`` that cancel each other, as in the gradient of an attention's key bias, the rounding
    is left: so much is no difference.
    """
    first = [v for v in torch.utils._pytree.tree_leaves(_plain(a)) if isinstance(v, Tensor)]
    second = [v for v in torch.utils._pytree.tree_leaves(_plain(b)) if isinstance(v, Tensor)]
    if len(first) != len(second):
        # no gradient and a gradient of zeros are the same thing
        return 0.0 if not any(bool(t.any()) for t in [*first, *second]) else float("inf")
    worst = 0.0
    for s, t in zip(first, second, strict=True):
        if s.shape != t.shape:
            return float("inf")
        if not s.is_floating_point() or s.numel() == 0:
            continue
        s, t = s.detach(), t.detach()
        size = max(float(s.abs().max()), float(t.abs().max()), 1e-6)
        rounding = 8 * torch.finfo(s.dtype).eps * terms
        worst = max(worst, (float((s - t).abs().max()) - rounding) / size)
    return worst


def _by(a: Any, b: Any) -> str:
    gap = _distance(a, b)
    return f" (by {gap:.2g})" if gap != float("inf") else " in its structure"


@contextlib.contextmanager
def _untouched(aug: AugmentedModule, model: nn.Module) -> Iterator[None]:
    """Buffers, modes and random states come back, whatever happens."""
    flags = [(m, m.training) for m in [model, *aug.modules()]]
    buffers = [(b, b.detach().clone()) for b in aug.buffers()]
    devices = sorted({p.device.index or 0 for p in aug.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for b, saved in buffers:
                with torch.no_grad():
                    b.copy_(saved)
            for module, flag in flags:
                module.training = flag
