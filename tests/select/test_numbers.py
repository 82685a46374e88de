"""The paper's numbers where they have to be looked for: inside of wrappers, and for blocks that run several times."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from networks import TextNet, tokens
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel

import graphaug as ga
from graphaug.errors import AmbiguousSite, SiteNotFound
from graphaug.select.stages import paper_stages
from graphaug.sites import structure_of
from graphaug.text.simcse import SimCSE

pytestmark = pytest.mark.few(1)


def where(model: nn.Module, number: int, example: Any = None) -> str:
    (site,) = ga.rewrite(model, number, example_inputs=example, dry_run=True, allow_bypass=True).sites
    return str(site.request.target)


class Wrapper(nn.Module):
    def __init__(self, **inside: nn.Module) -> None:
        super().__init__()
        for name, module in inside.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.line(x).tanh()


class Looped(nn.Module):
    """Blocks in the order that is asked for."""

    def __init__(self, count: int, order: list[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(count))
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        for index in self.order:
            x = self.blocks[index](x)
        return x


X = torch.randn(3, 4)


def seen(model: nn.Module, paths: list[str], *inputs: Any, **named: Any) -> list[Tensor]:
    """What forward hooks see of these modules, call by call."""
    found: list[Tensor] = []
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _m, _i, out: found.append(out[0] if isinstance(out, tuple) else out)
        )
        for path in paths
    ]
    model(*inputs, **named)
    for hook in hooks:
        hook.remove()
    return found


# --- shared blocks -------------------------------------------------------------------------------


LONG = pytest.mark.long  # a capture for every number of every layer
ALBERTS = [(3, 2), *(pytest.param(*case, marks=LONG) for case in [(6, 1), (6, 2), (4, 4), (5, 2)])]


@pytest.mark.long
@pytest.mark.parametrize(("layers", "groups"), ALBERTS)
def test_albert_has_as_many_numbers_as_layers(layers: int, groups: int) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "embedding_size": 8, "hidden_size": 16, "num_attention_heads": 2}
    config = AlbertConfig(**sizes, intermediate_size=16, num_hidden_layers=layers, num_hidden_groups=groups)
    model = AlbertModel(config).eval()
    ids = torch.randint(5, 50, (4, 7))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    states = model(**batch, output_hidden_states=True).hidden_states
    assert len(states) == layers + 1

    groups_paths = [f"encoder.albert_layer_groups.{i}" for i in range(groups)]
    calls = seen(model, groups_paths, **batch)
    assert len(calls) == layers
    for number in range(1, layers + 1):  # the state behind layer i is the site of number i
        name, _, call = where(model, number, batch).partition("@")
        own = seen(model, [name], **batch)[int(call or 0)]
        assert torch.equal(own, states[number])
    with pytest.raises(SiteNotFound, match=f"{layers + 1} is out of range"):
        where(model, layers + 1, batch)
    assert where(SimCSE(model), layers + 1, batch) == "head"
    # what is read off the modules alone is what the capture finds
    assert dict(paper_stages(model)) == dict(structure_of(model, batch).stages)


@pytest.mark.long
def test_blocks_that_are_looped_over_are_numbered_as_they_run() -> None:
    model = Looped(2, [0, 1, 0, 1, 1])
    assert [where(model, n) for n in range(6)] == [
        "blocks.0@0.input",
        "blocks.0@0",
        "blocks.1@0",
        "blocks.0@1",
        "blocks.1@1",
        "blocks.1@2",
    ]
    with pytest.raises(SiteNotFound, match="0 to 5"):
        where(model, 6)
    table = {str(site): site.stage for site in ga.sites(model) if site.stage is not None and site.stage > 0}
    assert table == {"blocks.0@0": 1, "blocks.1@0": 2, "blocks.0@1": 3, "blocks.1@1": 4, "blocks.1@2": 5}


def test_one_block_under_several_names_is_numbered_as_it_runs() -> None:
    model = Looped(1, [0, 1, 2])
    model.blocks = nn.ModuleList([model.blocks[0]] * 3)
    assert [where(model, n) for n in (1, 2, 3)] == ["blocks.0@0", "blocks.0@1", "blocks.0@2"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Looped(3, [0, 2]), "'blocks.1' is never called"),
        (Looped(3, [2, 1, 0]), "another order than they are listed in"),
    ],
    ids=["idle", "backwards"],
)
def test_a_number_is_not_guessed(model: nn.Module, reason: str) -> None:
    with pytest.raises(SiteNotFound, match=f"no known numbers: .*{reason}"):
        where(model, 1)
    assert all(site.stage in (None, -1) for site in ga.sites(model))


class Twice(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x) + self.encoder(2 * x)


def test_a_network_that_is_called_twice_has_each_number_twice() -> None:
    model = Twice(Looped(3, [0, 1, 2]))
    with pytest.raises(AmbiguousSite, match=r"'encoder\.blocks\.1' is called 2 times"):
        where(model, 2)
    with pytest.raises(SiteNotFound, match="0 to 3"):
        where(model, 4)
    with pytest.raises(SiteNotFound, match="12 times in 2 passes"):
        where(Twice(Looped(3, [0, 1, 2, 0, 1, 2])), 2)


def test_everywhere_is_every_layer_of_a_shared_block() -> None:
    from graphaug.contrastive.augmented import deep_augmented
    from graphaug.text.config import SimCSEConfig

    model = Looped(1, [0, 0, 0, 0])
    config = SimCSEConfig(from_config="tiny", everywhere=True, text="none")
    with deep_augmented(model, config, lambda: X, "looped") as aug:
        assert [str(target) for target in aug.augmentations] == [
            "blocks.0@0.input",
            *(f"blocks.0@{i}" for i in range(4)),
        ]


# --- wrappers ------------------------------------------------------------------------------------


@pytest.mark.long
def test_wrappers_are_looked_through() -> None:
    expected = ["relu", "layer1", "layer2", "layer3", "layer4", "flatten", "fc"]
    model = Wrapper(backbone=torchvision.models.resnet18(num_classes=8), projector=nn.Linear(8, 4))
    assert [where(model, n) for n in range(7)] == [f"backbone.{name}" for name in expected]
    assert where(Wrapper(outer=model), 4) == "outer.backbone.layer4"
    assert where(model, -1) == "input"
    table = {site.stage: site.path for site in ga.sites(model) if site.stage is not None}
    assert table == {-1: "input", **{i: f"backbone.{name}" for i, name in enumerate(expected)}}


@pytest.mark.long
def test_a_wrapped_timm_network_and_a_wrapped_list_of_blocks() -> None:
    assert where(Wrapper(net=timm.create_model("resnet18")), 3) == "net.layer3"
    assert where(Wrapper(net=TextNet()), 2, tokens(2)) == "net.blocks.1"


@pytest.mark.long
def test_the_head_of_a_wrapped_simcse_is_numbered() -> None:
    sizes = {"vocab_size": 50, "embedding_size": 8, "hidden_size": 16, "num_attention_heads": 2}
    inner = SimCSE(AlbertModel(AlbertConfig(**sizes, intermediate_size=16, num_hidden_layers=3)))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = inner

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask)

    ids = torch.randint(5, 50, (4, 7))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert where(Outer(), 4, batch) == "model.head"


def test_of_two_networks_none_is_guessed() -> None:
    student = torchvision.models.resnet18(num_classes=8)
    for other in (copy.deepcopy(student), Looped(2, [0, 1])):

        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.student, self.other = student, other  # noqa: B023

            def forward(self, x: Tensor) -> Tensor:
                return self.student(x)

        assert dict(paper_stages(Both())) == {}
        with pytest.raises(SiteNotFound, match="it holds several networks: 'student', 'other"):
            where(Both(), 4)
