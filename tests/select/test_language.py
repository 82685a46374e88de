"""The selection language, as one table: a spelling, a model, and the sites or the error it has to give."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from graphaug.capture.target import Target
from graphaug.errors import (
    AmbiguousSite,
    CaptureError,
    GraphaugError,
    InvalidOption,
    SelectorError,
    SiteCountMismatch,
    SiteNotFound,
)
from graphaug.select import resolve as sl
from graphaug.select.language import parse
from graphaug.select.resolve import resolve
from graphaug.select.structure import StaticStructure

M = "Module"


def tree(root: str, *entries: str) -> dict[str, tuple[str, ...]]:
    """``"path:Class,Base"`` entries to the modules of an structure."""
    modules = {"": (root, M)}
    for entry in entries:
        path, _, classes = entry.partition(":")
        modules[path] = (*classes.split(","), M)
    return modules


@dataclass
class Site:
    path: str
    op: str | None
    call: int | None
    shape: tuple[int, ...] | None
    target: Target
    module: Any = None


def resnet18() -> StaticStructure:
    entries = ["conv1:Conv2d,_ConvNd", "bn1:BatchNorm2d,_BatchNorm", "relu:ReLU", "maxpool:MaxPool2d"]
    operations, called = {"": ("flatten",)}, {}
    for stage in range(1, 5):
        entries.append(f"layer{stage}:Sequential")
        for block in range(2):
            path = f"layer{stage}.{block}"
            entries.append(f"{path}:BasicBlock")
            entries += [f"{path}.conv1:Conv2d,_ConvNd", f"{path}.bn1:BatchNorm2d,_BatchNorm"]
            entries += [f"{path}.relu:ReLU"]
            entries += [f"{path}.conv2:Conv2d,_ConvNd", f"{path}.bn2:BatchNorm2d,_BatchNorm"]
            operations[path], called[f"{path}.relu"] = ("add",), 2
            if stage > 1 and block == 0:
                entries += [f"{path}.downsample:Sequential", f"{path}.downsample.0:Conv2d,_ConvNd"]
                entries += [f"{path}.downsample.1:BatchNorm2d,_BatchNorm"]
    entries += ["avgpool:AdaptiveAvgPool2d", "fc:Linear"]
    stages = {0: "relu", **{i: f"layer{i}" for i in range(1, 5)}, 5: "flatten", 6: "fc"}
    sites = [
        Site("layer4.1.relu", None, 0, (2, 512, 7, 7), Target("layer4.1.relu", call=0)),
        Site("layer4.1.relu", None, 1, (2, 512, 7, 7), Target("layer4.1.relu", call=1)),
        Site("layer4.1", "add", None, (2, 512, 7, 7), Target("layer4.1", "add")),
        Site("fc", None, 0, (2, 1000), Target("fc", call=0)),  # called once, and numbered all the same
    ]
    return StaticStructure("ResNet", tree("ResNet", *entries), stages, (), operations, called, sites)


def bert() -> StaticStructure:
    entries = ["embeddings:BertEmbeddings", "encoder:BertEncoder", "encoder.layer:ModuleList"]
    for i in range(12):
        path = f"encoder.layer.{i}"
        entries += [f"{path}:BertLayer,GradientCheckpointingLayer", f"{path}.attention:BertAttention"]
        entries += [f"{path}.attention.self:BertSelfAttention", f"{path}.output:BertOutput"]
    entries += ["pooler:BertPooler", "pooler.dense:Linear"]
    operations = {f"encoder.layer.{i}.output": ("add", "add_1") for i in range(12)}
    stages = {0: "embeddings", **{i + 1: f"encoder.layer[{i}]" for i in range(12)}, 13: "pooler"}
    declared = tuple(f"encoder.layer.{i}" for i in range(12))
    called = {"encoder.layer": 0}
    return StaticStructure("BertModel", tree("BertModel", *entries), stages, declared, operations, called)


def vit() -> StaticStructure:
    entries = ["patch_embed:PatchEmbed", "patch_embed.proj:Conv2d", "pos_drop:Dropout", "blocks:Sequential"]
    for i in range(4):
        entries += [f"blocks.{i}:Block", f"blocks.{i}.attn:Attention", f"blocks.{i}.mlp:Mlp"]
        entries += [f"blocks.{i}.mlp.act:GELU", f"blocks.{i}.drop_path:Identity"]
    entries += ["norm:LayerNorm", "head:Linear"]
    called = {f"blocks.{i}.drop_path": 2 for i in range(4)}
    operations = {"": ("cat", "add"), **{f"blocks.{i}": ("add", "add_1") for i in range(4)}}
    declared = ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    modules = tree("VisionTransformer", *entries)
    return StaticStructure("VisionTransformer", modules, {}, declared, operations, called)


def odd() -> StaticStructure:
    """Names that collide with the language itself."""
    modules = tree(
        "Odd",
        "input:Linear",
        "stage:ModuleList",
        "stage.0:Linear",
        "stage.1:Linear",
        "Linear:Block",
        "Linear.input:Identity",
        "Linear.out:Linear",
        "box:ModuleDict",
        "box.a*b:Linear",
        "box.a-b:Linear",
        "box.axb:Linear",
        "box.my key:Linear",
    )
    called = {"stage": 0, "box": 0}
    return StaticStructure("Odd", modules, {0: "stage[0]"}, ("box.axb",), {"": ("add", "box")}, called)


def shared() -> StaticStructure:
    """Called often, never, and in containers that are only containers."""
    modules = tree(
        "Shared",
        "cell:Cell",
        "cell.gate:Linear",
        "unused:Linear",
        "spare:ModuleDict",
        "spare.left:Dropout",
        "spare.right:Dropout",
        "out:Linear",
    )
    called = {"cell": 5, "cell.gate": 5, "unused": 0, "spare": 0, "spare.left": 0, "spare.right": 0}
    return StaticStructure("Shared", modules, operations={"cell": ("tanh",)}, called=called)


def chain() -> StaticStructure:
    """An nn.Sequential as the model: its children are numbers."""
    modules = tree("Sequential", "0:Linear", "1:ReLU", "2:Sequential", "2.0:Linear")
    return StaticStructure("Sequential", modules)


def wrapped() -> StaticStructure:
    """A ResNet inside of another model, and blocks in which something is no module."""
    inner = resnet18()
    modules = {f"backbone.{path}".removesuffix("."): names for path, names in inner.modules.items()}
    modules = {"": ("Wrapper", M), **modules, "head": ("Linear", M)}
    held = {f"layer{i}.{j}.downsample": "None" for i, j in ((1, 0), (1, 1), (2, 1), (3, 1), (4, 1))}
    held = {f"backbone.{path}": said for path, said in held.items()} | {
        "layers": "a list",
        "token": "a Parameter",
    }
    operations = {f"backbone.{path}".removesuffix("."): ops for path, ops in inner.operations.items()}
    return StaticStructure("Wrapper", modules, operations=operations, attributes=held)


RESNET, BERT, VIT, ODD, SHARED, CHAIN = resnet18(), bert(), vit(), odd(), shared(), chain()
WRAPPED = wrapped()
BLOCKS = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]


class ReLU: ...


class Linear: ...


class Sequential: ...


class Conv3d: ...


def wide(site: Any) -> bool:
    return site.shape[-1] == 7


FOUND: list[tuple[Any, StaticStructure, list[str]]] = [
    # exact paths
    ("layer4", RESNET, ["layer4"]),
    ("layer4.1", RESNET, ["layer4.1"]),
    ("relu", RESNET, ["relu"]),
    ("encoder.layer.11.attention.self", BERT, ["encoder.layer.11.attention.self"]),
    ("0", CHAIN, ["0"]),
    ("2.0", CHAIN, ["2.0"]),
    # odd names are still exact paths, and exact beats every other reading
    ("box.a*b", ODD, ["box.a*b"]),
    ("box.a-b", ODD, ["box.a-b"]),
    ("box.my key", ODD, ["box.my key"]),
    ("input", ODD, ["input"]),
    ("Linear", ODD, ["Linear"]),
    ("Linear.input", ODD, ["Linear.input"]),
    ("box.a*", ODD, ["box.a*b", "box.a-b", "box.axb"]),
    # calls
    ("layer4.1.relu@0", RESNET, ["layer4.1.relu@0"]),
    ("layer4.1.relu@1", RESNET, ["layer4.1.relu@1"]),
    ("layer4@0", RESNET, ["layer4"]),
    ("layer4.*.relu@1", RESNET, ["layer4.0.relu@1", "layer4.1.relu@1"]),
    ("**.relu@1", RESNET, [f"{block}.relu@1" for block in BLOCKS]),
    ("cell@4", SHARED, ["cell@4"]),
    ("cell.tanh@2", SHARED, ["cell.tanh@2"]),
    (r"re:layer4\.\d\.relu@0", RESNET, ["layer4.0.relu@0", "layer4.1.relu@0"]),
    # operations
    ("layer4.1.add", RESNET, ["layer4.1.add"]),
    ("encoder.layer.3.output.add_1", BERT, ["encoder.layer.3.output.add_1"]),
    ("flatten", RESNET, ["flatten"]),
    ("add", VIT, ["add"]),
    ("layer4.*.add", RESNET, ["layer4.0.add", "layer4.1.add"]),
    ("**.add", RESNET, [f"{block}.add" for block in BLOCKS]),
    ("**.add", VIT, ["add", *(f"blocks.{i}.add" for i in range(4))]),
    ("blocks[1].add_1", VIT, ["blocks.1.add_1"]),
    ("blocks[1:3].add", VIT, ["blocks.1.add", "blocks.2.add"]),
    ("box.add", replace(ODD, operations={"box": ("add",)}, called={}), ["box.add"]),
    # Python indexing
    ("encoder.layer[8]", BERT, ["encoder.layer.8"]),
    ("encoder.layer[-1]", BERT, ["encoder.layer.11"]),
    ("encoder.layer[8:11]", BERT, ["encoder.layer.8", "encoder.layer.9", "encoder.layer.10"]),
    ("encoder.layer[10:]", BERT, ["encoder.layer.10", "encoder.layer.11"]),
    ("encoder.layer[:2]", BERT, ["encoder.layer.0", "encoder.layer.1"]),
    ("encoder.layer[::5]", BERT, ["encoder.layer.0", "encoder.layer.5", "encoder.layer.10"]),
    ("encoder.layer[:]", BERT, [f"encoder.layer.{i}" for i in range(12)]),
    ("encoder.layer[1::-1]", BERT, ["encoder.layer.0", "encoder.layer.1"]),
    ("encoder.layer[0:3].attention", BERT, [f"encoder.layer.{i}.attention" for i in range(3)]),
    ("encoder[0][2]", BERT, ["encoder.layer.2"]),
    ("encoder.layer[0][1:]", BERT, ["encoder.layer.0.output"]),
    ("layer*[1]", RESNET, [f"layer{i}.1" for i in range(1, 5)]),
    ("layer4[1].relu@1", RESNET, ["layer4.1.relu@1"]),
    ("layer2[0].downsample[0]", RESNET, ["layer2.0.downsample.0"]),
    ("[0]", CHAIN, ["0"]),
    ("[:2]", CHAIN, ["0", "1"]),
    ("[2][0]", CHAIN, ["2.0"]),
    # declared stages
    ("stage[2]", VIT, ["blocks.2"]),
    ("stage[-1]", BERT, ["encoder.layer.11"]),
    ("stage[1:3]", VIT, ["blocks.1", "blocks.2"]),
    ("stage[0].mlp", VIT, ["blocks.0.mlp"]),
    ("stage[0][1]", VIT, ["blocks.0.mlp"]),
    ("stage[1]", ODD, ["stage.1"]),
    # globs
    ("encoder.layer.*", BERT, [f"encoder.layer.{i}" for i in range(12)]),
    ("layer*", RESNET, ["layer1", "layer2", "layer3", "layer4"]),
    ("*.mlp", replace(VIT, modules=tree("V", "a:A", "a.mlp:B", "a.c:C", "a.c.mlp:B")), ["a.mlp"]),
    ("**.mlp.act", VIT, [f"blocks.{i}.mlp.act" for i in range(4)]),
    ("layer4.**.conv2", RESNET, ["layer4.0.conv2", "layer4.1.conv2"]),
    ("**.conv1", RESNET, ["conv1", *(f"{block}.conv1" for block in BLOCKS)]),
    ("**", CHAIN, ["0", "1", "2", "2.0"]),
    ("**.**", CHAIN, ["0", "1", "2", "2.0"]),
    ("2.**", CHAIN, ["2", "2.0"]),
    ("*", CHAIN, ["0", "1", "2"]),
    ("*e*.0.d*e", RESNET, ["layer2.0.downsample", "layer3.0.downsample", "layer4.0.downsample"]),
    # regular expressions
    (r"re:layer[34]\.\d", RESNET, ["layer3.0", "layer3.1", "layer4.0", "layer4.1"]),
    ("re:fc|avgpool", RESNET, ["avgpool", "fc"]),
    ("re:.*", CHAIN, ["0", "1", "2", "2.0"]),
    # classes
    ("BasicBlock", RESNET, BLOCKS),
    ("GradientCheckpointingLayer", BERT, [f"encoder.layer.{i}" for i in range(12)]),
    ("ReLU@1", RESNET, [f"{block}.relu@1" for block in BLOCKS]),
    ("BasicBlock.input", RESNET, [f"{block}.input" for block in BLOCKS]),
    ("Sequential", CHAIN, ["2"]),
    (Linear, BERT, ["pooler.dense"]),
    (ReLU, CHAIN, ["1"]),
    # the input, and the inputs of things
    ("input", RESNET, ["input"]),
    (-1, RESNET, ["input"]),
    (-1, ODD, ["input"]),
    ("layer4.input", RESNET, ["layer4.input"]),
    ("layer4.1.add.input", RESNET, ["layer4.1.add.input"]),
    ("layer4.1.relu@1.input", RESNET, ["layer4.1.relu@1.input"]),
    ("layer4.1.relu.input@1", RESNET, ["layer4.1.relu@1.input"]),
    ("layer4.*.input", RESNET, ["layer4.0.input", "layer4.1.input"]),
    ("flatten.input", RESNET, ["flatten.input"]),
    ("encoder.layer[8].input", BERT, ["encoder.layer.8.input"]),
    ("Linear.input.input", ODD, ["Linear.input.input"]),
    # the paper's numbering
    (0, RESNET, ["relu"]),
    (4, RESNET, ["layer4"]),
    (5, RESNET, ["flatten"]),
    (6, RESNET, ["fc"]),
    (12, BERT, ["encoder.layer.11"]),
    (13, BERT, ["pooler"]),
    # predicates
    (wide, RESNET, ["layer4.1.relu@0", "layer4.1.relu@1", "layer4.1.add"]),
    (lambda site: site.op is not None, RESNET, ["layer4.1.add"]),
    (lambda site: site.path == "fc", RESNET, ["fc"]),
    # lists: in their order, without duplicates
    (["fc", "layer4", "fc"], RESNET, ["fc", "layer4"]),
    (("layer*", "layer1", 0), RESNET, ["layer1", "layer2", "layer3", "layer4", "relu"]),
    ([-1, "input", "layer1.input"], RESNET, ["input", "layer1.input"]),
    # what is never called is left out of patterns and classes
    ("**.drop_path@1", VIT, [f"blocks.{i}.drop_path@1" for i in range(4)]),
    ("*", replace(SHARED, called={**SHARED.called, "cell": 1}), ["cell", "out"]),
    ("encoder.*", replace(BERT, called={"encoder.layer": 1}), ["encoder.layer"]),
]

LOST: list[tuple[Any, StaticStructure, type[GraphaugError], list[str]]] = [
    # misses say what was meant
    (
        "layer5",
        RESNET,
        SiteNotFound,
        [
            "'layer5' matches nothing in ResNet. Did you mean 'layer4', 'layer3', 'layer2'?\n"
            "    graphaug.sites(model) lists sites to choose from."
        ],
    ),
    ("layer4.1.rellu", RESNET, SiteNotFound, ["Did you mean 'layer4.1.relu'?"]),
    ("layr4.1.add", RESNET, SiteNotFound, ["'layer4.1.add'"]),
    ("layer4.1.ad", RESNET, SiteNotFound, ["Did you mean 'layer4.1.add'"]),
    ("layer4.*.rellu", RESNET, SiteNotFound, ["'layer4.*.relu'"]),
    ("Layer4", RESNET, SiteNotFound, ["Did you mean 'layer4'"]),
    ("FLATTEN", RESNET, SiteNotFound, ["'flatten'"]),
    ("basicblock", RESNET, SiteNotFound, ["'BasicBlock'"]),
    ("BasicBlok", RESNET, SiteNotFound, ["'BasicBlock'"]),
    ("conv2", RESNET, SiteNotFound, ["'**.conv2'"]),
    ("attention.self", BERT, SiteNotFound, ["'**.attention.self'"]),
    ("encoder.layr[8]", BERT, SiteNotFound, ["'encoder.layer[8]'"]),
    ("encoder.0.attention", BERT, SiteNotFound, ["'encoder.layer.0.attention'"]),
    ("inptu", RESNET, SiteNotFound, ["'input'"]),
    ("nn.Conv2d", RESNET, SiteNotFound, ["'Conv2d'"]),
    ("layer5.input", RESNET, SiteNotFound, ["'layer5.input' matches nothing", "'layer4'"]),
    # the same path below a module that was not named: each place, or a pattern for many
    ("layer4", WRAPPED, SiteNotFound, ["in Wrapper. Did you mean 'backbone.layer4'?"]),
    ("layer4.1", WRAPPED, SiteNotFound, ["Did you mean 'backbone.layer4.1'?"]),
    ("layer4[1]", WRAPPED, SiteNotFound, ["Did you mean 'backbone.layer4.1'?"]),
    ("layer4.1.add", WRAPPED, SiteNotFound, ["Did you mean 'backbone.layer4.1.add'?"]),
    ("layer4.*", WRAPPED, SiteNotFound, ["Did you mean 'backbone.layer4.0', 'backbone.layer4.1'?"]),
    ("layer*.0", WRAPPED, SiteNotFound, ["Did you mean '**.layer*.0'"]),
    ("attention.self", BERT, SiteNotFound, ["Did you mean '**.attention.self'?"]),
    # what is there, and is no module
    (
        "backbone.layer1.0.downsample",
        WRAPPED,
        SiteNotFound,
        [
            "matches nothing in Wrapper: it is None in this model, and no module. Did you mean 'backbone.layer4.0"
        ],
    ),
    (
        "backbone.layer1.0.downsample.0",
        WRAPPED,
        SiteNotFound,
        [": 'backbone.layer1.0.downsample' is None in this model", "'backbone.layer2.0.downsample.0'"],
    ),
    ("backbone.layer1[1].downsample", WRAPPED, SiteNotFound, [": it is None in this model"]),
    ("backbone.layer1.*.downsample", WRAPPED, SiteNotFound, [": it is None in this model"]),
    ("backbone.layer1.0.downsample.input", WRAPPED, SiteNotFound, ["downsample' is None in this model"]),
    ("layers[0]", WRAPPED, SiteNotFound, [": 'layers' is a list in this model, and no module."]),
    ("token", WRAPPED, SiteNotFound, [": it is a Parameter in this model, and no module."]),
    ("input.input", RESNET, SiteNotFound, ["matches nothing"]),
    ("input@0", RESNET, SiteNotFound, ["'input@0' matches nothing", "'input'"]),
    ("zzzzzz", RESNET, SiteNotFound, ["'zzzzzz' matches nothing in ResNet.\n"]),
    ("ResNet", RESNET, SiteNotFound, ["the model itself", "'input'"]),
    ("relu", VIT, SiteNotFound, ["matches nothing"]),
    ("layer4.1.relu.1", RESNET, SiteNotFound, ["matches nothing", "'layer4.1.relu'"]),
    ("layer4.*.add*", RESNET, SiteNotFound, ["matches nothing"]),
    (Conv3d, RESNET, SiteNotFound, ["no module in ResNet is a Conv3d", "'Conv2d'"]),
    # a regex is never inferred, but recognised
    ("layer[34]", RESNET, SiteNotFound, ["write 're:layer[34]'"]),
    ("layer.*conv1", RESNET, SiteNotFound, ["write 're:layer.*conv1'"]),
    ("layer(3|4)", RESNET, SiteNotFound, ["write 're:layer(3|4)'"]),
    (r"layer[34]\.\d", RESNET, SelectorError, ["'re:'"]),
    ("re:layer", RESNET, SiteNotFound, ["part of 'layer1'", "whole path"]),
    ("re:Zq", RESNET, SiteNotFound, ["matches nothing"]),
    (r"re:layer4\.1\.add", RESNET, SiteNotFound, ["matches nothing"]),  # modules only
    # out of range
    ("encoder.layer[12]", BERT, SiteNotFound, ["'encoder.layer' has 12 children, [0] to [11]"]),
    ("encoder.layer[-13]", BERT, SiteNotFound, ["[0] to [11]"]),
    ("encoder.layer[20:30]", BERT, SiteNotFound, ["12 children"]),
    ("fc[0]", RESNET, SiteNotFound, ["'fc' has no children"]),
    ("[5]", CHAIN, SiteNotFound, ["'Sequential' has 3 children"]),
    ("stage[4]", VIT, SiteNotFound, ["4 declared stages, [0] to [3]"]),
    ("stage[0]", RESNET, SiteNotFound, ["ResNet declares no stages", "'layer4'"]),
    ("stage[2]", ODD, SiteNotFound, ["'stage' has 2 children"]),
    (7, RESNET, SiteNotFound, ["0 to 6", "-1"]),
    (0, VIT, SiteNotFound, ["no known numbers", "Name one: 'input', 'stage[0]'", "'norm'"]),
    (-2, RESNET, SelectorError, ["-2", "-1 is the model input"]),
    # calls
    (
        "layer4.1.relu",
        RESNET,
        AmbiguousSite,
        ["'layer4.1.relu' is called 2 times: use 'layer4.1.relu@0' or '@1', or expect=2 for both."],
    ),
    ("cell", SHARED, AmbiguousSite, ["5 times: use 'cell@0' … '@4', or expect=5 for all."]),
    ("cell.tanh", SHARED, AmbiguousSite, ["'cell.tanh' is called 5 times"]),
    ("**.relu", RESNET, AmbiguousSite, ["'layer1.0.relu' is called 2 times", "expect=17 for all 17 sites"]),
    ("ReLU", RESNET, AmbiguousSite, ["'layer1.0.relu@0' or '@1'"]),
    ("layer4.1.relu@2", RESNET, SiteNotFound, ["called 2 times, '@0' to '@1'"]),
    ("**.relu@2", RESNET, SiteNotFound, ["called 2 times"]),
    ("layer4@1", RESNET, SiteNotFound, ["'layer4' is called once"]),
    ("flatten@1", RESNET, SiteNotFound, ["'flatten' is called once"]),
    (
        "encoder.layer",
        BERT,
        SiteNotFound,
        ["exists", "never called", "'encoder.layer[0]'", "'encoder.layer.*'"],
    ),
    ("spare", SHARED, SiteNotFound, ["'spare.left'", "'spare.*'"]),
    ("unused", SHARED, SiteNotFound, ["'unused' exists, but it is never called in the forward of Shared"]),
    ("unused@0", SHARED, SiteNotFound, ["never called"]),
    ("spare.*", SHARED, SiteNotFound, ["all that 'spare.*' matches is never called"]),
    ("Dropout", SHARED, SiteNotFound, ["all that 'Dropout' matches is never called"]),
    # malformed
    ("", RESNET, SelectorError, ["''", "empty"]),
    ("  ", RESNET, SelectorError, ["'  '", "empty"]),
    (" layer4", RESNET, SelectorError, ["' layer4'", "white space"]),
    ("layer4[", RESNET, SelectorError, ["'layer4['", "pairs"]),
    ("layer4]", RESNET, SelectorError, ["pairs"]),
    ("layer4[[0]]", RESNET, SelectorError, ["pairs"]),
    ("layer4[0]x", RESNET, SelectorError, ["pairs"]),
    ("layer4[a]", RESNET, SelectorError, ["integer or a slice, not 'a'"]),
    ("layer4[]", RESNET, SelectorError, ["integer or a slice, not ''"]),
    ("layer4[1.5]", RESNET, SelectorError, ["integer or a slice, not '1.5'"]),
    ("layer4[1:2:3:4]", RESNET, SelectorError, ["integer or a slice"]),
    ("layer4[1:2:0]", RESNET, SelectorError, ["cannot be 0"]),
    ("layer4[__import__('os')]", RESNET, SelectorError, ["integer or a slice"]),
    ("x@", RESNET, SelectorError, ["'x@'", "number of a call"]),
    ("x@-1", RESNET, SelectorError, ["'x@-1'", "number of a call"]),
    ("x@1@2", RESNET, SelectorError, ["number of a call"]),
    ("x@1.relu", RESNET, SelectorError, ["come last"]),
    ("@1", RESNET, SelectorError, ["empty segment"]),
    ("layer4..0", RESNET, SelectorError, ["'layer4..0'", "empty segment"]),
    (".layer4", RESNET, SelectorError, ["empty segment"]),
    ("layer4.", RESNET, SelectorError, ["empty segment"]),
    ("layer**", RESNET, SelectorError, ["'**' is a segment of its own"]),
    ("***", RESNET, SelectorError, ["'**' is a segment of its own"]),
    ("re:", RESNET, SelectorError, ["regular expression follows"]),
    ("re:layer(", RESNET, SelectorError, ["'re:layer('", "no valid regular expression"]),
    ("re:a{99999999999999}", RESNET, SelectorError, ["no valid regular expression"]),
    # of no type that selects
    (None, RESNET, SelectorError, ["None is no selector", "use a string"]),
    (1.0, RESNET, SelectorError, ["float", "use a string"]),
    (True, RESNET, SelectorError, ["bool"]),
    (b"layer4", RESNET, SelectorError, ["bytes"]),
    ({"layer4": 0.5}, RESNET, SelectorError, ["dict"]),
    ({"layer4"}, RESNET, SelectorError, ["set"]),
    ([["layer4"]], RESNET, SelectorError, ["list", "flat list"]),
    (["layer4", None], RESNET, SelectorError, ["None is no selector"]),
    ([], RESNET, SelectorError, ["empty list"]),
    # predicates
    (lambda site: False, RESNET, SiteNotFound, ["<lambda>", "none of the 4 sites"]),
    (lambda site: site.module.weight, RESNET, SelectorError, ["'layer4.1.relu@0'", "AttributeError"]),
    # a list names every miss
    (["layer5", "fc", "nope", 9], RESNET, SiteNotFound, ["'layer5'", "'nope'", "9 is out of range"]),
    (["unused", "uot", Conv3d], SHARED, SiteNotFound, ["'unused' exists", "'uot'", "Conv3d"]),
]


def name(value: object) -> str | None:
    return getattr(value, "__name__", None) if callable(value) else value if isinstance(value, str) else None


@pytest.mark.parametrize(("at", "structure", "sites"), FOUND, ids=name)
def test_finds(at: Any, structure: StaticStructure, sites: list[str]) -> None:
    assert [str(target) for target in resolve(at, structure)] == sites


@pytest.mark.parametrize(("at", "structure", "error", "fragments"), LOST, ids=name)
def test_says_what_is_wrong(
    at: Any, structure: StaticStructure, error: type[GraphaugError], fragments: list[str]
) -> None:
    with pytest.raises(error) as caught:
        resolve(at, structure)
    assert type(caught.value) is error
    for fragment in fragments:
        assert fragment in str(caught.value)
    if error is SiteNotFound:
        assert str(caught.value).endswith("\n    graphaug.sites(model) lists sites to choose from.")
        assert str(caught.value).count("lists sites to choose from") == 1


@pytest.mark.parametrize(
    ("at", "structure", "options", "sites"),
    [
        ("layer4", RESNET, {"side": "before"}, ["layer4.input"]),
        ("input", RESNET, {"side": "before"}, ["input"]),
        (["layer4", "layer4.input"], RESNET, {"side": "before"}, ["layer4.input"]),
        ("layer4.1.relu@1", RESNET, {"side": "before"}, ["layer4.1.relu@1.input"]),
        (
            wide,
            RESNET,
            {"side": "before", "exclude": "layer4.1.add"},
            ["layer4.1.relu@0.input", "layer4.1.relu@1.input"],
        ),
        ("layer4.1.relu", RESNET, {"expect": 2}, ["layer4.1.relu@0", "layer4.1.relu@1"]),
        (ReLU, RESNET, {"expect": 17}, ["relu", *(f"{b}.relu@{k}" for b in BLOCKS for k in (0, 1))]),
        (Linear, SHARED, {"expect": 6}, [*(f"cell.gate@{k}" for k in range(5)), "out"]),
        ("layer*", RESNET, {"expect": 4}, ["layer1", "layer2", "layer3", "layer4"]),
        ("layer*", RESNET, {"exclude": "layer2"}, ["layer1", "layer3", "layer4"]),
        ("layer*", RESNET, {"exclude": ["layer2", 4]}, ["layer1", "layer3"]),
        ("layer*", RESNET, {"exclude": "fc"}, ["layer1", "layer2", "layer3", "layer4"]),
        ("layer*", RESNET, {"exclude": "re:layer[12]", "side": "before"}, ["layer3.input", "layer4.input"]),
        (
            "**.conv2",
            RESNET,
            {"exclude": "layer*.0.**", "expect": 4},
            [f"layer{i}.1.conv2" for i in range(1, 5)],
        ),
        (
            "layer4.1.*",
            RESNET,
            {"exclude": ReLU},
            [f"layer4.1.{n}" for n in ("conv1", "bn1", "conv2", "bn2")],
        ),
        ("layer4.1.relu", RESNET, {"exclude": "layer4.1.relu@1"}, ["layer4.1.relu@0"]),
        ("**.relu", RESNET, {"exclude": "layer*.*.relu@0"}, ["relu", *(f"{b}.relu@1" for b in BLOCKS)]),
        ("**.relu", RESNET, {"exclude": "layer*.*.relu"}, ["relu"]),
        (["relu", "fc"], RESNET, {"exclude": "relu@0"}, ["fc"]),
        (wide, RESNET, {"exclude": lambda site: site.call == 0}, ["layer4.1.relu@1", "layer4.1.add"]),
        (["input", "fc"], RESNET, {"exclude": -1}, ["fc"]),
    ],
)
def test_options(at: Any, structure: StaticStructure, options: dict[str, Any], sites: list[str]) -> None:
    assert [str(target) for target in resolve(at, structure, **options)] == sites


@pytest.mark.parametrize(
    ("at", "options", "error", "fragments"),
    [
        ("layer*", {"expect": 3}, SiteCountMismatch, ["'layer*' matches 4 sites, not 3: 'layer1', 'layer2'"]),
        ("fc", {"expect": 2}, SiteCountMismatch, ["'fc' matches 1 site, not 2: 'fc'"]),
        ("BatchNorm2d", {"expect": 1}, SiteCountMismatch, ["'layer2.1.bn2' and 10 more."]),
        (["fc", ReLU, 4], {"expect": 3}, AmbiguousSite, ["expect=19 for all 19 sites"]),
        ("layer4.1.relu", {"expect": 3}, AmbiguousSite, ["expect=2 for both"]),
        ("layer*", {"exclude": "layr2"}, SiteNotFound, ["exclude: 'layr2' matches nothing", "'layer2'"]),
        ("layer*", {"exclude": "relu@1"}, SiteNotFound, ["exclude: 'relu@1'", "called once"]),
        ("nope", {"exclude": "nada"}, SiteNotFound, ["'nope'", "exclude: 'nada'"]),
        ("layer4", {"exclude": "layer*"}, SiteNotFound, ["exclude='layer*' leaves nothing of 'layer4'"]),
        ("layer4", {"exclude": {}}, SelectorError, ["dict"]),
        ("layer4", {"exclude": []}, SelectorError, ["empty list"]),
        ("layer4", {"side": "left"}, InvalidOption, ["'left'", "'before'"]),
        ("layer4", {"expect": 0}, InvalidOption, ["expect=0"]),
        ("layer4", {"expect": True}, InvalidOption, ["expect=True"]),
    ],
)
def test_options_that_fail(
    at: Any, options: dict[str, Any], error: type[GraphaugError], fragments: list[str]
) -> None:
    with pytest.raises(error) as caught:
        resolve(at, RESNET, **options)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_module_object_is_no_predicate() -> None:
    class Fake:
        def named_modules(self) -> None: ...
        def __call__(self, site: object) -> bool:
            raise AssertionError("called")

    with pytest.raises(SelectorError, match="a Fake object is no selector, and ResNet has no such module"):
        resolve(Fake(), RESNET)


@dataclass(frozen=True)
class Counting(StaticStructure):
    """Notes every costly question."""

    asked: tuple[list[Any], list[Any], list[Any]] = ((), (), ())  # type: ignore[assignment]

    def ops(self, path: str) -> Sequence[str]:
        self.asked[0].append(path)
        return super().ops(path)

    def calls(self, paths: Sequence[str]) -> Any:
        self.asked[1].append(list(paths))
        return super().calls(paths)

    def candidates(self) -> Sequence[Any]:
        self.asked[2].append("all")
        return super().candidates()


@pytest.mark.parametrize(
    ("at", "ops", "calls", "candidates"),
    [
        ("layer4", [], [["layer4"]], []),
        (["layer4", "layer4.input", "fc"], [], [["layer4", "fc"]], []),
        ("layer*", [], [["layer1", "layer2", "layer3", "layer4"]], []),
        ("BasicBlock", [], [BLOCKS], []),
        ("input", [], [], []),
        (-1, [], [], []),
        (wide, [], [["layer4.1.relu", "layer4.1"]], ["all"]),
        ("layer4.1.add", ["layer4.1"], [["layer4.1"]], []),
        ("flatten", [""], [], []),
    ],
)
def test_costly_questions_are_asked_only_when_needed(
    at: Any, ops: list[str], calls: list[list[str]], candidates: list[str]
) -> None:
    plain = RESNET
    structure = Counting(
        plain.name,
        plain.modules,
        plain.stages,
        plain.declared,
        plain.operations,
        plain.called,
        plain.sites,
        asked=([], [], []),
    )
    resolve(at, structure)
    assert structure.asked == (ops, calls, candidates)


class Closed(StaticStructure):
    """A model whose operations cannot be listed without an example."""

    def ops(self, path: str) -> Sequence[str]:
        if path in ("", "encoder"):
            raise CaptureError("BertModel.forward needs example_inputs")
        return super().ops(path)


def test_what_cannot_be_captured_does_not_hide_a_typo() -> None:
    structure = Closed(BERT.name, BERT.modules, operations=BERT.operations)
    with pytest.raises(SiteNotFound) as caught:
        resolve("encodr", structure)
    assert "Did you mean 'encoder'" in str(caught.value)
    assert "not known: BertModel.forward needs example_inputs" in str(caught.value)
    assert len(resolve("**.add_1", structure)) == 12


def test_parsing_gives_values() -> None:
    selector = parse("encoder.layer[0:3].*@1.input")
    assert selector == parse("encoder.layer[0:3].*@1.input")
    assert [step.name for step in selector.steps] == ["encoder", "layer", "*"]
    assert selector.steps[1].picks == (slice(0, 3),)
    assert (selector.call, selector.before) == (1, True)
    with pytest.raises(AttributeError):
        selector.call = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("target", "spelling"),
    [
        (Target("layer4.1.relu", None, 1, "after"), "layer4.1.relu@1"),
        (Target("layer4.1", "add"), "layer4.1.add"),
        (Target("", "flatten"), "flatten"),
        (Target("layer4", side="before"), "layer4.input"),
        (Target("layer4.1.relu", call=0, side="before"), "layer4.1.relu@0.input"),
        (Target("", side="before"), "input"),
    ],
)
def test_a_target_is_spelled_as_it_is_selected(target: Target, spelling: str) -> None:
    assert str(target) == spelling
    assert resolve(spelling, RESNET) == [target]


def test_no_framework_is_imported() -> None:
    # The package itself may import torch: the two files are loaded without it, under a bare package.
    program = """
import importlib.util, sys, types
package = types.ModuleType("graphaug")
package.__path__ = [sys.argv[1]]
sys.modules["graphaug"] = package
import graphaug.select.resolve
heavy = {"torch", "numpy", "networkx"} & set(sys.modules)
assert not heavy, heavy
assert graphaug.select.language.parse("layer4.*").steps[1].name == "*"
"""
    folder = Path(sl.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)


def test_the_table_is_large() -> None:
    assert len(FOUND) + len(LOST) >= 80
