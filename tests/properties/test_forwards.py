"""Any forward, composed of idioms: the rewritten model is the model, or it was refused by an error of ours."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import faults
import forwards
import more_forwards
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import graphaug as ga

NAMES = sorted(forwards.IDIOMS)


def built(names: tuple[str, ...]) -> nn.Module:
    """A model of these blocks; the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(*(forwards.IDIOMS[name]() for name in names))


def fresh_surroundings() -> None:
    """Globals, defaults and classes as they are at the start."""
    forwards.GLOBAL.update(scale=0.5, calls=0)
    more_forwards.fresh()
    forwards.ramp.cache_clear()
    forwards.IDIOMS["mutable_default"].forward.__defaults__[0].clear()  # type: ignore[attr-defined]
    for cls in forwards.IDIOMS.values():
        if "factor" in vars(cls):
            del cls.factor


def trained(run: nn.Module, model: nn.Module) -> list[Any]:
    """Three steps at two batch sizes in training mode, and the same in eval mode: all that can be seen of them."""
    seen: list[Any] = []
    torch.manual_seed(1)
    random.seed(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for mode in (True, False):
        run.train(mode)
        for step in range(3):
            for rows in (4, 6):
                x = torch.randn(
                    rows, forwards.WIDTH, generator=torch.Generator().manual_seed(10 * step + rows)
                )
                optimizer.zero_grad()
                output = run(x)
                if output.requires_grad:
                    output.square().mean().backward()
                    optimizer.step()
                for block in model.children():
                    block.between_steps()
                seen.append(output.detach().clone())
                seen.extend(None if p.grad is None else p.grad.clone() for p in model.parameters())
                seen.extend(t.clone() for t in model.state_dict().values())
                seen.append((torch.get_rng_state(), random.getstate(), torch.is_grad_enabled()))
                seen.append(dict(forwards.GLOBAL))
                seen.append([plain(vars(m)) for m in model.modules()])
    return seen


def plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes that are plain values, and of generators their state."""
    found = {
        k: v for k, v in attributes.items() if isinstance(v, (bool, int, float, str)) and k != "training"
    }
    return found | {k: v.getstate() for k, v in attributes.items() if isinstance(v, random.Random)}


def equal(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-6) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(
            a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True
        )
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y, rtol, atol) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k], rtol, atol) for k in a)
    return bool(a == b or (a != a and b != b))


def check(names: tuple[str, ...], site: int) -> str:
    """The refusal, or an empty string for a rewritten model that is the model.

    Models compute in float32, as people's do. A graph may add gradients in another order than the model (a weight
    that the model keeps and the graph computes twice), which training enlarges beyond what float32 tells apart. So a
    small difference is looked at again in float64, where it has to be gone to eleven digits.

    Raises:
        AssertionError: it is another model, and nothing was said.
    """
    said, expected, found = compared(names, site)
    if equal(expected, found):
        return said
    other = f"{names} at {site}: another model, and nothing was said (refused: {said or 'no'})"
    assert equal(expected, found, rtol=1e-3, atol=1e-3), other
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        again, expected, found = compared(names, site)
    finally:
        torch.set_default_dtype(default)
    assert (again, bool(expected)) == (said, True), other
    assert equal(expected, found, rtol=1e-11, atol=1e-11), other
    return said


def compared(names: tuple[str, ...], site: int) -> tuple[str, list[Any], list[Any]]:
    """What was said, all that can be seen of the model, and the same of the rewritten one, or of the one refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh_surroundings()
        plain_model = built(names)
        try:
            expected = trained(plain_model, plain_model)
        except Exception:
            return "the model itself fails", [], []
        fresh_surroundings()
        model = built(names)
        state = copy.deepcopy(model.state_dict())
        refused = ""
        try:
            aug = ga.rewrite(
                model, f"{site}.inner", example_inputs=torch.randn(4, 6), allow_bypass=True, expect=None
            )
        except ga.GraphaugError as error:
            refused = type(error).__name__
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()), (
            "rewriting moved a weight"
        )
        if refused:
            fresh_surroundings()  # a model that was refused is as it was
            return refused, expected, trained(model, model)
        for augmentation in aug.augmentations.values():
            augmentation.__dict__["forward"] = lambda h: h
        try:
            return "", expected, trained(aug, model)
        except ga.GraphaugError as error:  # a call outside of what was captured
            return f"call: {type(error).__name__}", [], []


@pytest.mark.few(24)
@pytest.mark.parametrize("name", NAMES)
def test_every_idiom_is_kept_or_refused(name: str) -> None:
    check((name,), 0)


@pytest.mark.few(4)
@pytest.mark.parametrize("fault", faults.FAULTS)
def test_a_fault_that_is_put_back_is_found(fault: str) -> None:
    """A fuzzer that has never failed has shown nothing."""
    with faults.planted(fault), pytest.raises(AssertionError, match="another model, and nothing was said"):
        check((faults.FAULTS[fault].shown_by,), 0)


FOUND = [
    # what a closed module kept of a call on fakes ended the comparison
    (("keeps_a_tensor", "mode_of_a_child"), 1),
    # a closed module that needs data: the trial run in the place of shadow runs does not look at globals
    (("finally_counted", "data_branch"), 0),
    # a norm that is no number equals itself
    (("number_kept_by_the_backward", "own_context"), 0),
    # namespaces were looked up by the module that a class names, and its forward had been written in another
    (("weak_table", "always_dropped"), 1),
    # no fault: gradients of a cached weight are added in another order, and float32 told the two apart
    (("parametrization_cached", "buffer_moved_by_the_loop"), 0),
]
"""Every composition that was ever another model, or was taken for one."""


@pytest.mark.parametrize(("names", "site"), FOUND)
def test_what_was_found_stays_mended(names: tuple[str, ...], site: int) -> None:
    check(names, site)


models = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).flatmap(
    lambda names: st.tuples(st.just(tuple(names)), st.integers(0, len(names) - 1))
)


@settings(
    max_examples=100, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None, database=None
)
@given(models)
def test_composed_forwards(drawn: tuple[tuple[str, ...], int]) -> None:
    check(*drawn)


@pytest.mark.parametrize("part", range(10))  # of 2,000 examples; several processes can share them
@pytest.mark.long
def test_composed_forwards_at_length(part: int) -> None:
    @seed(part)
    @settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None, database=None)
    @given(models)
    def composed(drawn: tuple[tuple[str, ...], int]) -> None:
        check(*drawn)

    composed()
