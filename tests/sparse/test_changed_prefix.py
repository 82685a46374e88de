"""A prefix that is not what it was proved to be runs dense. Oracle: the plain model, since nothing is augmented."""

from __future__ import annotations

import copy
import pickle
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize

import graphaug as ga
from graphaug.errors import SparseBackwardLost

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
PAD = torch.arange(6) >= torch.tensor([6, 3, 2, 5, 6, 1, 4, 3])[:, None]
FLAGS = {"centred": False}
CENTRED = GATED = False


class Defaults:
    """Options that a class inherits."""

    centred = False


class Settings(Defaults):
    """Options in a class, in one inside of it, and functions read off it."""

    class Inner:
        centred = False

    flag = False

    @classmethod
    def flagged(cls) -> bool:
        return cls.flag

    @staticmethod
    def kept(h: Tensor) -> Tensor:
        return h


class Asked:
    """Is made in the forward."""

    centred = False

    def __call__(self) -> bool:
        return self.centred


def centre(h: Tensor) -> Tensor:
    return h - h.mean(0)


def same(h: Tensor) -> Tensor:
    return h


def gated(h: Tensor) -> Tensor:
    return centre(h) if GATED else h


class Options:
    """An object of a class of the user's."""

    def __init__(self) -> None:
        self.centred = False


class Block(nn.Module):
    """Lets its rows meet, if one of many options says so."""

    centred = False
    steps = (0,)

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(6, 6), nn.Dropout(0.0)
        self.act: Callable[[Tensor], Tensor] = torch.tanh
        self.options, self.names, self.pair = {"centred": False}, ["a"], (0, 1)
        self.space, self.held, self.functions = types.SimpleNamespace(centred=False), Options(), [same, gated]

    def helper(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        h = self.helper(self.act(self.linear(x)))
        for function in self.functions:
            h = function(h)
        asked = (self.options["centred"], "centred" in self.names, self.pair[0], self.space.centred)
        more = (self.held.centred, self.centred, self.steps[0], CENTRED, FLAGS["centred"])
        of_classes = (Settings.centred, Settings.Inner.centred, Settings.flagged(), Asked()())
        h = Settings.kept(functional.gelu(h))
        modes = (not self.dropout.training, not self.linear.weight.requires_grad)
        return centre(h) if any((*asked, *more, *of_classes, *modes)) else h


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


CHANGES: dict[str, Callable[[Any, pytest.MonkeyPatch], Any]] = {
    "a function": lambda b, patch: setattr(b, "act", centre),
    "a method of the instance": lambda b, patch: setattr(b, "helper", centre),
    "a method of the class": lambda b, patch: patch.setattr(Block, "helper", lambda self, h: centre(h)),
    "the class": lambda b, patch: setattr(b, "__class__", type("Other", (Block,), {"helper": staticmethod(centre)})),
    "an item of a dict": lambda b, patch: b.options.update(centred=True),
    "an item of a list": lambda b, patch: b.names.append("centred"),
    "a function in a list": lambda b, patch: b.functions.append(centre),
    "a tuple": lambda b, patch: setattr(b, "pair", (1, 1)),
    "a namespace": lambda b, patch: setattr(b.space, "centred", True),
    "an object": lambda b, patch: setattr(b.held, "centred", True),
    "a class attribute": lambda b, patch: patch.setattr(Block, "centred", True),
    "a class attribute, shadowed": lambda b, patch: setattr(b, "steps", (1,)),
    "a global": lambda b, patch: patch.setitem(globals(), "CENTRED", True),
    "a global of a function in a list": lambda b, patch: patch.setitem(globals(), "GATED", True),
    "an item of a global": lambda b, patch: patch.setitem(FLAGS, "centred", True),
    "an option that a class inherits": lambda b, patch: patch.setattr(Defaults, "centred", True),
    "an option set on the class that inherits": lambda b, patch: patch.setattr(Settings, "centred", True),
    "an option of a class in a class": lambda b, patch: patch.setattr(Settings.Inner, "centred", True),
    "an option that a class method reads": lambda b, patch: patch.setattr(Settings, "flag", True),
    "a static method": lambda b, patch: patch.setattr(Settings, "kept", staticmethod(centre)),
    "an option of what is made": lambda b, patch: patch.setattr(Asked, "centred", True),
    "a function of torch": lambda b, patch: patch.setattr(functional, "gelu", centre),
    "the mode of a child that is asked": lambda b, patch: b.dropout.eval(),
    "what is trained, where that is asked": lambda b, patch: b.linear.requires_grad_(False),
    "a child": lambda b, patch: setattr(b, "dropout", nn.BatchNorm1d(6)),
    "a hook": lambda b, patch: b.register_forward_hook(lambda m, args, out: centre(out)),
    "the code of a function, as a notebook that reloads does": lambda b, patch: (
        patch.setattr(same, "__code__", centre.__code__)
    ),
    "the code of a method": lambda b, patch: (
        patch.setattr(Block.helper, "__code__", (lambda self, h: centre(h)).__code__)
    ),
}  # fmt: skip


def check_dense_after(change: Callable[..., Any], model: nn.Sequential, patch: pytest.MonkeyPatch) -> None:
    """A step is sparse until the first module of a model has changed, and computes what the model does."""
    aug = ga.rewrite(model, "1", rate=0.0, stop_grad=True, example_inputs=X).train()
    for _ in range(2):
        aug(X)
    assert aug.plan.backward == "sparse", aug.plan.reason
    change(model[0], patch)
    torch.testing.assert_close(aug(X), model(X))
    assert aug.plan.backward == "dense"
    assert "since it was rewritten" in aug.plan.reason


@pytest.mark.few(8)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.filterwarnings("ignore::graphaug.errors.SparseBackwardLost")
def test_what_its_code_reaches_counts(change: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    check_dense_after(change, model, monkeypatch)


class Centre(nn.Module):
    """Rows meet in it."""

    def forward(self, h: Tensor) -> Tensor:
        return centre(h)


class Stage(nn.Module):
    """A linear layer and a norm, in which rows stay by themselves or not."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.linear, self.norm, self.tanh = nn.Linear(6, 6), norm(6), nn.Tanh()

    def forward(self, h: Tensor) -> Tensor:
        return self.tanh(self.norm(self.linear(h)))


class Stages(nn.Module):
    """Children that are closed, in a list, and one that a site inside of it opens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.stages, self.head = nn.ModuleList(Stage() for _ in range(3)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.stem(x))
        for stage in self.stages:
            h = stage(h)
        return self.head(h)


def _set_stage(model: Any) -> None:
    model.stages[0] = Stage(nn.BatchNorm1d)


def _swap(model: Any) -> None:
    model.stem, model.norm = model.norm, model.stem


EXCHANGED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a child of the model, by a norm of batches": ("norm", lambda m: setattr(m, "norm", nn.BatchNorm1d(6))),
    "a child of the model, by a module in which rows meet": ("norm", lambda m: setattr(m, "norm", Centre())),
    "one of a list": ("stages.0", _set_stage),
    "a child of one in a list": ("stages.0", lambda m: setattr(m.stages[0], "norm", nn.BatchNorm1d(6))),
    "a child of an opened one": ("stages.2.linear", lambda m: setattr(m.stages[2], "linear", Centre())),
    "by add_module": ("norm", lambda m: m.add_module("norm", Centre())),
    "by set_submodule": ("stages.0", lambda m: m.set_submodule("stages.0", Centre())),
    "two with each other": ("stem", _swap),
}


@pytest.mark.few(4)
@pytest.mark.parametrize(("where", "change"), EXCHANGED.values(), ids=EXCHANGED)
@pytest.mark.parametrize("copied", [False, True])
def test_a_module_at_the_place_of_another_counts(
    where: str, change: Callable[[Any], Any], copied: bool
) -> None:
    """It is run, since the graph calls whatever stands there, and of it nothing is proved."""
    aug = ga.rewrite(Stages(), "stages.2.norm", rate=0.0, stop_grad=True, example_inputs=X).train()
    aug = copy.deepcopy(aug) if copied else aug
    model: Any = aug.original
    aug(X)
    assert aug.plan.backward == "sparse", aug.plan.reason
    model.head = nn.Linear(6, 3)  # behind the cut nothing is proved
    aug(X)
    assert aug.plan.backward == "sparse"
    change(model)
    with pytest.warns(SparseBackwardLost, match=f"'{where}'"):
        torch.testing.assert_close(aug(X), model(X))
    assert aug.plan.backward == "dense"
    assert "sparse" not in str(ga.verify(aug, X))


@pytest.mark.parametrize("first", [True, False], ids=["once compiled", "before it is compiled"])
def test_compiled_code_asks_as_well(first: bool) -> None:
    torch._dynamo.reset()
    model: Any = Stages()
    aug = ga.rewrite(model, "stages.2.norm", rate=0.0, stop_grad=True, example_inputs=X).train()
    fast = torch.compile(aug, fullgraph=True, backend="eager")
    if first:
        fast(X)
    model.norm = nn.BatchNorm1d(6)
    with pytest.warns(SparseBackwardLost, match="'norm'"):
        torch.testing.assert_close(fast(X), model(X))
    assert aug.plan.backward == "dense"


def asks_for_mode(module: nn.Module, h: Tensor) -> Tensor:
    return h if module.training else centre(h)


def asks_what_is_trained(module: nn.Module, h: Tensor) -> Tensor:
    return h if all(p.requires_grad for p in module.parameters()) else centre(h)


class Asks(nn.Module):
    """Lets its rows meet where something is there, or has another shape, or is in another mode."""

    def __init__(self, asked: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.asked = nn.Linear(6, 6), asked
        self.register_buffer("nothing", None)
        self.register_parameter("scale", None)
        self.register_buffer("rows", torch.zeros(0, 6))
        self.prompts = nn.ParameterDict()

    def forward(self, x: Tensor) -> Tensor:
        return self.asked(self, self.linear(x))


def _if(asked: Callable[[Any], bool]) -> Callable[[Any, Tensor], Tensor]:
    return lambda module, h: centre(h) if asked(module) else h


ASKED: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[Any, pytest.MonkeyPatch], Any]]] = {
    "a buffer that was None": (_if(lambda m: m.nothing is not None), lambda m, _: setattr(m, "nothing", X[0])),
    "a parameter that was None": (
        _if(lambda m: m.scale is not None), lambda m, _: setattr(m, "scale", nn.Parameter(X[0]))
    ),
    "a bias that is None now": (_if(lambda m: m.linear.bias is None), lambda m, _: setattr(m.linear, "bias", None)),
    "a buffer of another length": (_if(lambda m: len(m.rows) > 0), lambda m, _: setattr(m, "rows", X)),
    "a buffer of other numbers": (
        _if(lambda m: m.rows.dtype == torch.long), lambda m, _: setattr(m, "rows", m.rows.long())
    ),
    "one more parameter": (
        _if(lambda m: len(m.prompts) > 0), lambda m, _: m.prompts.update({"a": nn.Parameter(X[0])})
    ),
    "a function that was not there": (
        lambda m, h: getattr(m, "extra", same)(h), lambda m, _: setattr(m, "extra", centre)
    ),
    "a list that was not there": (_if(lambda m: hasattr(m, "extra")), lambda m, _: setattr(m, "extra", [])),
    "a class attribute that was not there": (
        _if(lambda m: getattr(m, "extra", False)), lambda m, patch: patch.setattr(Asks, "extra", True, raising=False)
    ),
    "an attribute of a parameter that was not there": (
        _if(lambda m: getattr(m.linear.weight, "tag", None)), lambda m, _: setattr(m.linear.weight, "tag", True)
    ),
    "a mode that a function asks for": (asks_for_mode, lambda m, _: m.eval()),
    "what is trained, that a function asks for": (asks_what_is_trained, lambda m, _: m.linear.requires_grad_(False)),
}  # fmt: skip


@pytest.mark.few(5)
@pytest.mark.parametrize(("asked", "change"), ASKED.values(), ids=ASKED)
@pytest.mark.filterwarnings("ignore::graphaug.errors.SparseBackwardLost")
def test_what_is_there_counts_and_of_what_kind(
    asked: Callable[..., Any], change: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(Asks(asked), nn.Linear(6, 6), nn.Linear(6, 3))
    check_dense_after(change, model, monkeypatch)


class Filled(nn.Module):
    """Keeps a table the first time that it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "table"):
            self.table = torch.linspace(0, 1, x.shape[1])
        return self.linear(x) + self.table


def test_a_table_that_is_filled_changes_nothing() -> None:
    aug = ga.rewrite(
        nn.Sequential(Filled(), nn.Linear(6, 6), nn.Linear(6, 3)), "1", stop_grad=True, example_inputs=X
    ).train()
    for _ in range(3):
        aug(X)
    assert aug.plan.backward == "sparse", aug.plan.reason


class Shifted(nn.Module):
    """An opened forward that uses a buffer of its own before the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("shift", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.linear(self.first(x) + self.shift))


@pytest.mark.parametrize("shape", [(6,), (8, 6), (8, 1, 6)])
@pytest.mark.filterwarnings("ignore::graphaug.errors.SparseBackwardLost")
def test_a_tensor_of_opened_code_may_have_another_shape(shape: tuple[int, ...]) -> None:
    model: Any = Shifted()
    aug = ga.rewrite(model, "linear", rate=0.0, stop_grad=True, example_inputs=X).train()
    model.shift = torch.randn(shape)
    torch.testing.assert_close(aug(X), model(X))
    assert aug.plan.backward == ("sparse" if shape == (6,) else "dense")


SCALE = torch.linspace(0.5, 1.0, 6)


class Scaled(Shifted):
    """An opened forward that uses a tensor of no module."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * SCALE)


def test_a_tensor_of_no_module_is_none_of_the_prefix() -> None:
    aug = ga.rewrite(Scaled(), "linear", rate=0.0, stop_grad=True, example_inputs=X).train()
    torch.testing.assert_close(aug(X), aug.original(X))
    assert aug.plan.backward == "sparse", aug.plan.reason


def test_a_model_that_lost_a_module_is_copied() -> None:
    model: Any = Stages()
    aug = ga.rewrite(model, "stages.2.norm", rate=0.0, stop_grad=True, example_inputs=X).train()
    model.norm = None
    for copied in (copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        with pytest.raises(ga.errors.AssumptionViolated, match="norm was removed"):
            copied(X)


@pytest.fixture
def hook_on_all() -> Iterator[Callable[[], Any]]:
    handles: list[Any] = []
    yield lambda: handles.append(register_module_forward_hook(lambda m, args, out: out * 2))
    for handle in handles:
        handle.remove()


def test_a_hook_of_every_module_counts(hook_on_all: Callable[[], Any]) -> None:
    aug = ga.rewrite(network(), "1", rate=0.0, stop_grad=True, example_inputs=X).train()
    hook_on_all()
    kept = aug._parts.split.kept
    assert "hook of every module" in kept.changed()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda aug: pickle.loads(pickle.dumps(aug))])
def test_a_copy_watches_what_is_its_own(copied: Callable[[Any], Any]) -> None:
    aug = ga.rewrite(network(), "1", rate=0.0, stop_grad=True, example_inputs=X).train()
    other = copied(aug)
    aug.original[0].options["centred"] = True
    other(X)
    assert other.plan.backward == "sparse"
    other.original[0].options["centred"] = True
    with pytest.warns(SparseBackwardLost, match="centred") as warned:
        torch.testing.assert_close(other(X), other.original(X))
    assert warned[0].filename == __file__, "it names the line that called the model"


class Padded(nn.Module):
    """Torch's encoder, whose kernels for inference zero what is padded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True)
        self.encoder, self.linear, self.head = (
            nn.TransformerEncoder(layer, 2),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        h = self.linear(self.encoder(x, src_key_padding_mask=padding))
        return self.head(torch.tanh(h).mean(1))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::graphaug.errors.SparseBackwardLost")
@pytest.mark.parametrize("part", ["encoder", "encoder.layers.0", "encoder.layers.1.self_attn"])
def test_torchs_encoder_in_eval_mode_has_other_kernels_without_gradients(part: str) -> None:
    model, x = Padded(), torch.randn(8, 6, 6)
    aug = ga.rewrite(model, "linear", rate=0.0, stop_grad=True, example_inputs=(x, PAD)).train()
    assert aug.plan.backward == "sparse", aug.plan.reason
    model.get_submodule(part).eval()
    torch.testing.assert_close(aug(x, PAD), model(x, PAD))
    assert "is in eval mode" in aug.plan.reason


class Added(nn.Module):
    """A second input is added to the first, before the cut or behind the cast of a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.linear, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.head(torch.tanh(self.linear(torch.tanh(self.first(x) + (c > 0).to(x.dtype) + c))))


@pytest.mark.parametrize("rows", [2, 4, 8])
def test_an_input_of_one_row_in_the_example_may_have_one_for_each(rows: int) -> None:
    model, example = Added(), torch.randn(1, 6)
    aug = ga.rewrite(model, "linear", rate=0.0, stop_grad=True, example_inputs=(X, example)).train()
    assert aug.plan.backward == "sparse", aug.plan.reason
    for c in (torch.randn(rows, 6), example):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(aug(x, c), model(x, c))


class Tied(nn.Module):
    """One parametrised layer before and behind the cut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.linear = parametrizations.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.tanh(self.linear(torch.tanh(self.mix(x)))))


@pytest.mark.parametrize("subset", [0.5, 1.0])
def test_a_cached_weight_keeps_its_gradient(subset: float) -> None:
    model = Tied()
    aug = ga.rewrite(
        model, "linear", rate=0.0, subset=subset, stop_grad=True, backward="sparse", example_inputs=X
    ).train()
    found = []
    for dense in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        with aug.dense() if dense else parametrize.cached():
            aug(X).square().sum().backward()
        found.append([p.grad.clone() for p in model.mix.parameters()])
    torch.testing.assert_close(*found)


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda m: m.register_forward_hook(lambda *_: None),
    "before the forward": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "backward": lambda m: m.register_full_backward_hook(lambda *_: None),
    "before the backward": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_a_plan_that_is_read_has_what_the_next_step_will_do(register: Callable[[nn.Module], Any]) -> None:
    model = nn.Sequential(Block(), nn.Linear(6, 6), nn.Linear(6, 2))
    aug = ga.rewrite(model, at="1", rate=0.0, stop_grad=True, example_inputs=X)
    assert aug.plan.backward == "sparse"
    handle = register(model[0].linear)
    assert aug.plan.backward == "dense"  # without a step, and without a warning
    assert "'0.linear' has another hook" in (aug.plan.reason or "")
    with pytest.warns(SparseBackwardLost):
        aug(X)
    handle.remove()
    assert aug.plan.backward == "sparse"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aug(X).sum().backward()
    model[0] = nn.BatchNorm1d(6)
    assert aug.plan.backward == "dense"
    assert aug.eval().plan.backward == "dense"  # that of the training that was


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_scripted_module_in_front_of_the_cut() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(5, 8), nn.ReLU()))
    model, x = nn.Sequential(scripted, nn.Linear(8, 8), nn.Linear(8, 2)), torch.randn(4, 5)
    aug = ga.rewrite(model, "1", stop_grad=True, example_inputs=x)
    assert aug.plan.backward == "sparse"
    for _ in range(2):
        aug(x).sum().backward()
    ga.verify(aug, x)
