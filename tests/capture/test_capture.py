"""Capture: what is opened, what stays closed, what leaks is checked, and what cannot be captured is said."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import ConvNet, Mlp, Modal, TextNet, TwoOutputs, features, fingerprint, images, tokens
from torch import Tensor, fx, nn

import graphaug as ga
from graphaug.capture.capture import Captured, capture
from graphaug.capture.examples import captured_on_a_guess
from graphaug.capture.inputs.signature import Signature
from graphaug.capture.target import Target
from graphaug.errors import AssumptionViolated, CaptureError, GraphaugError

pytestmark = pytest.mark.few(2)


def captured(model: nn.Module, *opened: str, examples: Any = None, training: bool = True) -> Captured:
    if examples is None:
        signature = captured_on_a_guess(model, training=training).signature
    else:
        signature = Signature.of(model, examples)
    return capture(model, frozenset(opened), signature, training=training)


def called(found: Captured) -> list[str]:
    return [str(n.target) for n in found.graph.nodes if n.op == "call_module"]


# --- opening ------------------------------------------------------------------------------------


def test_a_module_is_a_leaf_unless_it_is_opened() -> None:
    assert called(captured(ConvNet())) == ["stem", "layer1", "layer2", "pool", "fc"]
    assert called(captured(ConvNet(), "layer1")) == ["stem", "layer1.0", "layer1.1", "layer2", "pool", "fc"]
    block = ["conv1", "bn1", "relu", "conv2", "relu"]
    assert called(captured(ConvNet(), "layer2", "layer2.0")) == [
        "stem", "layer1", *(f"layer2.0.{name}" for name in block), "pool", "fc",
    ]  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("build", "opened", "x"),
    [
        (ConvNet, (), images()),
        (ConvNet, ("layer1", "layer1.0", "layer1.1", "layer2", "layer2.0", "stem"), images()),
        (TextNet, ("blocks.0", "blocks.1", "blocks.1.mlp"), tokens()),
        (Mlp, (), features()),
        (TwoOutputs, ("encoder",), features()),
        (Modal, (), features()),
    ],
)
def test_the_graph_computes_what_the_model_computes(
    build: Any, opened: tuple[str, ...], x: Tensor, training: bool
) -> None:
    model = build().train(training)
    found = captured(model, *opened, training=training)
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    result = fx.Interpreter(model, graph=found.graph).run(x)
    for a, b in zip(_tensors(expected), _tensors(result), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def _tensors(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, tuple) else [value]


def test_calls_and_operations_are_numbered_in_the_order_of_the_forward() -> None:
    found = captured(ConvNet(), "layer1", "layer1.0")
    sites = [str(n.meta["site"]) for n in found.graph.nodes if "site" in n.meta]
    assert sites == [
        "stem@0",
        "layer1.0.conv1@0",
        "layer1.0.bn1@0",
        "layer1.0.relu@0",
        "layer1.0.conv2@0",
        "layer1.0.add@0",
        "layer1.0.relu@1",
        "layer1.1@0",
        "layer2@0",
        "pool@0",
        "flatten@0",
        "fc@0",
    ]
    assert found.calls["layer1.0.relu"] == 2


def test_root_parameters_and_buffers_are_looked_up_not_copied() -> None:
    model = TextNet()
    names = {str(n.target) for n in captured(model).graph.nodes if n.op == "get_attr"}
    assert names == {"position", "scale"}


@pytest.mark.parametrize("examples", [None, images()], ids=["no examples", "examples"])
def test_capturing_changes_nothing_and_draws_nothing(examples: Any) -> None:
    model = ConvNet()
    before = fingerprint(model)
    for training in (True, False):
        captured(model, "layer1", "layer1.0", examples=examples, training=training)
    assert fingerprint(model) == before


def test_examples_are_not_computed_with() -> None:
    """The example lies on the meta device, the model counts its real calls."""
    model, calls = ConvNet(), []
    model.stem[0].register_forward_hook(lambda _, args, __: calls.append(type(args[0]).__name__))
    found = captured(model, examples=images())
    shapes = {str(n.target): tuple(n.meta["value"].shape) for n in found.graph.nodes if n.op == "call_module"}
    assert shapes["layer1"] == (6, 6, 8, 8)
    assert shapes["fc"] == (6, 5)
    assert "Tensor" not in calls


def test_examples_may_lie_on_the_meta_device() -> None:
    with torch.device("meta"):
        model, x = ConvNet(), torch.empty(2, 3, 8, 8)
    plan = ga.rewrite(model, "layer1", example_inputs=x).plan
    assert plan.sites[0].shape == (2, 6, 8, 8)
    assert "not compared" not in str(plan)  # the shadow run computes nothing


# --- opened code that looks at its inputs ---------------------------------------------------------


class Looks(nn.Module):
    """Looks at its input in one way, and would compute something else for another."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        match self.kind:
            case "width":
                h = h * 2 if x.shape[-1] == 4 else h
            case "rank":
                h = h.flatten(1) if h.dim() > 3 else h
            case "dtype":
                h = h + 1 if x.dtype == torch.float32 else h
            case "isinstance":
                h = h * 3 if isinstance(x, Tensor) else h
            case "unpack":
                rows, width = h.shape
                h = h.reshape(rows, width)
            case "length":
                h = h + len(x.shape)
            case "rows":
                h = h * x.shape[0]
            case "loop":
                for i in range(x.shape[1]):
                    h = h + i
        return self.last(h)


LOOKS = ["width", "rank", "dtype", "isinstance", "unpack", "length", "rows", "loop"]


@pytest.mark.parametrize("kind", LOOKS)
def test_code_that_looks_at_its_input_is_captured_with_examples(kind: str) -> None:
    model = Looks(kind).eval()
    aug = ga.rewrite(model, "first", example_inputs=features())
    for rows in (1, 2, 6, 9):
        x = features(rows)
        assert torch.equal(aug(x), model(x)), rows
    ga.verify(aug, features())


@pytest.mark.parametrize("kind", LOOKS)
def test_code_that_looks_at_its_input_is_right_or_refuses_without_examples(kind: str) -> None:
    model = Looks(kind)
    aug = ga.rewrite(model, "first", subset=0.0)
    for x in (features(2), features(9), features(6).view(2, 3, 4), features().double()):
        for mode in (True, False):
            try:
                found = aug.train(mode)(x)
            except AssumptionViolated:
                assert mode  # in eval mode the model itself runs
            except (RuntimeError, ValueError) as error:  # of another dtype or rank: the model's own
                with pytest.raises(type(error), match=str(error)[:20]):
                    model.train(mode)(x)
            else:
                assert torch.equal(found, model.train(mode)(x))
    assert torch.equal(aug.train()(features(9)), model.train()(features(9)))


@pytest.mark.parametrize(
    ("kind", "other"),
    [("dtype", torch.ones(3, 4, dtype=torch.float64)), ("rank", torch.ones(2, 2, 2, 4))],
    ids=["dtype", "rank"],
)
def test_a_violated_assumption_raises_and_never_computes(kind: str, other: Tensor) -> None:
    aug = ga.rewrite(Looks(kind), "first", example_inputs=features())
    assert aug.plan.assumptions
    assert all(text in str(aug.plan) for text in aug.plan.assumptions)
    aug.to(other.dtype)
    with pytest.raises(AssumptionViolated, match="captured"):
        aug(other)
    aug.eval()  # there it is the model, which takes these numbers, and fails on this shape
    if kind == "dtype":
        assert torch.equal(aug(other), aug.original(other))
    else:
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            aug(other)


class Decides(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.last = how, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.how == "branch":
            if h.sum() > 0:
                h = -h
        elif self.how == "item":
            h = h * x.max().item()
        elif self.how == "int":
            h = h[: int(x.argmax())]
        return self.last(h)


@pytest.mark.parametrize("examples", [None, features()], ids=["no examples", "examples"])
@pytest.mark.parametrize("how", ["branch", "int"])
def test_control_flow_on_data_is_refused(how: str, examples: Any) -> None:
    model = Decides(how)
    before = fingerprint(model)
    with pytest.raises(CaptureError, match=r"Decides\.forward .*test_capture\.py line \d+"):
        ga.rewrite(model, "first", example_inputs=examples)
    assert fingerprint(model) == before


def test_a_closed_module_may_do_what_it_likes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Decides("branch"))
    aug = ga.rewrite(model, "0", stop_grad=True)
    assert torch.equal(aug.eval()(features()), model(features()))


# --- the traps of fx ------------------------------------------------------------------------------


class Traps(nn.Module):
    """What symbolic tracing is known to lose."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("shift", torch.arange(4.0))
        self.constant = torch.full((4,), 0.5)  # no buffer, a plain attribute

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        match self.kind:
            case "buffer":
                h = h + self.shift.expand(x.shape[0], -1)
            case "attribute":
                h = h * self.constant
            case "literal":
                h = h + torch.tensor([1.0, 2.0, 3.0, 4.0])
            case "factory":
                h = h + torch.arange(x.shape[1]).to(h.dtype)
            case "dropout":
                h = F.dropout(h, 0.5, self.training)
            case "no_grad":
                with torch.no_grad():
                    scale = h.abs().mean()
                h = h / scale
            case "parameter":
                h = F.linear(h, self.last.weight.t().mm(self.last.weight))
            case "inplace":
                h = h.add_(1).mul_(2)
        return self.last(h)


TRAPS = ["buffer", "attribute", "literal", "factory", "dropout", "no_grad", "parameter", "inplace"]


@pytest.mark.parametrize("examples", [None, features()], ids=["no examples", "examples"])
@pytest.mark.parametrize("kind", TRAPS)
def test_what_tracing_is_known_to_lose_is_kept(kind: str, examples: Any) -> None:
    torch.manual_seed(0)
    model = Traps(kind)
    aug = ga.rewrite(model, "first", subset=0.0, example_inputs=examples)
    ga.verify(ga.rewrite(model, "first", stop_grad=True, example_inputs=examples), features())
    grads = []
    for m in (model, aug):
        m.eval()
        for rows in (1, 5):
            out = m(features(rows))
            out.square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        model.constant.fill_(3.0)  # the live tensor, not a copy of its first value
        model.shift.fill_(-1.0)
    assert torch.equal(aug(features()), model(features()))


def test_functional_dropout_is_off_in_eval_and_on_in_training() -> None:
    aug = ga.rewrite(Traps("dropout"), "first", subset=0.0)
    x = features(40)
    assert not torch.equal(aug(x), aug(x))
    aug.eval()
    assert torch.equal(aug(x), aug(x))


# --- signatures -----------------------------------------------------------------------------------


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, double: bool = False, **more: Any) -> Any:
        h = self.first(x)
        h = h if mask is None else h * mask
        return {"out": self.last(h) * (2 if double else 1)}


def test_keyword_only_inputs_are_captured_from_examples() -> None:
    model, x, mask = Keywords().eval(), features(), features(seed=1)
    aug = ga.rewrite(model, "first", example_inputs={"x": x, "mask": mask, "double": True})
    expected = model(x, mask=mask, double=True)
    found = aug(x, mask=mask, double=True)
    assert list(found) == ["out"]
    assert torch.equal(found["out"], expected["out"])
    aug.train()
    for wrong in (
        {},
        {"mask": mask, "double": False},
        {"mask": mask[None]},
        {"mask": mask.long()},
        {"mask": 3},
    ):
        with pytest.raises(AssumptionViolated):
            aug(x, **wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(), "captured with 'x', which this call lacks"),
        (lambda m: m(features(), features()), "takes 1 positional inputs, not 2"),
        (lambda m: m(features(), mask=features()), "captured without 'mask'.*pass it in example_inputs"),
        (lambda m: m(features(), double=True), "captured without 'double'"),
        (lambda m: m(features(), other=3), "captured without 'other'"),
    ],
    ids=["nothing", "two", "mask", "double", "other"],
)
def test_a_call_that_was_not_captured_is_refused(call: Any, message: str) -> None:
    aug = ga.rewrite(Keywords(), "first")
    with pytest.raises(AssumptionViolated, match=message):
        call(aug)
    call_as_before = aug(features(), mask=None, double=False)
    assert call_as_before["out"].shape == (6, 2)


def test_variadic_inputs_are_captured_from_examples() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 2)

        def forward(self, *xs: Tensor) -> Tensor:
            return self.last(sum(xs))

    model = Sum().eval()
    with pytest.raises(CaptureError, match="needs example_inputs"):
        ga.rewrite(model, "last")
    aug = ga.rewrite(model, "last", example_inputs=(features(), features()))
    x, y = features(seed=3), features(seed=4)
    assert torch.equal(aug(x, y), model(x, y))


# --- real models ----------------------------------------------------------------------------------


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("build", "at", "size"),
    [
        (
            lambda: torchvision.models.VisionTransformer(16, 8, 2, 2, 8, 16),
            "encoder.layers.encoder_layer_1.mlp",
            16,
        ),
        (
            lambda: torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2]),
            "features.1.0.mlp",
            32,
        ),
        (torchvision.models.squeezenet1_1, "features.6.expand3x3", 64),
        (lambda: torchvision.models.DenseNet(4, (2, 2), 8), "features.denseblock2.denselayer1.conv1", 32),
        (lambda: torchvision.models.shufflenet_v2_x0_5(), "stage3.1.branch2", 64),
        (lambda: torchvision.models.mobilenet_v3_small(), "features.4.block.2.fc1", 64),
    ],
    ids=["vit", "swin", "squeezenet", "densenet", "shufflenet", "mobilenet"],
)
@pytest.mark.long
def test_deep_inside_real_models(build: Any, at: str, size: int) -> None:
    torch.manual_seed(0)
    model, x = build(), images(4, size)
    aug = ga.rewrite(model, at, stop_grad=True, allow_bypass=True, example_inputs=x)
    ga.verify(aug, x, tolerance=1e-4)


def test_an_unknown_failure_in_opened_code_names_its_line() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("a fuse blew")

    with pytest.raises(
        CaptureError, match=r"needs example_inputs.*_capture\.py line \d+\): RuntimeError: a fuse"
    ):
        ga.rewrite(Fails(), "first")


def test_errors_of_capture_are_graphaugs() -> None:
    assert issubclass(CaptureError, GraphaugError)
    assert Target("layer1", None, 0) != Target("layer1", None, 1)


def test_a_module_that_fills_the_list_it_is_given():
    """HRNet's stages put their branches' outputs into the list of their inputs."""

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, xs):
            xs[0], xs[1] = self.first(xs[0]), self.second(xs[1])
            return xs[0] + xs[1]

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage, self.head = Stage(), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.stage([x, 2 * x]))

    model, x = Whole(), torch.randn(6, 4)
    ga.verify(ga.rewrite(model, at="stage", stop_grad=True, example_inputs=x), x)


def test_an_assumption_behind_many_residual_additions_stays_short():
    """Spelled out in full, it would have 2^60 terms."""

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            for _ in range(60):
                x = x + x.tanh()
            if x.shape[1] == 4:
                x = self.fc(x)
            return self.head(x)

    plan = ga.rewrite(Deep(), at="fc", example_inputs=torch.randn(4, 4), dry_run=True)
    assert all(len(text) < 200 for text in plan.assumptions)


@pytest.mark.long
def test_pairs_through_many_residual_blocks_are_described_at_once():
    """Every block's pair is unpacked, which the graph relies on; followed through all blocks it would be 2^40 steps."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, y):
            return x + self.fc(y), None

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.head = nn.ModuleList([Block() for _ in range(40)]), nn.Linear(4, 2)

        def forward(self, x):
            for block in self.blocks:
                x, _ = block(x, x)
            return self.head(x)

    for examples in (torch.randn(4, 4), None):
        plan = ga.rewrite(Deep(), at="blocks.39", example_inputs=examples, dry_run=True)
        assert len(plan.assumptions) == 40
        assert all(len(text) < 200 for text in plan.assumptions)


def test_the_line_that_is_named_is_the_users_and_not_the_standard_librarys() -> None:
    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(copy.deepcopy(self.body(x).detach()))

    line = inspect.getsourcelines(Copies.forward)[1] + 1
    with pytest.raises(CaptureError, match=rf"it copies the data in .* \(test_capture\.py line {line}\)"):
        ga.rewrite(Copies(), "body", example_inputs=torch.randn(6, 4))
