"""What holds of every transform: shapes and types, copies, numbers, independent rows, compilation, generators."""

from __future__ import annotations

import copy
import doctest
import importlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graphaug.augment.transform import PLAIN, Context, Domain, Needs, Transform
from graphaug.augment.transforms.call import Call, as_transform
from graphaug.augment.transforms.drop import Dropout
from graphaug.augment.transforms.mix import Mix
from graphaug.augment.transforms.noise import Noise
from graphaug.augment.transforms.pca import PCA
from graphaug.augment.transforms.policy import Policy
from graphaug.augment.transforms.statistics import Statistics
from graphaug.augment.transforms.steer import Add, Replace
from graphaug.augment.transforms.tokens import Tokens
from graphaug.errors import BatchError, InvalidOption

MAPS, TOKENS, VECTORS = (6, 8, 5, 4), (6, 7, 8), (6, 8)


@dataclass(frozen=True)
class Case:
    make: Callable[[], Transform]
    shape: tuple[int, ...] = VECTORS
    number: tuple[str, float] | None = None

    def rows(self, dtype: torch.dtype = torch.float64) -> Tensor:
        rows = torch.randn(self.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return rows.to(dtype).requires_grad_()

    def context(self, **more: Any) -> Context:
        labels = torch.tensor([0, 1, 0, 1, 0, 2])
        return Context(labels=labels, source=self.rows().detach() + 1, **more)


CASES = {
    "dropout-element": Case(lambda: Dropout(0.4), MAPS, ("rate", 0.2)),
    "dropout-channel": Case(lambda: Dropout(0.4, "channel"), MAPS, ("rate", 0.2)),
    "dropout-position": Case(lambda: Dropout(0.4, "position"), TOKENS, ("rate", 0.2)),
    "dropout-block": Case(lambda: Dropout(0.3, "block", block_size=3), MAPS, ("rate", 0.2)),
    "dropout-block-tokens": Case(
        lambda: Dropout(0.3, "block", block_size=2, shared=True), TOKENS, ("rate", 0.9)
    ),
    "dropout-head": Case(lambda: Dropout(0.4, "head", heads=4), TOKENS, ("rate", 0.2)),
    "noise-absolute": Case(lambda: Noise(0.3), MAPS, ("sigma", 0.7)),
    "noise-uniform-site": Case(lambda: Noise(0.3, "uniform", "site"), MAPS, ("sigma", 0.7)),
    "noise-feature": Case(lambda: Noise(0.3, relative="feature"), VECTORS, ("sigma", 0.7)),
    "noise-class": Case(lambda: Noise(0.3, relative="class"), VECTORS, ("sigma", 0.7)),
    "noise-neftune": Case(lambda: Noise(5, "uniform", "neftune"), TOKENS, ("sigma", 0.7)),
    "mix": Case(lambda: Mix(), MAPS, ("alpha", 0.5)),
    "mix-batch": Case(lambda: Mix(per="batch", within_class=True), VECTORS, ("alpha", 0.5)),
    "mix-nearest": Case(lambda: Mix("interpolate", partner="nearest", neighbours=2), VECTORS, ("lam", 0.1)),
    "mix-extrapolate": Case(lambda: Mix("extrapolate", detach=True), TOKENS, ("lam", 0.1)),
    "mix-mean": Case(lambda: Mix("extrapolate", partner="mean", within_class=True), VECTORS, ("lam", 0.1)),
    "mix-difference": Case(lambda: Mix("difference"), VECTORS, ("lam", 0.1)),
    "mixstyle": Case(lambda: Statistics("mixstyle"), MAPS, ("alpha", 0.5)),
    "dsu": Case(lambda: Statistics("dsu"), TOKENS, ("scale", 0.5)),
    "pca-row": Case(lambda: PCA(2), MAPS, ("k", 1)),
    "pca-token": Case(lambda: PCA(2, over="token", remove="last"), TOKENS, ("k", 1)),
    "pca-gradient": Case(lambda: PCA(2, gradient=True), VECTORS, ("k", 1)),
    "policy": Case(lambda: Policy([Noise(0.3), Mix(), PCA(1)], p=[1, 2, 1]), VECTORS, ("p_0", 50.0)),
    "policy-apart": Case(lambda: Policy([Noise(0.3), Dropout(0.4)], per="batch"), MAPS, ("p_0", 9.0)),
    "tokens": Case(lambda: Tokens(0.5), TOKENS),
    "add": Case(lambda: Add(torch.arange(8.0), positions=[0, -1]), TOKENS, ("scale", 3.0)),
    "add-source": Case(lambda: Add(), MAPS, ("scale", 3.0)),
    "replace": Case(lambda: Replace(positions=[2]), TOKENS),
    "call": Case(lambda: Call(nn.Tanh()), VECTORS),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# what is compiled whole for a few kinds in every run, and for the others in `make long-test`
AT_ONCE = ("dropout-element", "noise-absolute", "mix", "mixstyle", "pca-row", "tokens")
some_compiled = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[] if name in AT_ONCE else pytest.mark.long)
        for name, case in CASES.items()
    ],
)


def drawn(case: Case, transform: Transform, rows: Tensor, seed: int = 0, **context: Any) -> Any:
    torch.manual_seed(seed)
    return transform.draw(rows, case.context(**context))


def tensors(draws: Any) -> list[Tensor]:
    if isinstance(draws, Tensor):
        return [draws]
    return [t for entry in draws or () for t in tensors(entry)]


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_shape_and_type_are_kept_and_a_gradient_comes_back(case: Case, dtype: torch.dtype) -> None:
    transform, rows = case.make(), case.rows(dtype)
    out = transform(rows, drawn(case, transform, rows))
    assert out.dtype == dtype
    assert out.shape == rows.shape or transform.needs.new_tokens
    assert out.isfinite().all()
    assert not torch.equal(out, rows)
    out.float().square().sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


@every
def test_lower_precision_rounds_the_result_and_nothing_else(case: Case) -> None:
    """Given the same draws the result in bfloat16 is that of float32 on the rounded rows, to two digits."""
    transform, short = case.make(), case.rows(torch.bfloat16).detach()
    expected = transform(short.float(), drawn(case, transform, short.float()))
    out = transform(short, drawn(case, transform, short))
    assert (out.float() - expected).abs().max() < 0.01 * (1 + expected.abs().max())


@every
def test_autocast_changes_nothing(case: Case) -> None:
    """No matrix product of a transform's own is done in bfloat16."""
    transform, rows = case.make(), case.rows(torch.float32)
    expected = transform(rows, drawn(case, transform, rows))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transform(rows, drawn(case, transform, rows)), expected)


@every
def test_no_rows_are_no_trouble(case: Case) -> None:
    """A small share of a small batch is no row at all."""
    transform, rows = case.make(), torch.zeros(0, *case.shape[1:])
    context = Context(labels=torch.zeros(0, dtype=torch.long), source=torch.zeros(1, *case.shape[1:]))
    out = transform(rows, transform.draw(rows, context))
    assert out.shape[0] == 0
    assert out.shape == rows.shape or transform.needs.new_tokens


@every
def test_rows_are_as_independent_as_declared(case: Case) -> None:
    """With the draws fixed, by the derivative of each row's result by the other rows, and by changing the others."""
    transform, rows = case.make(), case.rows()
    draws = drawn(case, transform, rows)
    out = transform(rows, draws)
    (gradient,) = torch.autograd.grad(out[0].square().sum(), rows, retain_graph=True)
    reached = gradient.flatten(1).abs().amax(1) > 1e-12
    if not transform.needs.gradient:
        assert not reached[1:].any()
    elif not isinstance(transform, Call):
        seen = torch.zeros(len(rows), dtype=torch.bool)
        for i in range(len(rows)):
            (gradient,) = torch.autograd.grad(out[i].square().sum(), rows, retain_graph=True)
            others = gradient.flatten(1).abs().amax(1) > 1e-12
            others[i] = False
            seen |= others
        assert seen.any()  # the declaration is not there for nothing
    if not transform.needs.rows_meet:
        changed = rows.detach().clone()
        changed[1:] = torch.randn_like(changed[1:]) * 7
        assert torch.equal(transform(changed, draws)[0], out[0])


@every
def test_copies_draw_the_same_and_go_their_own_way(case: Case) -> None:
    transform, rows = case.make(), case.rows()
    expected = transform(rows, drawn(case, transform, rows))
    assert not transform.state_dict()
    assert not list(transform.parameters())
    for twin in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert repr(twin) == repr(transform)
        assert torch.equal(twin(rows, drawn(case, twin, rows)), expected)
        if case.number:
            twin.set(**dict([case.number]))
            assert torch.equal(transform(rows, drawn(case, transform, rows)), expected)


@every
def test_numbers_keep_their_precision_when_the_module_is_converted(case: Case) -> None:
    transform = case.make()
    before = {name: float(buffer) for name, buffer in transform.named_buffers() if name != "vector"}
    transform.to(torch.bfloat16).half()
    assert {name: float(buffer) for name, buffer in transform.named_buffers() if name != "vector"} == before


@every
def test_one_generator_draws_the_same_twice_and_leaves_torchs_alone(case: Case) -> None:
    transform, rows = case.make(), case.rows()
    state = torch.get_rng_state()
    twice = [transform.draw(rows, case.context(generator=torch.Generator().manual_seed(3))) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(tensors(twice[0]), tensors(twice[1]), strict=True):
        assert torch.equal(one, other)


@some_compiled
def test_compiled_whole_it_is_the_same_and_a_new_number_recompiles_nothing(case: Case) -> None:
    """``fullgraph=True``: draws, result and gradient."""
    torch.compiler.reset()
    transform, context = case.make(), case.context()

    def step(rows: Tensor) -> tuple[Tensor, Any]:
        draws = transform.draw(rows, context)
        return transform(rows, draws), draws

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")

    def run(fn: Any) -> tuple[Tensor, ...]:
        torch.manual_seed(4)
        rows = case.rows()
        out, draws = fn(rows)
        out.square().sum().backward()
        assert rows.grad is not None
        return (out.detach(), rows.grad, *(t.detach() for t in tensors(draws)))

    def check() -> None:
        for one, other in zip(run(compiled), run(step), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)

    check()
    if case.number:
        before = run(step)[0]
        transform.set(**dict([case.number]))
        assert not torch.equal(run(step)[0], before)
    torch.compiler.set_stance("fail_on_recompile")
    check()


@pytest.fixture(autouse=True)
def plain_stance() -> Any:
    yield
    torch.compiler.set_stance("default")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mix(),
        lambda: Mix("difference"),
        lambda: Mix(partner="nearest"),
        lambda: Mix("extrapolate", partner="mean"),
        lambda: Statistics("mixstyle"),
        lambda: Statistics("dsu"),
        lambda: PCA(3),
        lambda: PCA(3, gradient=True),
        lambda: Noise(relative="feature"),
    ],
)
def test_one_row_alone_stays_as_it_is(make: Callable[[], Transform]) -> None:
    transform, rows = make(), torch.randn(1, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(transform(rows, transform.draw(rows)), rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "rows", [torch.ones(3), torch.ones(3, 4, dtype=torch.long)], ids=["rank 1", "integers"]
)
@pytest.mark.parametrize(
    "case", [c for c in CASES.values() if c is not CASES["call"]], ids=[k for k in CASES if k != "call"]
)
def test_what_are_no_rows_is_refused(case: Case, rows: Tensor) -> None:
    with pytest.raises(BatchError, match="choose another site"):
        case.make().draw(rows, case.context())


# --- numbers ------------------------------------------------------------------------------------


class Shift(Transform):
    """A transform as a user writes one."""

    def __init__(self, width: float = 1.0, other: float = 0.0) -> None:
        super().__init__()
        self.add_number("width", width, Domain(low=0, high=2))
        self.add_number("other", other, Domain(low=-1, above=True))

    def forward(self, rows: Tensor, draws: Any) -> Tensor:
        return rows + self.width.to(rows.dtype)


def test_numbers_are_set_in_place_all_or_none() -> None:
    shift = Shift()
    buffer = shift.width
    shift.set(width=2, other=0.5)
    assert shift.width is buffer
    assert shift(torch.zeros(1, 1), shift.draw(torch.zeros(1, 1))).item() == 2
    with pytest.raises(InvalidOption, match=r"other=-1 is outside \(-1, inf\)"):
        shift.set(width=1, other=-1)
    assert float(shift.width) == 2
    assert repr(shift) == "Shift(width=2, other=0.5)"


def test_an_unknown_number_is_named_with_the_nearest() -> None:
    with pytest.raises(InvalidOption, match=r"has no number 'widht'\. Did you mean 'width'"):
        Shift().set(widht=1)
    with pytest.raises(InvalidOption, match=r"Tokens has no number 'keep'\. It has none"):
        Tokens().set(keep=0.1)


@pytest.mark.parametrize("value", [-0.1, 2.1, float("nan"), float("inf"), True, None, "1", 1j])
def test_numbers_outside_their_domain_are_refused(value: Any) -> None:
    with pytest.raises(InvalidOption, match="width="):
        Shift(value)


@settings(max_examples=50)
@given(low=st.floats(-5, 5), size=st.floats(0, 5), above=st.booleans(), value=st.floats())
def test_a_domain_is_an_interval(low: float, size: float, above: bool, value: float) -> None:
    domain = Domain(low, low + size, above)
    inside = low <= value <= low + size and not (above and value == low)
    if inside:
        assert domain.check("x", value) == value
    else:
        with pytest.raises(InvalidOption):
            domain.check("x", value)


class TooEarly(Transform):
    def __init__(self) -> None:
        self.add_number("width", 1.0, Domain())
        super().__init__()


def test_numbers_need_a_module_and_a_name_of_their_own() -> None:
    with pytest.raises(
        InvalidOption, match=r"TooEarly .* call super\(\)\.__init__\(\*\*site\) before add_number"
    ):
        TooEarly()
    for name in ("subset", "forward", "needs", "training", "two words", ""):
        with pytest.raises(InvalidOption, match=f"cannot have a number {name!r}"):
            Shift().add_number(name, 1.0, Domain())
    shift = Shift()
    shift.add_number("width", 0.5, Domain(high=1))
    assert shift.numbers() == {"width": 0.5, "other": 0.0}


class NotBegun(Transform):
    def __init__(self) -> None:
        pass

    def forward(self, rows: Tensor, draws: Any) -> Tensor:
        return rows


class Rows(Transform):
    def forward(self, rows: Tensor) -> Tensor:  # type: ignore[override]
        return rows


class DrawsRows(Shift):
    def draw(self, rows: Tensor) -> None:  # type: ignore[override]
        return None


class Asks(Shift):
    needs = "partners"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NotBegun, r"NotBegun is no module yet: let its __init__ call super\(\)"),
        (Rows, r"Rows\.forward\(rows: .* is called with \(rows, draws\)"),
        (DrawsRows, r"DrawsRows\.draw\(rows: .* is called with \(rows, context\)"),
        (Asks, r"Asks\.needs='partners': give Needs"),
        (Transform, r"Transform has no forward\(rows, draws\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_whole_transform_is_refused_before_a_batch_comes(make: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        as_transform(make())
    with pytest.raises(InvalidOption, match=message):
        Policy([Noise(), make()])


def test_any_plain_number_is_a_number() -> None:
    assert Noise(np.float32(0.5)).numbers() == {"sigma": 0.5}
    assert Dropout(np.float32(0.25)).numbers() == {"rate": 0.25}
    assert PCA(np.int64(2)).numbers() == {"k": 2.0}
    noise = Noise(0.5)
    for sigma in np.linspace(0, 1, 3, dtype=np.float32):
        noise.set(sigma=sigma)
        assert type(noise.numbers()["sigma"]) is float
    for value in (np.float32("nan"), np.bool_(True), torch.tensor(0.1), np.array([0.1])):
        with pytest.raises(InvalidOption, match="sigma="):
            Noise(value)


def test_a_transform_without_a_forward_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Transform has no forward\(rows, draws\)"):
        Transform()(torch.zeros(2, 2), None)


def test_of_a_callable_nothing_is_taken_for_granted() -> None:
    assert Call(torch.tanh).needs == Needs(partners=True, statistics=True, gradient=True)
    assert Needs().rows_meet is False
    with pytest.raises(InvalidOption, match="is no transform"):
        Call(3)  # type: ignore[arg-type]
    for wrong in (lambda rows: rows[:1], lambda rows: rows.float(), lambda rows: (rows,)):
        with pytest.raises(BatchError, match="keep shape and type"):
            Call(wrong)(torch.zeros(2, 2, dtype=torch.float64), None)
    linear = nn.Linear(2, 2)
    assert {id(p) for p in Call(linear).parameters()} == {id(p) for p in linear.parameters()}


@pytest.mark.parametrize(
    "name",
    [
        "transform",
        "drawn",
        *(
            f"transforms.{name}"
            for name in ("call", "drop", "noise", "mix", "statistics", "pca", "policy", "tokens", "steer")
        ),
    ],
)
def test_examples_of_the_docstrings_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"graphaug.augment.{name}"))
    assert results.attempted > 1
    assert results.failed == 0


def test_the_plain_context_knows_nothing() -> None:
    assert all(entry is None for entry in PLAIN)
