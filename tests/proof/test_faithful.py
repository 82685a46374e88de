"""Shadow runs find what a graph does otherwise than the model, and find nothing where it does the same."""

from __future__ import annotations

import operator
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import graphaug as ga
from graphaug.capture.inputs.signature import Signature
from graphaug.capture.recording.nodes import Nodes
from graphaug.capture.values import assume
from graphaug.errors import CaptureError
from graphaug.proof.shadow.faithful import CapturedModel, check_faithful

pytestmark = pytest.mark.few(2)


class Net(nn.Module):
    """One of everything that a plant below takes away or changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("mean", torch.zeros(6))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = torch.sub(h, x).reshape(x.shape[0], 3, 2).flatten(1)
        fresh = torch.zeros(6)
        h = h + fresh
        with torch.no_grad():
            target = h * 2
        h = h * self.scale - target
        h = torch.nn.functional.dropout(h, 0.5, self.training)
        view = h[:, 0]
        view.add_(1)
        return self.second(h).relu()


def grad_off() -> bool:
    """Gradients off; whether they were on."""
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    return before


def python_draw() -> float:
    return random.random()


def shared() -> Tensor:
    return SHARED


def graph_of(model: nn.Module) -> fx.GraphModule:
    """The model's graph by hand: torch's own tracer, and what it forgets put back."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_module("first", (x,))
    less = graph.call_function(torch.sub, (first, x))
    rows = graph.call_method("size", (x, 0))
    shaped = graph.call_method("flatten", (graph.call_method("reshape", (less, rows, 3, 2)), 1))
    fresh = graph.call_function(torch.zeros, (6,))
    added = graph.call_function(operator.add, (shaped, fresh))
    caller = graph.call_function(grad_off)
    target = graph.call_function(operator.mul, (added, 2))
    graph.call_function(torch.set_grad_enabled, (caller,))
    scale = graph.get_attr("scale")
    scaled = graph.call_function(operator.mul, (added, scale))
    minus = graph.call_function(operator.sub, (scaled, target))
    dropped = graph.call_function(nn.functional.dropout, (minus, 0.5, model.training))
    view = graph.call_function(operator.getitem, (dropped, (slice(None), 0)))
    graph.call_method("add_", (view, 1))
    second = graph.call_module("second", (dropped,))
    graph.output(graph.call_method("relu", (second,)))
    return fx.GraphModule(model, graph)


class Modes(nn.Module):
    """Two graphs, for training and eval mode, over the children of one model."""

    def __init__(self, model: nn.Module, training: fx.GraphModule, evaluating: fx.GraphModule) -> None:
        super().__init__()
        self.__dict__["both"] = {True: training, False: evaluating}
        self.__dict__["model"] = model

    def train(self, mode: bool = True) -> Modes:
        self.model.train(mode)
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Any:
        return self.both[self.training](x)


def captured(model: nn.Module, change: Callable[[fx.Graph], None] = lambda graph: None) -> CapturedModel:
    graphs = []
    for mode in (True, False):
        model.train(mode)
        module = graph_of(model)
        change(module.graph)
        module.graph.lint()
        module.recompile()
        graphs.append(module)
    closed = frozenset({"first", "second"})
    return CapturedModel(Modes(model, *graphs), (), {True: closed, False: closed}, {})


def only(graph: fx.Graph, target: Any, number: int = 0) -> fx.Node:
    return [n for n in graph.nodes if n.target is target or n.target == target][number]


def checked(model: nn.Module, graph: CapturedModel, x: Tensor | None = None) -> str:
    x = torch.randn(4, 6) if x is None else x
    return check_faithful(model, graph, Signature.of(model, x))


def remove(target: Any, number: int = 0) -> Callable[[fx.Graph], None]:
    def change(graph: fx.Graph) -> None:
        node = only(graph, target, number)
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)

    return change


def swapped(graph: fx.Graph) -> None:
    node = only(graph, torch.sub)
    node.args = node.args[::-1]


def argument(target: Any, position: int, value: Any, number: int = 0) -> Callable[[fx.Graph], None]:
    def change(graph: fx.Graph) -> None:
        only(graph, target, number).update_arg(position, value)

    return change


def another(target: Any, new: Any, number: int = 0) -> Callable[[fx.Graph], None]:
    def change(graph: fx.Graph) -> None:
        only(graph, target, number).target = new

    return change


def no_region(graph: fx.Graph) -> None:
    graph.erase_node(only(graph, torch.set_grad_enabled))
    graph.erase_node(only(graph, grad_off))


def before_output(*targets: Any) -> Callable[[fx.Graph], None]:
    def change(graph: fx.Graph) -> None:
        with graph.inserting_before(only(graph, "output")):
            for target, *args in targets:
                graph.call_function(target, tuple(args))

    return change


def writes_scale(graph: fx.Graph) -> None:
    with graph.inserting_before(only(graph, "output")):
        detached = graph.call_method("detach", (graph.get_attr("scale"),))
        graph.call_method("mul_", (detached, 0.5))


def detached(graph: fx.Graph) -> None:
    node = only(graph, torch.sub)
    with graph.inserting_after(node):
        new = graph.call_method("detach", (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def another_module(graph: fx.Graph) -> None:
    only(graph, "second").target = "first"


def once_more(graph: fx.Graph) -> None:
    node = only(graph, "second")
    with graph.inserting_after(node):
        new = graph.call_module("second", (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


PLANTS: dict[str, tuple[Callable[[fx.Graph], None], str]] = {
    "an operation is dropped": (remove("relu"), "'relu'"),
    "arguments are swapped": (swapped, "'sub' takes the result of call of 'first' in the model"),
    "another number": (argument(operator.mul, 1, 3), "'mul' takes 2 in the model, and 3 in the graph"),
    "a region without gradients is lost": (no_region, "'mul' runs without gradients in the model"),
    "a mode is left switched": (before_output((grad_off,)), "grad mode of the caller"),
    "the training flag is baked": (argument(nn.functional.dropout, 2, True), "in eval mode.*graph"),
    "dropout is lost": (argument(nn.functional.dropout, 2, False), "in training mode.*model"),
    "another rate": (argument(nn.functional.dropout, 1, 0.4), "'bernoulli_' takes other arguments"),
    "a write in place is lost": (lambda g: g.erase_node(only(g, "add_")), "'select' in the model"),
    "a write into something else": (argument("add_", 1, 2), "'add_' takes 1 in the model, and 2"),
    "one more random draw": (before_output((torch.rand, 3)), "'rand' is in the graph, and not in the model"),
    "a draw of Python's": (before_output((python_draw,)), "Python's random generator"),
    "a parameter is written": (writes_scale, "'detach' is in the graph|'mul_' is in the graph"),
    "a gradient is cut": (detached, "'detach'"),
    "another module": (another_module, "call of 'second' in the model is call of 'first'"),
    "one call more": (once_more, "call of 'second'"),
    "another operation": (another(torch.sub, torch.add), "'sub' in the model is 'add' in the graph"),
    "the batch size is baked": (
        argument("reshape", 1, 4),
        "fails where the original does not .another batch size|on another batch size",
    ),
    "a tensor of other numbers": (another(torch.zeros, torch.ones), "'add' takes a tensor of plain numbers"),
    "a tensor of another size": (argument(torch.zeros, 0, 1), "a tensor of plain numbers of shape"),
    "the wrong value is returned": (
        lambda g: only(g, "output").update_arg(0, only(g, "second")),
        "'relu'|the output is",
    ),
}


def test_equal_forwards_are_equal() -> None:
    model = Net()
    assert checked(model, captured(model)) == ""


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_difference_is_found_and_named(plant: str) -> None:
    change, said = PLANTS[plant]
    model = Net()
    with pytest.raises(CaptureError, match=said) as caught:
        checked(model, captured(model, change))
    assert "captured" in str(caught.value)


def test_the_users_line_is_named() -> None:
    model = Net()
    line = Net.forward.__code__.co_firstlineno + 2
    with pytest.raises(CaptureError, match=rf"test_faithful.py line {line}\)"):
        checked(model, captured(model, swapped))


SHARED = torch.zeros(6)


class Constant(Net):
    def forward(self, x: Tensor) -> Tensor:
        penalty = torch.zeros(6)
        penalty += self.first(x).mean()
        return self.second(x) + penalty


class Autocast(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        with torch.autocast("cpu", enabled=False):
            h = h.float() @ self.scale.float().diag()
        return self.second(h)


class Buffer(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        self.mean.mul_(0.9).add_(h.detach().mean(0))
        return self.second(h) - self.mean


class Counter(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.second(self.first(x))


class Kept(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.first(x)
        return self.second(self.last)


class Drawn(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) * random.random()


class Leaky(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.scale.data.mul_(0.99)
        return self.second(self.first(x) * self.scale)


class Switch(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        self.second.training = False
        return self.second(h)


class ThroughNumpy(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h) * float(h.detach().numpy().mean())


class Branch(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h) if h.sum() > 1e6 else self.second(h) * 2


class Typed(Net):
    """Knows a tensor from what pretends to be one."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h * 2 if type(h) is Tensor else h)


def plain(model: nn.Module, *, opened: Callable[[fx.Graph], fx.Node]) -> CapturedModel:
    """A graph of the calls of the two layers, and of what ``opened`` puts between and behind them."""
    graph = fx.Graph()
    graph.output(opened(graph))
    module = fx.GraphModule(model, graph)
    closed = frozenset({"first", "second"})
    return CapturedModel(Modes(model, module, module), (), {True: closed, False: closed}, {}, True)


def in_a_row(graph: fx.Graph) -> fx.Node:
    x = graph.placeholder("x")
    return graph.call_module("second", (graph.call_module("first", (x,)),))


FORGOTTEN = {
    Counter: "changes 'calls'",
    Kept: "changes 'last'",
    Drawn: "'mul'|Python's random generator",
    Leaky: "'mul_'|'detach'",
    Buffer: "'mul_'|'detach'|'mul'",
    Switch: "training",
    ThroughNumpy: "numpy",
    Branch: "'sum'|'gt'",
    Typed: "'mul'",
    Autocast: "'diag|'mm'|'matmul'|'view'|'diag_embed'",
    Constant: "'mean'|'add'",
}


@pytest.mark.parametrize("kind", FORGOTTEN)
def test_what_a_graph_forgets_is_found(kind: type[Net]) -> None:
    model = kind()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = set(vars(model))
    x, graph = torch.randn(4, 6), plain(model, opened=in_a_row)
    states = torch.get_rng_state(), random.getstate()
    with pytest.raises(CaptureError, match=FORGOTTEN[kind]):
        checked(model, graph, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(vars(model)) == attributes
    assert model.calls == 0
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_a_constant_that_is_written_is_no_fresh_tensor() -> None:
    model = Constant()

    def accumulating(graph: fx.Graph) -> fx.Node:
        x = graph.placeholder("x")
        mean = graph.call_method("mean", (graph.call_module("first", (x,)),))
        kept = graph.call_function(shared, ())
        total = graph.call_function(operator.iadd, (kept, mean))
        return graph.call_function(operator.add, (graph.call_module("second", (x,)), total))

    with pytest.raises(CaptureError, match="'add_' takes"):
        checked(model, plain(model, opened=accumulating))
    assert not SHARED.any()


class OnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_without_examples_the_graph_is_compared_and_where_it_cannot_be_the_plan_says_so() -> None:
    plan = ga.rewrite(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "0", dry_run=True)
    assert not any("not compared" in note for note in plan.notes)
    plan = ga.rewrite(nn.Sequential(nn.Linear(4, 4), OnData(), nn.Linear(4, 4)), "0", dry_run=True)
    (note,) = (note for note in plan.notes if "not compared" in note)
    assert note.endswith("and there are no example_inputs to run it on")


def test_without_examples_a_graph_that_differs_is_refused_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The capture is made to lie: it records another function than the one that the model calls."""
    real = Nodes.create

    def create(self: Nodes, kind: str, target: Any, *rest: Any, **more: Any) -> Any:
        return real(self, kind, torch.cos if target is torch.sin else target, *rest, **more)

    class Sine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.sin(self.body(x)))

    ga.rewrite(Sine(), "body")
    monkeypatch.setattr(Nodes, "create", create)
    with pytest.raises(CaptureError, match="'sin' in the model is 'cos' in the graph"):
        ga.rewrite(Sine(), "body")


class Holder:
    """Something of the user's that a stand-in cannot make."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class Packs(nn.Module):
    def forward(self, x: Tensor) -> Holder:
        return Holder(x * 2)


class Unpacks(nn.Module):
    def forward(self, held: Holder) -> Tensor:
        return held.value + 1


def test_a_model_that_cannot_run_with_stand_ins_is_tried() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Packs(), Unpacks())
    plan = ga.rewrite(model, "0", example_inputs=torch.randn(4, 4), dry_run=True)
    assert any(note.startswith("compared by a trial run only: a closed Packs") for note in plan.notes)


class Switches(nn.Module):
    """Its forward does something to a module that only training shows."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.inner, self.norm, self.what = nn.Linear(4, 4), nn.BatchNorm1d(4), what

    def forward(self, x: Tensor) -> Tensor:
        # past __setattr__, where the capture itself would refuse it
        if self.what == "the mode of a child":
            vars(self.norm)["training"] = False
        if self.what == "a number of a child":
            vars(self.norm)["momentum"] = 0.5
        return self.norm(self.inner(x))


@pytest.mark.few(1)
@pytest.mark.parametrize("what", ["the mode of a child", "a number of a child", ""])
def test_a_trial_run_trains_too(what: str) -> None:
    model = nn.Sequential(Switches(what), Packs(), Unpacks())
    state = {name: t.clone() for name, t in model.state_dict().items()}
    if what:
        with pytest.raises(CaptureError, match="differs from the original in training mode"):
            ga.rewrite(model, "0.inner", example_inputs=torch.randn(4, 4))
    else:
        plan = ga.rewrite(model, "0.inner", example_inputs=torch.randn(4, 4), dry_run=True)
        assert not any("not compared in training" in note for note in plan.notes)
    assert all(m.training for m in model.modules())
    assert model[0].norm.momentum == 0.1
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


ARCHITECTURES = {
    "torchvision": (
        "alexnet",
        "resnet18",
        "mobilenet_v2",
        "efficientnet_b0",
        "shufflenet_v2_x0_5",
        "mnasnet0_5",
    ),
    "timm": (
        "resnet10t",
        "convnext_atto",
        "vit_tiny_patch16_224",
        "mixer_s32_224",
        "regnetx_002",
        "ghostnet_050",
    ),
}


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("library", "name"), [(lib, n) for lib, names in ARCHITECTURES.items() for n in names]
)
def test_no_false_alarm(library: str, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "timm":
            options = {"drop_path_rate": 0.1} if "convnext" in name else {}  # not every model takes it
            model = pytest.importorskip("timm").create_model(name, **options)
        else:
            model = pytest.importorskip("torchvision").models.get_model(name, weights=None)
    path = [p for p, m in model.named_modules() if list(m.children())][-1]
    x = torch.randn(2, 3, 224 if "224" in name else 64, 224 if "224" in name else 64)
    plan = ga.rewrite(model, path, example_inputs=x, allow_bypass=True, dry_run=True)
    assert not [note for note in plan.notes if "compared" in note]


class Overrides(nn.Module):
    """Something else without gradients, where no subclass of a tensor has a say, as torch's encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.first(x)
        slow = torch.overrides.has_torch_function((h,)) or torch.is_grad_enabled()
        return h if slow else h * 2


@pytest.mark.parametrize("relies", [True, False])
def test_what_the_model_does_without_gradients_is_compared(relies: bool) -> None:
    model = Overrides()
    graph = fx.Graph()
    x = graph.placeholder("x")
    if relies:
        mode = graph.call_function(torch.is_grad_enabled)
        graph.call_function(assume, (mode, True, "torch.is_grad_enabled()"))
    graph.output(graph.call_module("first", (x,)))
    run = Modes(model, *(fx.GraphModule(model, graph) for _ in range(2)))
    closed = frozenset({"first"})
    found = CapturedModel(run, (), {True: closed, False: closed}, {}, falls_back=True)
    if relies:
        assert "in eval mode the original runs on the example without gradients" in checked(model, found)
    else:
        with pytest.raises(CaptureError, match="without gradients"):
            checked(model, found)
