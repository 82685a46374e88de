"""Compiled: no graph break, no recompile while the rate changes, the same numbers as without."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import graphaug as ga

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # inductor warns about the machine


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def blocks(**options: Any) -> nn.Module:
    """Two of ResNet's blocks with their BatchNorms, the second with a projection."""
    down = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, options["num_classes"]))
    return nn.Sequential(nn.Conv2d(3, 8, 3), BasicBlock(8, 8), BasicBlock(8, 16, 2, down), *pool)


def vit(**options: Any) -> nn.Module:
    """A narrow ViT of four blocks."""
    return torchvision.models.VisionTransformer(64, 16, 4, 3, 48, 96, num_classes=options["num_classes"])


ARCHITECTURES = {
    "blocks": (blocks, "2", (4, 3, 32, 32)),
    "resnet18": (torchvision.models.resnet18, "layer4", (4, 3, 32, 32)),
    "convnext_tiny": (torchvision.models.convnext_tiny, "features.5", (2, 3, 32, 32)),
    "vit": (vit, "encoder.layers.encoder_layer_2", (2, 3, 64, 64)),
    "vit_b_16": (
        functools.partial(torchvision.models.vit_b_16, image_size=64),
        "encoder.layers.encoder_layer_10",
        (2, 3, 64, 64),
    ),
}


def step(model: nn.Module, x: Tensor) -> Tensor:
    model.zero_grad()
    loss = (model(x) - 1).square().mean()
    loss.backward()
    return loss.detach()


# Inductor's C++ compiler takes minutes for the larger ones on two cores; tracing, guards and autograd are the same.
@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("blocks", "inductor"),
        ("convnext_tiny", "aot_eager"),
        ("vit", "aot_eager"),
        ("resnet18", "inductor"),
        ("convnext_tiny", "inductor"),
        ("vit_b_16", "inductor"),
    ],
)
def test_a_compiled_architecture_trains_and_evaluates(name: str, backend: str) -> None:
    torch.manual_seed(0)
    build, at, shape = ARCHITECTURES[name]
    x, model = torch.randn(shape), build(num_classes=10, weights=None)
    for module in model.modules():  # stochastic depth and dropout draw other numbers when compiled
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    nn.init.normal_(list(model.parameters())[-2], std=0.1)  # the head of a ViT starts at zero
    aug = ga.rewrite(model, at, rate=1.0, subset=1.0, stop_grad=True, backward="dense")
    compiled = torch.compile(aug, fullgraph=True, backend=backend)

    # all of it dropped: nothing is random, so that values and gradients can be compared
    frozen = {n: b.clone() for n, b in model.named_buffers()}
    expected, gradients = step(aug, x), {n: p.grad for n, p in model.named_parameters()}
    model.load_state_dict(frozen, strict=False)
    found = step(compiled, x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    reached = 0
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[n], rtol=2e-2, atol=1e-4)
        reached += bool(p.grad is not None and p.grad.any())
    assert 0 < reached < len(gradients)  # nothing below the cut

    with torch._dynamo.config.patch(error_on_recompile=True):
        losses = []
        aug.set_subset(0.5)
        for rate in (0.1, 0.3, 0.5, 0.7, 0.9):
            aug.set_rate(rate)
            losses.append(step(compiled, x))
        assert torch.isfinite(torch.stack(losses)).all()

    compiled.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model.eval()(x), rtol=1e-3, atol=1e-4)
        assert torch.equal(aug(x), model(x))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "channel"},
        {"granularity": "position", "sampling": "bernoulli", "stop_grad": True},
        {"pairing": "one-sided", "stop_grad": True},
    ],
    ids=str,
)
@pytest.mark.long
def test_every_option_compiles_and_settings_do_not_recompile(
    small: nn.Module, options: dict[str, object]
) -> None:
    aug = ga.rewrite(small, "1", rate=0.5, subset=0.25, backward="dense", **options)
    compiled, x = torch.compile(aug, fullgraph=True), torch.randn(8, 16)
    step(compiled, x)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rate, subset in ((0.2, 0.5), (1.0, 0.125), (0.0, 0.0)):
            aug.set_rate(rate)
            aug.set_subset(subset)
            step(compiled, x)
        torch.testing.assert_close(compiled(x), small(x))  # rate 0


@pytest.mark.parametrize("backward", ["dense", "sparse"])
@pytest.mark.long
def test_the_model_is_traced_once(small: nn.Module, backward: str) -> None:
    """Dynamo begins again where it takes a setting for a Python number that it is not."""
    torch._dynamo.utils.clear_compilation_metrics()
    x = torch.randn(8, 16)
    aug = ga.rewrite(
        small, "1", rate=0.3, subset=0.25, stop_grad=True, backward=backward, example_inputs=(x,)
    )
    step(torch.compile(aug, fullgraph=True, backend="aot_eager"), x)
    (metrics, *_) = torch._dynamo.utils.get_compilation_metrics()
    assert metrics.restart_reasons == set()


@pytest.mark.long
def test_another_subset_makes_no_symbolic_shapes(small: nn.Module) -> None:
    """A sparse step is compiled for one subset: symbols would make that slower, and serve no other."""
    sizes: list[list[Any]] = []

    def backend(graph: Any, inputs: Any) -> Any:
        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        sizes.append([size for value in values if isinstance(value, Tensor) for size in value.shape])
        return graph

    x = torch.randn(8, 16)
    aug = ga.rewrite(small, "1", subset=0.25, stop_grad=True, backward="sparse", example_inputs=(x,))
    compiled = torch.compile(aug, fullgraph=True, backend=backend)
    for subset in (0.25, 0.5, 0.75):
        aug.set_subset(subset)
        compiled(x)
    assert len(sizes) == 3
    assert all(type(size) is int for graph in sizes for size in graph)


def test_the_compiled_node_augments_the_planned_rows() -> None:
    """On ones through a model that does nothing else, rows and their gradients can be counted."""
    model, ones = nn.Sequential(nn.Identity(), nn.Identity()), torch.ones(10, 64)
    aug = ga.rewrite(model, "0", rate=0.5, subset=0.5, stop_grad=True, example_inputs=ones)
    compiled = torch.compile(aug, fullgraph=True)
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.ones(10, 64, requires_grad=True)
        out = compiled(x)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        changed = (out != 1).any(1)
        assert int(changed.sum()) == 5
        assert torch.equal((gradient == 0).all(1), changed)
        assert torch.isin(out.detach(), torch.tensor([0.0, 1.0, 2.0])).all()


@pytest.mark.long
def test_train_and_eval_switch_before_and_after_compiling(small: nn.Module) -> None:
    aug = ga.rewrite(small, "1", rate=1.0, subset=1.0)
    aug.eval()
    compiled, x = torch.compile(aug, fullgraph=True), torch.randn(4, 16)
    torch.testing.assert_close(compiled(x), small(x))
    compiled.train()
    bias = small[2].bias.detach().expand(4, 8)
    torch.testing.assert_close(compiled(x).detach(), bias)
    compiled.eval()
    torch.testing.assert_close(compiled(x), small(x))


def test_a_compiled_model_is_refused_with_the_right_order(small: nn.Module) -> None:
    with pytest.raises(ga.GraphaugError, match="rewrite first, then compile"):
        ga.rewrite(torch.compile(small), "1")
    with pytest.raises(ga.GraphaugError, match="the module inside the wrapper"):
        ga.strip(torch.compile(ga.rewrite(small, "1")))


class AsksForItsWidth(nn.Module):
    """A forward that refuses what has another width, by one of several questions."""

    def __init__(self, width: int, question: str) -> None:
        super().__init__()
        self.body, self.head, self.width, self.question = (
            nn.Linear(width, 8),
            nn.Linear(8, 2),
            width,
            question,
        )

    def forward(self, x: Tensor) -> Tensor:
        refused = {
            "!=": lambda n: n != self.width,
            "<": lambda n: n < self.width,
            "%": lambda n: n % 2 == 1,
            "==": lambda n: False,
        }[self.question]
        if refused(x.shape[1]):
            raise ValueError("another width")
        if self.question == "==":
            assert x.shape[1] == self.width
        return self.head(self.body(x))


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("question", ["!=", "==", "<", "%"])
def test_what_is_asked_of_a_size_may_be_a_symbol_in_compiled_code(
    question: str, dynamic: bool | None
) -> None:
    for width in (8, 6, 4):  # behind the first, torch takes the width for one that changes
        model = AsksForItsWidth(width, question)
        aug = ga.rewrite(model, at="body", subset=0.0, example_inputs=torch.randn(6, width))
        fast = torch.compile(aug, fullgraph=True, dynamic=dynamic, backend="eager")
        for rows in (6, 9):
            x = torch.randn(rows, width)
            assert torch.equal(fast(x), model(x))
        with pytest.raises(Exception, match=r"Call rewrite again|Observed exception|captured for"):
            fast(torch.randn(6, width - 1))
