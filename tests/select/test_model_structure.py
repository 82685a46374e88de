"""The live model behind the selection language: modules, operations, calls and stages of real models."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import timm
import torch
import torchvision
from networks import ConvNet, Mlp, TextNet, Tied, features, fingerprint, images, tokens
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import graphaug as ga
from graphaug.errors import CaptureError, SiteNotFound
from graphaug.select.model_structure import ModelStructure, ancestors
from graphaug.select.stages import block_list, paper_stages
from graphaug.sites import structure_of

pytestmark = pytest.mark.few(2)


def resnet() -> nn.Module:
    return torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 8, 3, 2, 8, 16)


MODELS: dict[str, tuple[Any, Tensor]] = {
    "convnet": (ConvNet, images(2)),
    "textnet": (TextNet, tokens(2)),
    "mlp": (Mlp, features(2)),
    "tied": (Tied, features(2)),
    "resnet": (resnet, images(2, 32)),
    "vit": (vit, images(2, 16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_calls_are_counted_as_forward_hooks_count_them(name: str) -> None:
    build, x = MODELS[name]
    model = build()
    structure = ModelStructure(model, x)
    seen: Counter[str] = Counter()
    for path, module in model.named_modules():
        module.register_forward_hook(lambda *_, path=path: seen.update([path]))
    model(x)
    expected = Counter(seen)  # a capture shows the hooks its example
    inside_torch = [p for p, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    paths = [
        p for p, _ in model.named_modules() if p and not p.startswith(tuple(f"{q}." for q in inside_torch))
    ]
    assert dict(structure.calls(paths)) == {path: expected[path] for path in paths}


@pytest.mark.parametrize(
    ("build", "path", "ops"),
    [
        (ConvNet, "layer1.0", ["add"]),
        (ConvNet, "", ["flatten"]),
        (ConvNet, "stem", []),
        (ConvNet, "fc", []),
        (Mlp, "", []),
        (TextNet, "", ["mul", "add", "mean"]),
        (TextNet, "blocks.1", ["chunk", "scaled_dot_product_attention", "add", "add_1"]),
        (resnet, "layer2.0", ["add"]),
    ],
)  # fmt: skip
def test_the_operations_of_a_forward(build: Any, path: str, ops: list[str]) -> None:
    found = list(ModelStructure(build()).ops(path))
    assert [op for op in ops if op not in found] == []
    assert bool(found) == bool(ops)


def test_modules_are_those_of_named_modules_with_their_classes() -> None:
    model = ConvNet()
    modules = ModelStructure(model).modules
    assert list(modules) == [path for path, _ in model.named_modules()]
    assert modules[""] == ("ConvNet",)
    assert modules["layer1.0.conv1"] == ("Conv2d", "_ConvNd")
    assert "Module" not in modules["layer1"]


def test_a_module_under_two_names_is_one_site() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.alias = self.first
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.alias(x))

    model = Shared()
    structure = ModelStructure(model)
    assert structure.canonical("alias") == "first"
    assert structure.calls(["alias", "first"]) == {"alias": 1, "first": 1}
    plans = [ga.rewrite(model, name, dry_run=True) for name in ("alias", "first")]
    assert plans[0].sites[0].request.target.path == plans[1].sites[0].request.target.path == "first"
    ga.verify(ga.rewrite(model, "alias", stop_grad=True), features())
    assert list(ga.rewrite(model, "alias").state_dict()) == list(model.state_dict())


def test_ancestors_start_at_the_model() -> None:
    assert ancestors("a.b.c") == ["", "a", "a.b"]
    assert ancestors("a") == [""]
    assert ancestors("") == []


# --- stages -------------------------------------------------------------------------------------


def test_the_papers_stages_of_resnets() -> None:
    expected = {0: "relu", 1: "layer1", 2: "layer2", 3: "layer3", 4: "layer4", 5: "flatten", 6: "fc"}
    for name in ("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"):
        with torch.device("meta"):
            assert dict(paper_stages(torchvision.models.get_model(name))) == expected
    with torch.device("meta"):
        timms = paper_stages(timm.create_model("resnet18"))
    assert dict(timms) == {**expected, 0: "act1", 5: "global_pool"}


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet10t", "resnet18"])
def test_every_stage_of_a_timm_resnet_can_be_rewritten(name: str) -> None:
    model = timm.create_model(name, num_classes=3)
    for number in range(-1, 7):
        assert len(ga.rewrite(model, number, dry_run=True).sites) == 1
    aug = ga.rewrite(model, 3, stop_grad=True)
    assert torch.equal(aug.eval()(images(2, 64)), model(images(2, 64)))


def test_the_stages_of_one_list_of_blocks() -> None:
    assert block_list(TextNet()) == "blocks"
    assert block_list(vit()) == "encoder.layers"
    assert block_list(ConvNet()) is None
    assert block_list(Mlp()) is None
    assert dict(paper_stages(TextNet())) == {
        0: "blocks.0.input",
        1: "blocks.0",
        2: "blocks.1",
        3: "blocks.2",
    }
    assert dict(paper_stages(Mlp())) == {}


@pytest.mark.parametrize("number", range(4))
@pytest.mark.long
def test_every_stage_of_a_vision_transformer_resolves(number: int) -> None:
    """Its blocks are named, not numbered: 0 is what enters the first, i what leaves the i-th."""
    model, x = vit(), images(2, 16)
    aug = ga.rewrite(model, number, example_inputs=x, stop_grad=True, backward="dense")
    seen: dict[str, Tensor] = {}
    for i, block in enumerate(model.encoder.layers, 1):
        block.register_forward_hook(lambda *a, i=i: seen.update({f"{i}": a[2]}))
        block.register_forward_pre_hook(lambda _, args, i=i: seen.update({f"{i - 1} in": args[0]}))
    inside: list[Tensor] = []
    aug.deep_augment.register_forward_pre_hook(lambda _, args: inside.append(args[0]))
    torch.manual_seed(0)
    aug(x)
    assert inside[0].shape == (2, 5, 8)
    if number:
        assert inside[0] is seen[str(number)]


@pytest.mark.long
def test_declared_stages_are_timms_feature_info() -> None:
    with torch.device("meta"):
        model = timm.create_model("convnext_atto")
    declared = ModelStructure(model).declared
    assert list(declared) == [info["module"] for info in model.feature_info]
    for i, path in enumerate(declared):
        plan = ga.rewrite(model, f"stage[{i}]", dry_run=True)
        assert plan.sites[0].request.target.path == path


# --- captures -----------------------------------------------------------------------------------


def test_the_same_question_is_answered_once() -> None:
    structure = ModelStructure(ConvNet())
    assert structure.capture(["layer1"]) is structure.capture(["layer1"])
    assert structure.capture(["layer1"]) is not structure.capture(["layer2"])
    assert structure.capture([]) is not structure.capture([], training=False)


@pytest.mark.long
def test_looking_changes_nothing() -> None:
    for build, x in MODELS.values():
        model = build()
        before = fingerprint(model)
        structure = structure_of(model, x)
        structure.ops("")
        structure.calls([path for path in structure.modules if path])
        structure.candidates()
        assert fingerprint(model) == before


def test_a_module_that_cannot_be_opened_stays_closed_in_the_table() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > 0 else x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.plain = Branching(), nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(self.branch(x))

    for x in (None, features()):
        names = [str(s) for s in ga.sites(Outer(), x, depth=3)]
        assert "branch" in names
        assert "plain.0" in names
        assert "branch.inner" not in names
        with pytest.raises(CaptureError, match=r"test_model_structure\.py line \d+"):
            ga.rewrite(Outer(), "branch.inner", example_inputs=x)


def test_a_module_called_under_another_name_inside_a_closed_module():
    """CoaT registers its position encodings at the root and calls them as parts of its blocks."""

    class Part(nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.shared, self.fc = shared, nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.shared(x))

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Linear(4, 4)
            self.part = Part(self.table)

        def forward(self, x):
            return self.part(x)

    model, x = Whole(), torch.randn(6, 4)
    assert ModelStructure(model).calls(["table", "part.shared"]) == {"table": 1, "part.shared": 1}
    aug = ga.rewrite(model, "table", stop_grad=True)
    assert aug.plan.opened == ("part",)
    ga.verify(aug, x)


def test_what_stands_in_the_place_of_a_module_is_said() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_module("registered", None)
            self.plain, self.layers, self.scale = None, [nn.Linear(2, 2)], nn.Parameter(torch.ones(2))
            self.register_buffer("mean", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0](x) * self.scale - self.mean

    model = nn.Sequential(Block(), nn.Linear(2, 2))
    said = {
        "registered": "None",
        "plain": "None",
        "layers": "a list",
        "scale": "a Parameter",
        "mean": "a Tensor",
    }
    for name, words in said.items():
        with pytest.raises(SiteNotFound, match=f": it is {words} in this model, and no module"):
            ga.rewrite(model, f"0.{name}")
    assert ModelStructure(model).held("0", "nothing") == ModelStructure(model).held("", "1") == ""


def test_a_path_without_the_wrapper_is_answered_with_the_whole_path() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = resnet()

        def forward(self, x: Tensor) -> Tensor:
            return self.backbone(x)

    for at, whole in (("layer4", "backbone.layer4"), ("layer4.0.add", "backbone.layer4.0.add")):
        with pytest.raises(SiteNotFound, match=f"Did you mean '{whole}'"):
            ga.rewrite(Wrapper(), at, example_inputs=images(2, 32))
        assert ga.rewrite(Wrapper(), whole, example_inputs=images(2, 32), dry_run=True).sites
