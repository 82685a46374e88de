"""A trial run of model and graph on the example, where shadow runs cannot compare them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.signature import Signature, evaluating, map_tensors, modes_kept
from graphaug.capture.state import seed, unchanged, undrawn
from graphaug.errors import AssumptionViolated, CaptureError
from graphaug.surgery.module import AugmentedModule

ANOTHER_LENGTH = "another sequence length"


def check_equivalence(
    model: nn.Module, aug: nn.Module, signature: Signature, identities: Mapping[str, nn.Module] | None
) -> str:
    """Run model and graph in eval mode on the examples, at another batch size and length; then in training mode.

    Where shadow runs have compared everything but the numbers, two rows of the examples do, in eval mode.

    Args:
        model: the original.
        aug: the captured model, sharing its modules.
        signature: the inputs with their examples.
        identities: the modules of the graph that the model does not have, which return what they are given; None: both
            were compared by shadow runs.

    Returns:
        A note for the plan: which of it could not be checked, or an empty string.

    Raises:
        CaptureError: the outputs differ.
    """
    examples = signature.examples
    if any(t.is_meta for t in [*model.parameters(), *model.buffers(), *_tensors(examples)]):
        data = "no example_inputs" if signature.guessed else "it lies on the meta device"
        return f"not compared with the original on data: {data}"
    # both begin from one state: calls may count, or keep what they saw
    with unchanged(model), evaluating(model):
        situations, expected = _expected(model, signature, few=identities is None)
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
    if identities is not None:
        notes.append(_in_training(model, aug, signature, identities))
    return "; ".join(filter(None, notes))


def _expected(model: nn.Module, signature: Signature, few: bool) -> tuple[list[Any], list[Any]]:
    """The situations that are tried, with what the model gives in each; None where it does not take it.

    Raises:
        CaptureError: it does not take the example.
    """
    if few:
        situations = list(variants(_two_rows(signature.examples)))
        expected = [_run(model, *signature.arrange(inputs), must=False) for _, inputs in situations]
        if expected[0] is not None:
            return situations, expected
    situations = list(variants(signature.examples))
    return situations, [
        _run(model, *signature.arrange(v), must=i == 0) for i, (_, v) in enumerate(situations)
    ]


def _two_rows(examples: Mapping[str, Any]) -> dict[str, Any]:
    """The first and the last row of the examples."""
    rows = {t.shape[0] for t in _tensors(examples) if t.dim() > 0}
    if len(rows) != 1 or next(iter(rows)) <= 2:
        return dict(examples)
    found: dict[str, Any] = map_tensors(lambda t: t[[0, -1]] if t.dim() else t, dict(examples))
    return found


def _in_training(
    model: nn.Module, aug: nn.Module, signature: Signature, identities: Mapping[str, nn.Module]
) -> str:
    """Compare what both compute in training mode from one seed, and what they leave changed."""
    arguments = signature.arrange(signature.examples)
    there = {path: set(vars(m)) for path, m in model.named_modules()}

    def outcome(run: Callable[..., Any]) -> Any:
        with unchanged(model), modes_kept(model, aug):
            model.train()
            aug.train()
            return run(*arguments), _left(model, there)

    try:
        expected, again = (outcome(functools.partial(_call, model)) for _ in range(2))
    except Exception as error:
        return f"not compared in training mode, in which the model itself fails with {type(error).__name__}"
    if not same(expected, again):
        return "not compared in training mode, in which two equal runs of the model differ"
    try:
        with as_identities(identities.values()):
            found = outcome(functools.partial(_run_captured, aug))
    except AssumptionViolated as error:
        return fixed(error)
    if not same(expected, found):
        raise CaptureError(
            f"the captured {signature.model} differs from the original in training mode, in what it computes or in "
            "what it leaves changed: its forward does something that a graph does not keep. Choose a site that opens "
            "fewer modules, and please report the model."
        )
    return ""


def _left(model: nn.Module, there: Mapping[str, set[str]]) -> Any:
    """The modes, plain attributes and buffers of a model, as a forward leaves them.

    A switch that was not there says that something was done once; it is undone with it.
    """
    plain = (bool, int, float, str, type(None))
    modules = {
        path: {
            name: value
            for name, value in vars(m).items()
            if isinstance(value, plain) and (name in there.get(path, ()) or type(value) is not bool)
        }
        for path, m in model.named_modules()
    }
    return modules, {name: b.clone() for name, b in model.named_buffers()}


def fixed(error: AssumptionViolated) -> str:
    """The note for the plan that a graph does not serve where it was tried."""
    return f"fixed to this example: {str(error).partition(', but')[0].removeprefix('this model was ')}"


def as_identities(modules: Iterable[nn.Module]) -> contextlib.AbstractContextManager[None]:
    """Let modules return what they are given, in this block."""
    return with_forwards((m, lambda value, *_: value) for m in modules)


@contextlib.contextmanager
def with_forwards(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Let modules run other functions in the place of their forwards, in this block."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module, forward in forwards:
            before.append((module, vars(module).get("forward")))
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in reversed(before):
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


def _run(model: nn.Module, args: list[Any], kwargs: dict[str, Any], *, must: bool) -> Any:
    try:
        return _call(model, args, kwargs)
    except Exception as error:
        if must:
            raise CaptureError(
                f"{type(model).__name__} itself fails on example_inputs in eval mode: {type(error).__name__}: {error}"
            ) from error
        return None


def _run_captured(aug: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    alone: Any = aug.only_the_graph() if isinstance(aug, AugmentedModule) else contextlib.nullcontext()
    try:
        with alone:
            return _call(aug, args, kwargs)
    except AssumptionViolated:
        raise
    except Exception as error:
        raise CaptureError(
            f"the captured graph fails where the original does not: {type(error).__name__}: {error}"
        ) from error


def _call(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    def run() -> Any:
        copies = map_tensors(lambda t: t.clone(), (args, kwargs))  # a forward may change its inputs
        seed(0)
        return model(*copies[0], **copies[1])

    with undrawn(), torch.no_grad():
        try:
            return run()
        except RuntimeError as error:
            if "requires_grad" not in str(error) and "require gradient" not in str(error):
                raise
            with torch.enable_grad():  # a forward that registers hooks on its activations
                return map_tensors(Tensor.detach, run())


def variants(examples: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The example, and the same at another batch size and another length: (what it is, the inputs)."""
    yield "the example", dict(examples)
    tensors = _tensors(examples)
    rows = {t.shape[0] for t in tensors if t.dim() > 0}
    if len(rows) == 1 and next(iter(rows)) > 0:
        yield (
            "another batch size",
            map_tensors(lambda t: torch.cat([t, t[:1]]) if t.dim() else t, dict(examples)),
        )
    lengths = {t.shape[1] for t in tensors if t.dim() == 2 and not t.is_floating_point()}
    if len(lengths) == 1 and next(iter(lengths)) > 2:
        shorter = next(iter(lengths)) - 1

        def cut(t: Tensor) -> Tensor:
            return t[:, :shorter] if t.dim() >= 2 and t.shape[1] == shorter + 1 else t

        yield ANOTHER_LENGTH, map_tensors(cut, dict(examples))


def _tensors(value: Any) -> list[Tensor]:
    return [v for v in torch.utils._pytree.tree_leaves(value) if isinstance(v, Tensor)]


def same(a: Any, b: Any) -> bool:
    """Equal structures with bit-equal tensors; NaN equals NaN."""
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor)
            and a.shape == b.shape
            and a.dtype == b.dtype
            and bool(
                torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) and torch.equal(a.isnan(), b.isnan())
            )
        )
    if isinstance(a, Mapping):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (not isinstance(a, (bool, int, float, str)) or a == b)
