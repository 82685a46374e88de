"""Capture with example values: what opened code asks of its inputs is answered, recorded, and checked."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ModelOutput, features, fingerprint
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, CaptureError

pytestmark = pytest.mark.few(2)

HERE = Path(__file__).name


def sequence(rows: int = 3, length: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(rows, length, 4, generator=torch.Generator().manual_seed(seed))


class Opened(nn.Module):
    """A layer, code that is traced through, a layer."""

    def __init__(self, body: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.first, self.last = body, nn.Linear(4, 4), nn.Linear(4, 2)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.body(self, self.first(x)))


class Flagged(Opened):
    """With an input that the graph holds for."""

    def __init__(self) -> None:
        super().__init__(lambda model, h: h.relu())

    def forward(self, x: Tensor, flag: bool = False) -> Any:
        return super().forward(x) * (2 if flag else 1)


def outputs(module: nn.Module, x: Tensor) -> ModelOutput:
    return ModelOutput(value=x, rows=x.shape[0])


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        return x * 2, x + 1, None


class Output(nn.Module):
    def forward(self, x: Tensor) -> ModelOutput:
        return ModelOutput(hidden=x * 2, other=x + 1)


def same_everywhere(
    model: nn.Module, aug: nn.Module, sizes: Any = ((1, 6), (2, 6), (5, 6), (4, 3), (2, 9))
) -> None:
    """Bit-equal in eval mode at other batch sizes and lengths."""
    model.eval()
    for i, (rows, length) in enumerate(sizes):
        x = sequence(rows, length, seed=i)
        assert torch.equal(aug(x), model(x)), (rows, length)


def on_size(m: nn.Module, h: Tensor) -> Tensor:
    return h * 2 if h.shape[-1] == 4 and h.size(2) < 5 else h


def on_rank(m: nn.Module, h: Tensor) -> Tensor:
    return h.sin() if h.dim() == 3 and h.ndim != 2 else h


def on_dtype(m: nn.Module, h: Tensor) -> Tensor:
    return h.cos() if h.dtype == torch.float32 and h.is_floating_point() else h


def on_type(m: nn.Module, h: Tensor) -> Tensor:
    return h.tanh() if isinstance(h, Tensor) and isinstance(h.shape[0], int) else h


def unpacked_shape(m: nn.Module, h: Tensor) -> Tensor:
    rows, length, width = h.shape
    return h.reshape(rows * length, width).reshape(rows, length, width)


def starred_shape(m: nn.Module, h: Tensor) -> Tensor:
    *lead, width = h.shape
    return h.reshape(-1, width).reshape(*lead, width)


def arithmetic(m: nn.Module, h: Tensor) -> Tensor:
    rows, length = h.shape[0], h.shape[1]
    position = torch.arange(length, dtype=h.dtype).view(1, length, 1)
    return h * (rows + 1) / (length * 2) + position + torch.full((rows, 1, 1), 0.5)


def length_of_shape(m: nn.Module, h: Tensor) -> Tensor:
    return h + len(h.shape) + len(h[0][0])


def iteration(m: nn.Module, h: Tensor) -> Tensor:
    return h + sum(part.mean() for part in h.unbind(2))


def member(m: nn.Module, h: Tensor) -> Tensor:
    out = Output()(h)
    return out["hidden"] if "hidden" in out and "loss" not in out else h


def none(m: nn.Module, h: Tensor) -> Tensor:
    first, second, extra = Pair()(h)
    return first if extra is not None else second


def keys(m: nn.Module, h: Tensor) -> Tensor:
    out = Output()(h)
    return sum(out[k] for k in out.keys()) + sum(v for _, v in out.items())  # noqa: SIM118


def has(m: nn.Module, h: Tensor) -> Tensor:
    return h.abs() if hasattr(h, "abs") and not hasattr(h, "logits") else h


def setitem(m: nn.Module, h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, 1:] = h[:, :-1]
    out[:, 0] += 1
    return out


def aliased(m: nn.Module, h: Tensor) -> Tensor:
    other = h
    h += 1
    h *= 2
    return h + other


def attribute(m: nn.Module, h: Tensor) -> Tensor:
    out = Output()(h)
    out.tag = h * 3
    return out.tag + out.hidden


def no_grad(m: nn.Module, h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = h.abs().amax(-1, keepdim=True)
    return h / (scale + 1)


def branch_of_none(m: nn.Module, h: Tensor, mask: Tensor | None = None) -> Tensor:
    return h if mask is None else h * mask


BODIES = [
    on_size, on_rank, on_dtype, on_type, unpacked_shape, starred_shape, arithmetic, length_of_shape, iteration,
    member, none, keys, has, setitem, aliased, attribute, no_grad, branch_of_none,
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
@pytest.mark.long
def test_questions_about_the_inputs_are_answered(body: Any) -> None:
    torch.manual_seed(0)
    model = Opened(body)
    aug = ga.rewrite(model, "first", example_inputs=sequence(), allow_bypass=True)
    same_everywhere(model, aug.eval())


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_gradients_are_those_of_the_original(body: Any) -> None:
    torch.manual_seed(0)
    model = Opened(body).eval()
    aug = ga.rewrite(model, "first", example_inputs=sequence(), allow_bypass=True)
    x, found = sequence(5, 4, seed=3), []
    for m in (model, aug):
        model.zero_grad()
        m(x).square().sum().backward()
        found.append([p.grad.clone() for p in [*model.first.parameters(), *model.last.parameters()]])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class Mapped(nn.Module):
    """A closed module whose output opened code takes apart."""

    def __init__(self, part: type[nn.Module], body: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.first, self.part, self.last, self.body = nn.Linear(4, 4), part(), nn.Linear(4, 2), body

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.part(self.first(x))))


def changed(out: Any) -> Tensor:
    out["hidden"] = out["hidden"] * 3
    out.other = out.other * 5
    return out["hidden"] + out.other


PARTS: list[tuple[type[nn.Module], Any]] = [
    (Pair, lambda out: out[0] if out[2] is None else out[1]),
    (Pair, lambda out: out[0] + out[1] if len(out) == 3 else out[0]),
    (Pair, lambda out: sum(v for v in out if v is not None)),
    (Output, lambda out: out.hidden if "hidden" in out else out[0]),
    (Output, lambda out: sum(out.values())),
    (Output, lambda out: out["other"] if isinstance(out, dict) and not isinstance(out, tuple) else out),
    (Output, changed),
]


@pytest.mark.parametrize(("part", "body"), PARTS)
def test_questions_about_what_a_closed_module_returns(part: Any, body: Any) -> None:
    torch.manual_seed(0)
    model = Mapped(part, body)
    aug = ga.rewrite(model, "first", example_inputs=sequence())
    assert "part" in [n.target for n in aug.graph.nodes]
    same_everywhere(model, aug.eval())


# --- assumptions ------------------------------------------------------------------------------------


def even(m: nn.Module, h: Tensor) -> Tensor:
    return h if h.shape[1] % 2 == 0 else F.pad(h, (0, 0, 0, 1))


def loop(m: nn.Module, h: Tensor) -> Tensor:
    for i in range(h.shape[1]):
        h = h + i
    return h


@pytest.mark.parametrize(
    ("body", "what", "seen"),
    [
        (even, "h.shape[1] % 2 == 0", "in this call h.shape[1] % 2 != 0"),
        (loop, ".shape[1] == 6", "this call has 5"),
    ],
    ids=["branch", "loop"],
)
def test_an_assumption_is_recorded_shown_and_checked(body: Any, what: str, seen: str) -> None:
    model = Opened(body)
    aug = ga.rewrite(model, "first", example_inputs=sequence())
    (recorded,) = aug.plan.assumptions
    assert recorded in str(aug.plan)
    assert what.partition("[")[2] in recorded
    aug(sequence(7, 6))
    with pytest.raises(AssumptionViolated, match="captured for") as caught:
        aug.train()(sequence(3, 5))
    message = str(caught.value)
    assert recorded in message
    assert re.search(r"\(test_example_values\.py line \d+\), but", message)
    assert seen in message.replace("first", "h")
    assert "example_inputs" in message
    other = sequence(3, 5)
    assert torch.equal(aug.eval()(other), model.eval()(other))  # there the model itself runs


def test_a_size_that_python_made_a_number_of_is_told_with_its_line_and_how_to_keep_it_a_size() -> None:
    def averaged(model: Opened, h: torch.Tensor) -> torch.Tensor:
        return h.sum(0) / float(h.shape[0])

    aug = ga.rewrite(Opened(averaged), "first", example_inputs=sequence()).train()
    with pytest.raises(
        AssumptionViolated, match=r"line \d+\), but this call has 2\..*float\(…\), range\(…\)"
    ):
        aug(sequence(2))


def test_an_input_that_is_a_constant_is_told_without_a_line() -> None:
    """No line of the forward asks for it, and the caller's has nothing to say."""
    aug = ga.rewrite(Flagged(), "first", example_inputs={"x": sequence(), "flag": True}).train()
    with pytest.raises(AssumptionViolated, match=r"flag == True, but"):
        aug(x=sequence(), flag=False)


def test_what_only_the_sizes_of_parameters_decide_is_no_assumption() -> None:
    aug = ga.rewrite(
        Opened(lambda m, h: h * 2 if m.first.weight.shape[0] == 4 else h), "first", example_inputs=sequence()
    )
    assert aug.plan.assumptions == ()


@pytest.mark.parametrize("body", [even, on_size, on_dtype, arithmetic, member], ids=lambda b: b.__name__)
@pytest.mark.long
def test_checks_add_no_graph_break(body: Any) -> None:
    torch._dynamo.reset()
    model = Opened(body).eval()
    aug = ga.rewrite(model, "first", example_inputs=sequence())
    compiled = torch.compile(aug, fullgraph=True, backend="aot_eager")
    for rows, length in ((3, 6), (5, 6)):
        x = sequence(rows, length)
        torch.testing.assert_close(compiled(x), model(x))
    torch._dynamo.reset()


# --- what depends on data ---------------------------------------------------------------------------


def branch(m: nn.Module, h: Tensor) -> Tensor:
    if h.sum() > 0:
        return -h
    return h


def item(m: nn.Module, h: Tensor) -> Tensor:
    return h * max(h.max().item(), 1.0)


def masked(m: nn.Module, h: Tensor) -> Tensor:
    rows = h[h.sum(-1) > 0]
    return rows if rows.shape[0] > 2 else h


def while_loop(m: nn.Module, h: Tensor) -> Tensor:
    while h.norm() > 1:
        h = h / 2
    return h


@pytest.mark.parametrize("body", [branch, item, masked, while_loop], ids=lambda b: b.__name__)
def test_control_flow_on_data_is_refused_with_file_and_line(body: Any) -> None:
    model = Opened(body)
    before = fingerprint(model)
    with pytest.raises(CaptureError) as caught:
        ga.rewrite(model, "first", example_inputs=sequence())
    found = re.search(rf"\({re.escape(HERE)} line (\d+)\)", str(caught.value))
    assert found, str(caught.value)
    begin = body.__code__.co_firstlineno
    assert begin < int(found[1]) <= begin + 3
    assert fingerprint(model) == before


def test_data_dependent_selection_without_control_flow_is_captured() -> None:
    model = Opened(lambda m, h: h[h.sum(-1) > 0]).eval()
    aug = ga.rewrite(model, "first", example_inputs=sequence(), allow_bypass=True)
    for rows in (1, 2, 7):
        x = sequence(rows)
        assert torch.equal(aug(x), model(x))


# --- modes ------------------------------------------------------------------------------------------


def two_modes(m: nn.Module, h: Tensor) -> Tensor:
    return h * 2 if m.training else h


def functional_dropout(m: nn.Module, h: Tensor) -> Tensor:
    return F.dropout(h, 0.5, training=m.training)


def one_mode(m: nn.Module, h: Tensor) -> Tensor:
    return m.norm(h) * 2


MODES = [(two_modes, 2), (functional_dropout, 2), (one_mode, 1)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("body", "graphs"), MODES, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.long
def test_two_graphs_only_where_the_modes_differ(body: Any, graphs: int, compiled: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Opened(body)
    aug = ga.rewrite(model, "first", subset=0.0, example_inputs=sequence())
    assert aug.plan.two_graphs == (graphs == 2)
    call = torch.compile(aug, fullgraph=True, backend="aot_eager") if compiled else aug
    x = sequence(5)
    for mode in (True, False, True, False):
        aug.train(mode)
        if body is functional_dropout and mode:
            assert not torch.equal(call(x), call(x))
        else:
            torch.testing.assert_close(call(x), model.train(mode)(x))
    torch._dynamo.reset()


# --- randomness -------------------------------------------------------------------------------------


class Draws(nn.Module):
    """Skips its layer at random in training, as LayerDrop does, or adds noise."""

    def __init__(self, how: str, rate: float = 0.5) -> None:
        super().__init__()
        self.how, self.rate, self.first, self.last = how, rate, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.training:
            match self.how:
                case "torch":
                    skip = torch.rand([]) < self.rate
                case "python":
                    skip = random.random() < self.rate
                case "numpy":
                    skip = np.random.rand() < self.rate  # noqa: NPY002
                case "uniform":
                    skip = torch.empty(1).uniform_(0, 1).item() < self.rate
                case "noise":
                    h, skip = h + torch.randn(4), False
            if skip:
                return h
        return self.last(h)


def states(model: nn.Module) -> Any:
    return random.getstate(), np.random.get_state()[1].tobytes(), fingerprint(model)  # noqa: NPY002


@pytest.mark.parametrize("how", ["torch", "python", "numpy", "uniform"])
def test_a_random_decision_is_refused_not_taken_once(how: str) -> None:
    model = Draws(how)
    before = states(model)
    with pytest.raises(CaptureError, match=r"draws random numbers|branches on the data in (rand|empty)"):
        ga.rewrite(model, "first", example_inputs=sequence())
    assert states(model) == before


@pytest.mark.parametrize(("rate", "skips"), [(0.0, False), (1.0, True)])
def test_a_random_decision_that_is_certain_is_captured(rate: float, skips: bool) -> None:
    aug = ga.rewrite(Draws("torch", rate), "first", example_inputs=sequence())
    assert ("last" not in [n.target for n in aug.graph.nodes]) == skips


def test_noise_is_drawn_in_every_call() -> None:
    aug = ga.rewrite(Draws("noise"), "first", subset=0.0, example_inputs=sequence())
    assert not torch.equal(aug(sequence()), aug(sequence()))


@pytest.mark.long
def test_a_closed_module_may_decide_at_random() -> None:
    for how in ("torch", "python", "numpy", "uniform"):
        ga.rewrite(nn.Sequential(nn.Linear(4, 4), Draws(how)), "0", example_inputs=sequence())


# --- state ------------------------------------------------------------------------------------------


class Stateful(nn.Module):
    """Keeps things on itself while it runs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(4, 4), nn.Linear(4, 2)
        self.calls, self.log, self.seen = 0, ["begin"], {"none": None}
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        match self.kind:
            case "count":
                self.calls += 1
            case "keep":
                self.kept = h
            case "append":
                self.log.append(h)
            case "fill":
                self.seen["last"] = h
            case "buffer":
                self.mean = h.detach().mean((0, 1))
            case "hook":
                self.last.register_forward_hook(lambda *_: None)
        return self.last(h)


@pytest.mark.parametrize("kind", ["keep", "buffer"])
def test_an_attribute_that_a_forward_sets_is_set_in_every_call(kind: str) -> None:
    """Bit for bit what the model sets; capturing itself sets nothing."""
    model, plain = Stateful(kind).eval(), Stateful(kind).eval()
    plain.load_state_dict(model.state_dict())
    before = fingerprint(model)
    aug = ga.rewrite(model, "first", example_inputs=sequence())
    assert fingerprint(model) == before
    name = "kept" if kind == "keep" else "mean"
    for rows in (3, 5):
        assert torch.equal(aug(sequence(rows)), plain(sequence(rows)))
        assert torch.equal(getattr(model, name), getattr(plain, name))


def test_what_such_an_assignment_costs_is_said_with_its_line() -> None:
    """The oracle is this file's own text."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = lines.index("                self.kept = h") + 1
    said = rf"the assignment to self\.kept{{}} \({re.escape(HERE)} line {line}\)"
    plan = ga.rewrite(Stateful("keep"), "last", stop_grad=True, example_inputs=sequence(), dry_run=True)
    assert plan.backward == "dense"
    assert re.match(said.format(""), plan.reason), plan.reason
    around = nn.ModuleDict({"inner": Stateful("keep")})
    around.forward = lambda x: around["inner"](x)  # type: ignore[method-assign]
    plan = ga.rewrite(around, "inner.last", stop_grad=True, example_inputs=sequence(), dry_run=True)
    assert re.match(said.format(" of 'inner'"), plan.reason), plan.reason


def test_what_is_kept_behind_the_cut_is_kept_by_a_sparse_step() -> None:
    """With its gradient: the rows that go on have one below the cut, as in a dense step."""
    found = []
    for backward in ("sparse", "dense"):
        torch.manual_seed(0)
        model = Stateful("keep")
        aug = ga.rewrite(
            model,
            "first",
            rate=0.0,
            stop_grad=True,
            backward=backward,
            example_inputs=sequence(6),  # type: ignore[arg-type]
        )
        assert aug.plan.backward == backward
        x = torch.randn(6, 3, 4)
        torch.manual_seed(1)
        (aug(x).sum() + model.kept.square().sum()).backward()
        found.append((model.kept.detach(), model.first.weight.grad))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(("kind", "name"), [("count", "calls"), ("append", "log"), ("fill", "seen")])
def test_what_a_forward_keeps_from_call_to_call_is_refused_by_name(kind: str, name: str) -> None:
    model = Stateful(kind).eval()
    before, log, seen = fingerprint(model), list(model.log), dict(model.seen)
    written = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = f" \\({re.escape(HERE)} line {written.index('                self.calls += 1') + 1}\\)"
    where = line if kind == "count" else ""  # what is put into a list is no statement of this object's
    with pytest.raises(CaptureError, match=rf"keeps '{name}' from one call to the next{where}\. A graph"):
        ga.rewrite(model, "first", example_inputs=sequence())
    assert fingerprint(model) == before
    assert (model.calls, model.log, model.seen) == (0, log, seen)


# --- the last check ---------------------------------------------------------------------------------


class Counts(nn.Module):
    """Computes with a number of calls: state that a graph does not keep."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.first(x) * self.calls


SEEN: list[int] = []


def behind_the_back(x: Tensor) -> Tensor:
    """A plain function that looks at sizes where no proxy can see it."""
    return x.detach().clone().mul_(float(len(SEEN)))


class ReadsGlobals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(1)
        return self.first(x) + behind_the_back(x)


@pytest.mark.parametrize(
    ("build", "message"),
    [(Counts, "keeps 'calls' from one call"), (ReadsGlobals, "differs from the original on")],
)
def test_a_graph_that_differs_from_the_original_is_an_error(build: Any, message: str) -> None:
    model = build()
    before = fingerprint(model)
    with pytest.raises(CaptureError, match=message):
        ga.rewrite(model, "first", allow_bypass=True, example_inputs=sequence())
    assert fingerprint(model) == before


class ReadsSizes(nn.Module):
    """Reads a size where no function of torch is recorded, and no assumption: a leak."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed, self.first, self.dim = nn.Embedding(9, 4), nn.Linear(4, 4), dim

    def forward(self, ids: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            size = ids.shape[self.dim]
        return self.first(self.embed(ids)) * size


@pytest.mark.parametrize(("dim", "what"), [(0, "another batch size"), (1, "another sequence length")])
def test_the_check_covers_other_batch_sizes_and_lengths(dim: int, what: str) -> None:
    with pytest.raises(CaptureError, match=what):
        ga.rewrite(ReadsSizes(dim), "first", example_inputs=torch.randint(0, 9, (3, 6)))


def test_a_closed_module_with_state_is_compared_from_the_same_state() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Counts())
    aug = ga.rewrite(model, "0", example_inputs=features())
    assert model[1].calls == 0
    first, second = aug.eval()(features()), aug(features())
    torch.testing.assert_close(second, 2 * first)


# --- any small model --------------------------------------------------------------------------------


class Drawn(nn.Module):
    """Steps that look at sizes, drawn at random."""

    def __init__(self, steps: list[tuple[str, int]]) -> None:
        super().__init__()
        self.steps, self.first, self.last = steps, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for kind, n in self.steps:
            rows, length = h.shape[:2]
            if kind == "if length":
                h = h * 2 if length > n else h - 1
            elif kind == "if rows":
                h = h.flip(0) if rows % (n + 1) == 0 else h
            elif kind == "scale":
                h = h * (length + n) / rows
            elif kind == "pad":
                h = F.pad(h, (0, 0, 0, n))
            elif kind == "crop":
                h = h[:, : max(1, length - n)]
            elif kind == "crop clearly":
                h = h[:, : length - n] if length > n else h
            elif kind == "merge":
                h = h.reshape(rows * length, -1).cumsum(0).view(rows, length, -1)
            elif kind == "positions":
                h = h + torch.arange(length).unsqueeze(-1) * n
            elif kind == "in place":
                h += n
            elif kind == "equal":
                h = h.sin() if (rows, length) == (n, n) or len(h) < n else h
            elif kind == "loop":
                for part in h.split(2, dim=1)[:n]:
                    h = h + part.mean()
            elif kind == "range":
                h = h + sum(range(min(length, n)))
        return self.last(h)


STEPS = [
    "if length", "if rows", "scale", "pad", "crop", "crop clearly", "merge", "positions", "in place", "equal",
    "loop", "range",
]  # fmt: skip
SIZES = st.tuples(st.integers(1, 6), st.integers(1, 8))


def agrees_or_raises(
    steps: list[tuple[str, int]], example: tuple[int, int], others: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    model = Drawn(steps).eval()
    aug = ga.rewrite(model, "first", example_inputs=sequence(*example), allow_bypass=True)
    x = sequence(*example, seed=1)
    assert torch.equal(aug(x), model(x))
    for rows, length in others:
        x = sequence(rows, length, seed=2)
        try:
            found = aug(x)
        except AssumptionViolated:
            continue
        assert torch.equal(found, model(x)), (rows, length)


drawn_calls = given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(1, 4)), max_size=5),
    example=st.tuples(st.integers(2, 5), st.integers(1, 7)),
    others=st.lists(SIZES, min_size=1, max_size=4),
)


@settings(max_examples=12, deadline=None)
@drawn_calls
def test_a_captured_model_agrees_or_raises(
    steps: list[tuple[str, int]], example: tuple[int, int], others: list[tuple[int, int]]
) -> None:
    agrees_or_raises(steps, example, others)


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@drawn_calls
def test_a_captured_model_agrees_or_raises_at_length(
    steps: list[tuple[str, int]], example: tuple[int, int], others: list[tuple[int, int]]
) -> None:
    agrees_or_raises(steps, example, others)
