"""The proof behind sparse backward: what sees its neighbours in the batch is found, and nothing else is."""

from __future__ import annotations

import copy
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import graphaug as ga
from graphaug.errors import SparseBackwardError

pytestmark = pytest.mark.few(2)

ROWS, WIDTH = 8, 6
Call = Callable[[Tensor], Tensor]


class Closed(nn.Module):
    """A leaf that computes a function in plain code."""

    def __init__(self, function: Call) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Open(nn.Module):
    """Computes it in the forward that is opened: before the cut ``second``, behind ``first``."""

    def __init__(self, function: Call) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.function(self.first(x))))


def closed(function: Call | nn.Module) -> tuple[nn.Module, str]:
    middle = function if isinstance(function, nn.Module) else Closed(function)
    layers = [nn.Linear(WIDTH, WIDTH), middle, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)]
    return nn.Sequential(*layers), "2"


def opened(function: Call) -> tuple[nn.Module, str]:
    return Open(function), "second"


def mixup(x: Tensor) -> Tensor:
    return 0.7 * x + 0.3 * x[torch.randperm(x.shape[0])]


def across_the_batch(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.T / x.shape[1] ** 0.5, -1) @ x


def neighbour(x: Tensor) -> Tensor:
    return x + x[(torch.arange(x.shape[0]) + 1) % x.shape[0]]


def views_swapped(x: Tensor) -> Tensor:
    first, second = x.chunk(2)
    return x + torch.cat([second, first])


# rows that see rows
MIXING: dict[str, Call] = {
    "centred": lambda x: x - x.mean(0),
    "attention": across_the_batch,
    "roll": lambda x: torch.roll(x, 1, 0),
    "flip": lambda x: x.flip(0),
    "softmax": lambda x: torch.softmax(x, 0),
    "maximum": lambda x: x / x.abs().amax(),
    "mixup": mixup,
    "gram": lambda x: x @ (x.T @ x),
    "sort": lambda x: torch.sort(x, 0).values,
    "cumsum": lambda x: torch.cumsum(x, 0),
    "norm": lambda x: x / x.norm(),
    "neighbour": neighbour,
    "gate": lambda x: x * torch.sigmoid(x.mean()),
    "standardised": lambda x: (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt(),
    "median": lambda x: x - x.median(0).values,
    "swapped views": views_swapped,
    "detached centre": lambda x: x - x.mean(0).detach(),
    "faint centre": lambda x: x - 1e-4 * x.mean(0),
    "argmax": lambda x: x * (torch.arange(x.shape[0]) == x.sum(1).argmax())[:, None],
    "quantised": lambda x: x + x.sum(0).round(),
}

# rows that see none, but their own place in the batch or its size: as wrong on a part of it
PLACED: dict[str, Call] = {
    "row numbers": lambda x: x + torch.arange(x.shape[0])[:, None],
    "one over rows": lambda x: x / x.shape[0],
    "first half": lambda x: torch.cat([x[: x.shape[0] // 2] * 2, x[x.shape[0] // 2 :]]),
    "signs": lambda x: x * (1 - 2 * (torch.arange(x.shape[0]) % 2))[:, None],
}


def decide(model: nn.Module, at: str, x: Any, **options: Any) -> tuple[str, str]:
    """What "auto" chose and why; and "sparse" must agree with it, in words."""
    torch.manual_seed(0)
    options = {"subset": 0.5, "stop_grad": True, "example_inputs": x, **options}
    plan = ga.rewrite(model, at, backward="auto", **options).plan
    if plan.backward == "sparse":
        assert ga.rewrite(model, at, backward="sparse", **options).plan.backward == "sparse"
    else:
        with pytest.raises(SparseBackwardError) as error:
            ga.rewrite(model, at, backward="sparse", **options)
        assert plan.reason in str(error.value)
        assert f"'{at}'" in str(error.value)
    assert f"backward  {plan.backward}: {plan.reason}" in str(plan)
    return plan.backward, plan.reason


def batch(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("build", [closed, opened])
@pytest.mark.parametrize("name", [*MIXING, *PLACED])
@pytest.mark.long
def test_code_that_sees_the_batch_is_found(name: str, build: Callable[[Call], tuple[nn.Module, str]]) -> None:
    model, at = build({**MIXING, **PLACED}[name])
    kind, reason = decide(model, at, batch())
    assert kind == "dense"
    assert reason


@pytest.mark.long
def test_a_layer_over_the_transposed_batch_is_found() -> None:
    layer = nn.Linear(ROWS, ROWS)
    for model, at in (closed(lambda x: layer(x.T).T), opened(lambda x: layer(x.T).T)):
        kind, reason = decide(model, at, batch())
        assert kind == "dense"
        assert reason


def test_a_size_that_is_asked_for_is_found_where_it_is_hidden() -> None:
    def by_size(x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] >= 4 else x

    assert decide(*closed(by_size), batch())[0] == "dense"
    # opened, the answer is in the graph, and checked for the whole batch in every call
    model, at = opened(by_size)
    aug = ga.rewrite(model, at, subset=0.75, stop_grad=True, example_inputs=batch())
    assert aug.plan.backward == "sparse"
    ga.verify(aug, batch())
    with pytest.raises(ga.GraphaugError, match="captured for"):
        aug(batch(2))


@pytest.mark.long  # half a minute
def test_mixing_behind_the_cut_does_no_harm() -> None:
    for name, function in MIXING.items():
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), Closed(function))
        assert decide(model, "1", batch())[0] == "sparse", name


# --- modules that keep statistics ------------------------------------------------------------------


class Running(nn.Module):
    """A layer of one's own that keeps running statistics, or only uses them."""

    def __init__(self, keeps: bool = True) -> None:
        super().__init__()
        self.register_buffer("running_scale", torch.ones(()))
        self.keeps = keeps

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps:
            self.running_scale.mul_(0.9).add_(0.1 * x.detach().std())
        return x / self.running_scale


class Memory(nn.Module):
    """Keeps the last batch, a state that has its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach()
        return x


class Counter(nn.Module):
    """Changes a buffer in its forward, by what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.shape[0]
        return x * 2


class Counts(nn.Module):
    """Counts its calls in a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 2


class Queue(nn.Module):
    """Replaces a buffer of the batch's shape, as momentum queues do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(ROWS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.queue = torch.cat([self.queue, x.detach()])[-ROWS:]
        return x


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Running(), "Running '1' (running_scale) keeps state"),
        (Memory(), "Memory '1' (last) keeps state"),
        (Counter(), "Counter '1' (seen) keeps state"),
        (Queue(), "Queue '1' (queue) keeps state"),
        (Counts(), "Counts '1' (calls) keeps state"),
        (nn.SyncBatchNorm(WIDTH), "SyncBatchNorm '1' couples the rows"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_a_module_with_state_of_the_batch_is_named(layer: nn.Module, said: str) -> None:
    model, at = closed(layer)
    if isinstance(layer, nn.SyncBatchNorm):  # it runs on a GPU only, even to capture it in eval mode
        layer.eval()
    state = {n: (t, t.clone()) for n, t in model.state_dict(keep_vars=True).items()}
    kind, reason = decide(model, at, batch())
    assert kind == "dense"
    assert said in reason
    for name, (tensor, saved) in state.items():
        assert model.state_dict(keep_vars=True)[name] is tensor
        assert torch.equal(tensor, saved)


def test_statistics_that_are_only_used_are_constants() -> None:
    assert decide(*closed(Running(keeps=False)), batch())[0] == "sparse"


NORMS: list[tuple[nn.Module, str]] = [
    (nn.BatchNorm2d(3), "BatchNorm2d '0.0' couples the rows by its batch statistics"),
    (nn.BatchNorm2d(3, track_running_stats=False), "BatchNorm2d '0.0' couples"),
    (nn.InstanceNorm2d(3, track_running_stats=True), "InstanceNorm2d '0.0' couples"),
    (nn.InstanceNorm2d(3), ""),
    (nn.InstanceNorm2d(3, affine=True), ""),
    (nn.GroupNorm(3, 3), ""),
    (nn.LocalResponseNorm(2), ""),
    (torchvision.ops.FrozenBatchNorm2d(3), ""),
]


@pytest.mark.parametrize(("norm", "said"), NORMS, ids=lambda v: str(v)[:60])
def test_a_norm_is_judged_by_what_it_keeps(norm: nn.Module, said: str) -> None:
    model = nn.Sequential(nn.Sequential(norm, nn.Conv2d(3, 3, 1)), nn.ReLU(), nn.Conv2d(3, 3, 1))
    kind, reason = _auto(model, "1", torch.randn(4, 3, 5, 5))
    assert kind == ("dense" if said else "sparse"), reason
    assert said in reason


def _auto(model: nn.Module, at: str, x: Any) -> tuple[str, str]:
    plan = ga.rewrite(model, at, subset=0.5, stop_grad=True, example_inputs=x).plan
    return plan.backward, plan.reason


def test_a_batch_norm_couples_whatever_mode_it_is_captured_in() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))
    for mode in (True, False):
        kind, reason = _auto(model.train(mode), "2", batch())
        assert (kind, "BatchNorm1d '1'" in reason) == ("dense", True)


def test_a_batch_norm_behind_the_cut_does_no_harm() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 3))
    assert _auto(model, "1", batch())[0] == "sparse"


# --- what no look at the prefix's values tells --------------------------------------------------------


class OnTokens(nn.Module):
    """An embedding, then a function of (rows, tokens, features), then the cut at ``last``."""

    def __init__(self, function: Call) -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(30, WIDTH), Closed(function)
        self.last, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.last(self.middle(self.embed(ids))).mean(1))


class Gated(nn.Module):
    """Attention across the batch behind gates that are zero until they have been trained."""

    def __init__(self, gates: int) -> None:
        super().__init__()
        self.gates = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in range(gates)])

    def forward(self, x: Tensor) -> Tensor:
        y = across_the_batch(x)
        for gate in self.gates:
            y = gate * y
        return x + y


def straight_through(x: Tensor) -> Tensor:
    mean = x.mean(0)
    return x + (mean - mean.detach())


def _ids(low: int, high: int) -> Tensor:
    return torch.randint(low, high, (ROWS, 5), generator=torch.Generator().manual_seed(0))


HIDDEN: dict[str, tuple[nn.Module, str, Any, str]] = {
    "gradient only": (*closed(straight_through), batch(), "mean runs over the rows in '1'"),
    "gradient only, tokens": (OnTokens(straight_through), "last", _ids(0, 30), "mean runs over the rows in 'middle'"),
    "one gate": (*closed(Gated(1)), batch(), "mm sums over the rows in '1'"),
    "two gates": (*closed(Gated(2)), batch(), "mm sums over the rows in '1'"),
    "tokens all zero": (OnTokens(MIXING["centred"]), "last", _ids(0, 1), "mean runs over the rows in 'middle'"),
    "tokens all five": (OnTokens(MIXING["centred"]), "last", _ids(5, 6), "mean runs over the rows in 'middle'"),
    "tokens": (OnTokens(MIXING["roll"]), "last", _ids(0, 30), "roll runs over the rows in 'middle'"),
    "logarithm": (
        *closed(lambda x: x.abs().log() - x.abs().log().mean(0).detach()), batch(), "mean runs over the rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_rows_that_meet_out_of_sight_are_found(name: str) -> None:
    model, at, x, said = HIDDEN[name]
    before = copy.deepcopy(model.state_dict())
    kind, reason = decide(model, at, x)
    assert (kind, said in reason) == ("dense", True), reason
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


class UnderMask(nn.Module):
    """A closed module that gets tokens and their mask, then the cut at ``last``."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.middle = Closed(function)  # type: ignore[arg-type]
        self.middle.forward = function  # type: ignore[method-assign, assignment]
        self.last, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.last(self.middle(x, mask)).mean(1))


BY_MASK: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "share of tokens": lambda x, mask: x * mask.float().mean(),
    "number of tokens": lambda x, mask: x * mask[..., None] / mask.sum(),
    "longest row": lambda x, mask: x - (x * mask[..., None]).sum(1, keepdim=True) / mask.sum(1).max(),
}


@pytest.mark.parametrize("kind", [torch.int64, torch.bool])
@pytest.mark.parametrize("example", ["ones", "ragged"])
@pytest.mark.parametrize("name", BY_MASK)
@pytest.mark.long
def test_rows_that_meet_through_a_mask_are_found_whatever_the_example_masks(
    name: str, example: str, kind: torch.dtype
) -> None:
    x = torch.randn(ROWS, 5, WIDTH)
    lengths = torch.full((ROWS,), 5) if example == "ones" else torch.tensor([5, 2, 3, 5, 1, 4, 5, 2])
    mask = (torch.arange(5) < lengths[:, None]).to(kind)
    assert decide(UnderMask(BY_MASK[name]), "last", {"x": x, "mask": mask})[0] == "dense"


@pytest.mark.parametrize("fill", [lambda m: m, torch.ones_like], ids=["ragged", "ones"])
@pytest.mark.long
def test_a_mask_that_each_row_has_for_itself_is_no_coupling(fill: Call) -> None:
    def own(x: Tensor, mask: Tensor) -> Tensor:
        return (x * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]

    mask = fill((torch.arange(5) < torch.tensor([5, 2, 3, 5, 1, 4, 5, 2])[:, None]).long())
    assert decide(UnderMask(own), "last", {"x": torch.randn(ROWS, 5, WIDTH), "mask": mask})[0] == "sparse"


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["python", "numpy"])
@pytest.mark.parametrize("seed", range(4))
def test_what_another_generator_decides_once_for_all_rows_is_found(
    draw: Callable[[], float], seed: int
) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 – the generator that such code uses
    state = random.getstate()
    kind, reason = decide(*closed(lambda x: x.flip(0) if draw() < 0.02 else x), batch())
    assert (kind, "Python's or numpy's generator" in reason) == ("dense", True), reason
    assert random.getstate() == state


def test_the_module_that_makes_rows_meet_is_named_inside_closed_ones() -> None:
    inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), Closed(MIXING["centred"]), nn.Tanh())
    kind, reason = decide(*closed(nn.Sequential(nn.Tanh(), inner)), batch())
    assert (kind, "in '1.1.1' (test_coupling.py line" in reason) == ("dense", True), reason


@pytest.mark.long
def test_what_hides_nothing_is_still_sparse() -> None:
    assert decide(OnTokens(torch.tanh), "last", _ids(0, 30))[0] == "sparse"
    assert decide(*closed(lambda x: torch.log(x.abs() + 0.1)), batch())[0] == "sparse"
    assert decide(nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, 3)), "0", batch().abs())[0] == "sparse"


class Collects(nn.Module):
    """Keeps an auxiliary loss of every batch in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.losses.append(x.var(0).sum())
        return x


class Prototype(nn.Module):
    """Moves a parameter without gradient by the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.centre.mul_(0.9).add_(0.1 * x.mean(0))
        return x


class Rescales(nn.Module):
    """Normalises its own weight in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.fc.weight.copy_(self.fc.weight / self.fc.weight.norm(dim=1, keepdim=True))
        return self.fc(x)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Collects(), "Collects '1' (losses)"),
        (Prototype(), "Prototype '1' (centre)"),
        (Rescales(), "Linear '1.fc' (weight)"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_state_in_lists_and_parameters_is_found_and_put_back(layer: nn.Module, said: str) -> None:
    model, at = closed(layer)
    before = copy.deepcopy(model.state_dict())
    kind, reason = decide(model, at, batch())
    assert kind == "dense"
    assert f"{said} keeps state" in reason
    assert getattr(layer, "losses", []) == []
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


class Caches(nn.Module):
    """Makes a table in its first forward and keeps it: no state of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(x.shape[1], dtype=x.dtype)
        return x + self.table


def test_a_table_that_is_made_once_is_no_state_of_a_batch() -> None:
    layer = Caches()
    assert decide(*closed(layer), batch())[0] == "sparse"
    assert layer.table is None


# --- what opened code does beside its values ------------------------------------------------------------


class Whole(nn.Module):
    """A forward to open: cut at ``second``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)
        self.second, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)


class Rectified(Whole):
    """In place, as a statement."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        F.relu(h, inplace=True)
        return self.last(self.second(h))


class MaskDrawn(Whole):
    """A mask of what the model's own dropout left, used on both sides of the cut."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(x * self.first.weight.sum())
        kept = (h > 0).float()
        return self.last(self.second(self.first(h * kept))) * kept.mean(1, keepdim=True)


class Scaled(Whole):
    """A value behind the cut, changed by an attribute of what holds it."""

    def forward(self, x: Tensor) -> Any:
        out = types.SimpleNamespace(logits=self.last(self.second(self.first(x))))
        out.logits = out.logits / 7
        return out.logits


class Cleared(nn.Module):
    """Tokens replaced in place, as a statement, where the example has none of that kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(30, WIDTH)
        self.second, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        ids = ids.clone()
        ids[ids == 0] = 1
        return self.last(self.second(self.first(ids)).mean(1))


class FirstKept(Whole):
    """A mask that is written into through a view, and used on both sides of the cut."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weight = mask.float()
        weight[:, :1].fill_(1.0)
        h = self.second(self.first(x[:, None] * weight[..., None]))
        return self.last((h * weight[..., None]).sum(1) / weight.sum(1, keepdim=True))


class Clamped(Whole):
    """Writes into its own input."""

    def forward(self, x: Tensor) -> Tensor:
        x.clamp_(-1, 1)
        return self.last(self.second(self.first(x)))


def _mask(rows: list[int]) -> Tensor:
    return torch.tensor(rows)[:, None] > torch.arange(4)


WRITES: dict[str, tuple[nn.Module, Any, Any]] = {
    "a value": (Rectified(), batch(), batch()),
    "tokens": (Cleared(), {"ids": _ids(2, 30)}, {"ids": _ids(0, 3)}),
    "a view": (
        FirstKept(),
        {"x": batch(), "mask": _mask([4] * ROWS)},
        {"x": batch(), "mask": _mask([0, 4, 1, 0, 3, 4, 0, 2])},
    ),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_in_place_are_made_on_the_side_that_reads_them(name: str) -> None:
    """Also where the example does not show them: by a dense step with the same rows."""
    model, example, x = WRITES[name]
    aug = ga.rewrite(model, "second", rate=0.0, stop_grad=True, example_inputs=example)
    assert aug.plan.backward == "sparse", aug.plan.reason
    (augmentation,) = aug.augmentations.values()
    rows = torch.tensor([True, False, False, True, True, False, False, True])
    augmentation.draw_rows = lambda count, device: rows  # type: ignore[method-assign, assignment]
    parameters = list(model.parameters())

    def step() -> tuple[Tensor, ...]:
        given = copy.deepcopy(x)
        output = aug(**given) if isinstance(given, dict) else aug(given)
        return output, *torch.autograd.grad(output.square().sum(), parameters)

    found = step()
    with aug.dense():
        expected = step()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_write_into_the_callers_batch_is_one_of_the_whole_batch() -> None:
    """Two parts would write into copies of their rows, and a loss may read the batch."""
    model, x = Clamped(), batch() * 9
    given = x.clone()
    aug = ga.rewrite(model, "second", rate=0.0, stop_grad=True, example_inputs=batch() / 9).train()
    assert aug.plan.backward == "dense"
    aug(given)
    torch.testing.assert_close(given, x.clamp(-1, 1), rtol=0, atol=0)


def test_a_write_into_what_the_model_holds_is_not_made_twice() -> None:
    class Decays(Whole):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            self.scale.mul_(0.5)
            return self.last(self.second(self.first(x) * self.scale))

    model = Decays()
    kind, reason = decide(model, "second", batch())
    assert (kind, "scale" in reason) == ("dense", True), reason
    assert float(model.scale) == 1.0


def test_effects_that_a_split_would_lose_or_double_are_found() -> None:
    kind, reason = decide(MaskDrawn(), "second", batch())
    assert (kind, "drawn at random" in reason) == ("dense", True), reason


def test_an_attribute_that_is_set_behind_the_cut_is_kept() -> None:
    aug = ga.rewrite(Scaled(), "second", stop_grad=True, example_inputs=batch())
    ga.verify(aug, batch())


def test_a_site_that_another_batch_size_does_not_reach_stays_dense() -> None:
    class BySize(Whole):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(h if x.shape[0] > 8 else self.second(h))

    kind, reason = decide(BySize(), "second", batch(6))
    assert (kind, "another way for 9 rows" in reason) == ("dense", True)


def test_a_module_that_asserts_without_a_word_stays_dense() -> None:
    def many(x: Tensor) -> Tensor:
        assert x.shape[0] >= 3
        return x

    kind, reason = decide(*closed(many), batch())
    assert (kind, "asks whether rows >= 3" in reason) == ("dense", True), reason


# --- what may look like coupling and is none ------------------------------------------------------------


class Biased(nn.Module):
    """Attention with an additive mask, which holds the lowest number there is."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 1, batch_first=True, dropout=0.1)
        self.last, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        h = x + self.attention(x, x, x, attn_mask=bias, need_weights=False)[0]
        return self.head(self.last(h).mean(1))


class Sampled(nn.Module):
    """Tokens kept at random, drawn once for all rows and used on both sides of the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(x.shape[0], x.shape[1]).argsort(1)[:, :3]
        h = x.gather(1, kept[:, :, None].expand(-1, -1, WIDTH))
        return self.head(self.last(h).mean(1)) + kept.float().mean(1, keepdim=True)


class Lengths(nn.Module):
    """A mean over as many tokens as each row has, which must not be none."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = (torch.arange(x.shape[1]) < lengths[:, None])[:, :, None].float()
        return self.head((self.last(x * mask) * mask).sum(1) / mask.sum(1))


class Large(Whole):
    """Takes another way for large batches, which is an assumption of the capture."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x))
        return self.last(2 * h if x.shape[0] >= 16 else h)


class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.fc, x, use_reentrant=True)


def _on_sparse_embedding() -> nn.Module:
    model = OnTokens(torch.tanh)
    model.embed = nn.Embedding(30, WIDTH, sparse=True)
    return model


def _on_checkpoint() -> nn.Module:
    model = OnTokens(torch.tanh)
    model.middle = Reentrant()
    return model


def _bert(attention: str, dtype: torch.dtype) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        attn_implementation=attention,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).to(dtype)


TEXT = {
    "input_ids": _ids(2, 30),
    "attention_mask": (torch.arange(5) < 3).long() | torch.arange(ROWS)[:, None] % 2,
}
WIDE = torch.randn(ROWS, 5, WIDTH, generator=torch.Generator().manual_seed(0))
LOWEST = torch.zeros(ROWS, 5, 5).index_fill(2, torch.tensor([3, 4]), torch.finfo(torch.float32).min)
HARMLESS: dict[str, tuple[Callable[[], nn.Module], str, Any]] = {
    "spectral norm behind the cut": (
        lambda: nn.Sequential(nn.Linear(WIDTH, 6), nn.Linear(6, 6), spectral_norm(nn.Linear(6, 3))), "1", batch(),
    ),
    "an additive mask": (Biased, "last", (WIDE, LOWEST)),
    "tokens kept at random": (Sampled, "last", WIDE),
    "lengths": (Lengths, "last", (WIDE, torch.full((ROWS,), 5))),
    "another way for large batches": (Large, "second", batch(32)),
    "sparse gradients": (_on_sparse_embedding, "last", _ids(0, 30)),
    "a reentrant checkpoint": (_on_checkpoint, "last", _ids(0, 30)),
    "BERT, eager": (lambda: _bert("eager", torch.float32), "encoder.layer.0", TEXT),
    "BERT, bfloat16": (lambda: _bert("sdpa", torch.bfloat16), "encoder.layer.0", TEXT),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.long
def test_what_is_no_coupling_is_not_taken_for_it(name: str) -> None:
    build, at, x = HARMLESS[name]
    torch.manual_seed(0)
    kind, reason = decide(build(), at, x, subset=0.75)
    assert kind == "sparse", reason


# --- rows that see no other: no false alarm ---------------------------------------------------------


class Block(nn.Module):
    """Attention over tokens with dropout: N×T×D to N×T×D."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, dropout=0.2, batch_first=True)
        self.norm, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, width), nn.Dropout(0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.mlp(self.norm(x))


class Tokens(nn.Module):
    """Embedding, a class token and a table of positions, the batch size read as a symbol."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 7, 8))
        self.block1, self.block2, self.head = Block(), Block(), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.block2(self.block1(x))[:, 0].view(x.shape[0], -1))


class Masked(nn.Module):
    """A mask that the prefix and the suffix use, made from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(30, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weight = mask[:, :, None].to(self.embed.weight.dtype)
        x = self.norm(self.mix(self.embed(ids) * weight))
        return self.head((x * weight).sum(1) / weight.sum(1).clamp(min=1))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 6, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 16),
        nn.LayerNorm(16),
        nn.GELU(),
        nn.Dropout(0.4),
        nn.Linear(16, 16),
        nn.Linear(16, 3),
    )


IDS = torch.randint(0, 30, (ROWS, 6), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(6) < torch.arange(1, ROWS + 1).clamp(max=6)[:, None]).long()
INDEPENDENT: dict[str, tuple[Callable[[], nn.Module], str, Any]] = {
    "mlp": (mlp, "4", batch()),
    "conv": (conv, "3", torch.randn(4, 3, 7, 7)),
    "tokens": (Tokens, "block2", IDS),
    "tokens, early": (Tokens, "block1", IDS),
    "mask": (Masked, "norm", (IDS, MASK)),
    "boolean mask": (Masked, "norm", (IDS, MASK.bool())),
    "view": (lambda: opened(lambda x: x.view(x.shape[0], 2, -1).flatten(1))[0], "second", batch()),
    "reshape": (lambda: opened(lambda x: x.reshape(x.size(0), -1))[0], "second", batch()),
    "row-wise softmax": (lambda: closed(lambda x: torch.softmax(x, -1))[0], "2", batch()),
    "row-wise norm": (lambda: closed(lambda x: F.normalize(x, dim=1))[0], "2", batch()),
    "noise": (lambda: closed(lambda x: x + torch.randn_like(x))[0], "2", batch()),
    "in place": (lambda: closed(nn.ReLU(inplace=True))[0], "2", batch()),
    "row-wise sort": (lambda: closed(lambda x: x.sort(1).values)[0], "2", batch()),
    "constant": (lambda: closed(lambda x: x * torch.linspace(0, 1, WIDTH))[0], "2", batch()),
    "two rows": (mlp, "4", batch(2)),
    "three rows": (mlp, "4", batch(3)),
    "many rows": (mlp, "4", batch(33)),
}


@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.long
def test_rows_that_see_no_other_are_accepted(name: str) -> None:
    build, at, x = INDEPENDENT[name]
    torch.manual_seed(0)
    kind, reason = decide(build(), at, x)
    assert kind == "sparse", reason
    assert reason.startswith("rows proved independent")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.long
def test_the_proof_is_no_stricter_in_another_precision(dtype: torch.dtype) -> None:
    assert _auto(mlp().to(dtype), "4", batch().to(dtype))[0] == "sparse"
    coupled, at = closed(lambda x: x - x.mean(0))
    assert _auto(coupled.to(dtype), at, batch().to(dtype))[0] == "dense"


def test_the_proof_leaves_no_trace() -> None:
    model, at = closed(mixup)
    model[0].eval()
    before = (
        torch.get_rng_state(),
        [m.training for m in model.modules()],
        [p._version for p in model.parameters()],
    )
    ga.rewrite(model, at, subset=0.5, stop_grad=True, example_inputs=batch())
    after = (
        torch.get_rng_state(),
        [m.training for m in model.modules()],
        [p._version for p in model.parameters()],
    )
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert all(p.grad is None for p in model.parameters())
