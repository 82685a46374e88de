"""The table of sites against torch's own FLOP counter, forward hooks, and sums over parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from networks import ConvNet, Mlp, TextNet, TwoOutputs, features, fingerprint, images, tokens
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock

import graphaug as ga
from graphaug.errors import CaptureError, InvalidOption, UnsupportedModel

pytestmark = pytest.mark.few(1)

MODELS: dict[str, tuple[Any, Any]] = {
    "convnet": (ConvNet, images(2)),
    "textnet": (TextNet, tokens(2)),
    "mlp": (Mlp, features(2)),
    "two outputs": (TwoOutputs, features(2)),
    "resnet": (lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1]), images(2, 32)),
}


def by_hooks(model: nn.Module, x: Tensor) -> dict[tuple[str, int], tuple[int, ...]]:
    """Shape of the output of every call of every module."""
    shapes: dict[tuple[str, int], tuple[int, ...]] = {}
    counts: dict[str, int] = {}

    def record(path: str, out: Any) -> None:
        call = counts.get(path, 0)
        counts[path] = call + 1
        first = next(iter(out.values())) if isinstance(out, dict) else out
        shapes[path, call] = tuple(first.shape)

    handles = [
        m.register_forward_hook(lambda _, __, out, path=path: record(path, out))
        for path, m in model.named_modules()
    ]
    with torch.no_grad():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    return shapes


@pytest.mark.parametrize("name", MODELS)
def test_shapes_are_those_that_hooks_see(name: str) -> None:
    build, x = MODELS[name]
    model = build()
    table = ga.sites(model, x, depth=5)
    shapes, checked = by_hooks(model, x), 0
    for site in table:
        if site.op is None and site.target.path and site.shape is not None:
            assert site.shape == shapes[site.target.path, site.call], site
            checked += 1
    assert checked >= 2


@pytest.mark.parametrize("name", MODELS)
def test_every_called_module_is_a_site_with_its_number_of_calls(name: str) -> None:
    build, x = MODELS[name]
    model = build()
    listed = {(s.target.path, s.call) for s in ga.sites(model, x, depth=5) if s.op is None and s.target.path}
    called = set(by_hooks(model, x))
    assert {place for place in called if place[0]} <= listed
    for site in ga.sites(model, x, depth=5):
        if site.op is None and site.target.path:
            assert site.calls == len({c for p, c in listed if p == site.target.path})


def stop_at(model: nn.Module, path: str, x: Tensor) -> int:
    """FLOPs of the plain model up to and including a module, by torch's counter."""

    class Done(Exception):
        pass

    def stop(*_: object) -> None:
        raise Done

    handle = model.get_submodule(path).register_forward_hook(stop)
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            model(x)
    except Done:
        pass
    finally:
        handle.remove()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["convnet", "textnet", "resnet"])
def test_flops_before_a_cut_are_those_of_torchs_counter(name: str) -> None:
    """In sequential models all that ran until the cut is before it.

    Torch's counter has no formula for a CPU's attention kernel, but for the products that it is made of otherwise.
    """
    build, x = MODELS[name]
    model = build().eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(x)
    checked = 0
    for site in ga.sites(model, x):
        if site.op is None and site.target.path and site.separates:
            with sdpa_kernel(SDPBackend.MATH):
                expected = stop_at(model, site.target.path, x) / counter.get_total_flops()
            assert site.flops_before == pytest.approx(expected), site
            checked += 1
    assert checked >= 5
    assert ga.sites(model, x)[0].flops_before == 0


@pytest.mark.parametrize("name", ["convnet", "textnet", "resnet"])
def test_parameters_before_a_cut_are_those_that_its_value_depends_on(name: str) -> None:
    build, x = MODELS[name]
    model = build()
    total = sum(p.numel() for p in model.parameters())
    for site in ga.sites(model, x):
        if site.op is not None or not site.target.path or site.calls > 1:
            continue
        seen: list[Tensor] = []
        handle = model.get_submodule(site.target.path).register_forward_hook(lambda *a: seen.append(a[2]))  # noqa: B023
        model(x)
        handle.remove()
        grads = torch.autograd.grad(seen[0].sum(), list(model.parameters()), allow_unused=True)
        expected = sum(p.numel() for p, g in zip(model.parameters(), grads, strict=True) if g is not None)
        assert site.params_before == pytest.approx(expected / total), site


def test_the_table_is_one_to_read() -> None:
    model = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    table = ga.sites(model, images(2, 32), depth=2)
    lines = str(table).splitlines()
    assert lines[0] == f"ResNet: {len(table)} sites"
    assert lines[1].split("  ")[0] == "site"
    titles = ("site", "stage", "class", "separates", "params before", "FLOPs before", "shape", "backward")
    for title in titles:
        assert title in lines[1]
    assert set(lines[2]) == {"-", " "}
    rows = {line.split()[0]: line for line in lines[3:]}
    assert len(rows) == len(table)
    assert rows["input"].split()[1:7] == ["-1", "input", "yes", "0.0%", "0.0%", "2×3×32×32"]
    assert rows["input"].endswith("  dense: nothing trained before")
    assert rows["layer4"].split()[1:4] == ["4", "Sequential", "yes"]
    assert "  2×512×1×1  " in rows["layer4"]
    assert rows["fc"].split()[1:5] == ["6", "Linear", "yes", "100.0%"]
    assert rows["relu"].split()[1] == "0"
    assert rows["flatten"].split()[1:3] == ["5", "op"]
    assert max(map(len, lines)) < 120
    assert repr(table) == str(table)


def test_the_table_names_what_leads_around_a_site() -> None:
    table = ga.sites(ConvNet(), depth=3)
    by_name = {str(site): site for site in table}
    bypassed = by_name["layer1.1.conv2"]
    assert not bypassed.separates
    assert bypassed.bypass == "'layer1.1.add' also receives 'layer1.0'"
    assert "no: 'layer1.1.add' also receives 'layer1.0'" in str(table)
    assert by_name["layer1.1.conv2"].shape == (2, 6, 224, 224)
    assert "(example_inputs: none given; taken from its layer 'stem.0': 2×3×224×224)" in str(table)
    assert by_name["layer1.1.relu@0"].calls == by_name["layer1.1.relu@1"].calls == 2


def test_it_is_a_sequence_for_programs() -> None:
    table = ga.sites(ConvNet())
    assert isinstance(table[0], ga.Site)
    assert isinstance(table[1:3], ga.Sites)
    assert len(table[1:3]) == 2
    assert [s.path for s in table][:2] == ["input", "stem"]
    assert table[-1].path == "fc"
    assert [s.params_before for s in table] == sorted(s.params_before for s in table)


@pytest.mark.parametrize(
    "name",
    ["convnet", "textnet", "two outputs"],
)
@pytest.mark.long
def test_every_site_that_is_listed_can_be_rewritten(name: str) -> None:
    build, x = MODELS[name]
    model = build()
    for site in ga.sites(model, x)[::2]:
        plan = ga.rewrite(model, str(site), allow_bypass=True, expect=1, example_inputs=x, dry_run=True)
        assert plan.sites[0].request.target.path == site.target.path
        assert plan.sites[0].note.startswith("separates") == site.separates


@pytest.mark.parametrize(("depth", "expected"), [(1, 0), (2, 3), (3, 9)])
def test_depth_says_how_many_levels_are_opened(depth: int, expected: int) -> None:
    table = ga.sites(ConvNet(), depth=depth)
    assert max(s.target.path.count(".") for s in table) == depth - 1
    assert sum("." in s.target.path for s in table) >= expected


@pytest.mark.long
def test_listing_changes_nothing() -> None:
    for build, x in MODELS.values():
        model = build()
        before = fingerprint(model)
        ga.sites(model, x, depth=5)
        ga.sites(ga.rewrite(model, "input" if x.is_floating_point() else "blocks.0"), x)
        assert fingerprint(model) == before


def test_a_predicate_sees_path_module_op_and_shape() -> None:
    model = ConvNet()
    plan = ga.rewrite(
        model,
        lambda site: isinstance(site.module, nn.Conv2d) and site.shape == (2, 6, 8, 8) and site.path != "x",
        example_inputs=images(2),
        allow_bypass=True,
        expect=7,
        dry_run=True,
    )
    convolutions = [path for path, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert [s.request.target.path for s in plan.sites] == convolutions


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ConvNet, "the class ConvNet: make an instance of it"),
        ("resnet18", "a str"),
        (nn.DataParallel(ConvNet()), "DataParallel: rewrite model.module first"),
    ],
    ids=["class", "str", "DataParallel"],
)
def test_what_is_no_plain_model_is_refused(model: Any, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        ga.sites(model)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (3, "give a tensor, a tuple of positional inputs, or a dict"),
        ({"y": images()}, "'y', which ConvNet.forward does not take"),
        ((images(), images()), "takes 1 positional inputs: x"),
        ({}, "lacks 'x'"),
        (torch.ones(2, 5), "failed on example_inputs"),
    ],
    ids=["int", "name", "many", "none", "shape"],
)
def test_examples_that_do_not_fit_are_refused(example: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        ga.sites(ConvNet(), example)


@pytest.mark.long
def test_the_table_says_where_the_backward_would_be_sparse() -> None:
    """The same as the plan of a rewrite there, in fewer words; also of an example that was guessed."""
    torch.manual_seed(0)
    convnext, image = torchvision.models.convnext_tiny(num_classes=3), torch.randn(2, 3, 32, 32)
    resnet = torchvision.models.resnet18(num_classes=3)
    checked = 0
    for model, names in ((convnext, ("features.1", "features.5")), (resnet, ("layer1", "layer3"))):
        table = {str(s): s.backward for s in ga.sites(model, example_inputs=image)}
        for at in names:
            plan = ga.rewrite(model, at, stop_grad=True, example_inputs=image, dry_run=True)
            kind, _, reason = table[at].partition(": ")
            assert kind == plan.backward, (at, table[at], plan.reason)
            assert (
                reason in plan.reason or reason == "if a trial agrees" or "of the FLOPs only" in plan.reason
            )
            checked += 1
        assert table["input"] == "dense: nothing trained before"
    assert checked == 4
    assert "dense: BatchNorm2d 'bn1'" in str(ga.sites(resnet, example_inputs=image))
    guessed = {str(s): s.backward for s in ga.sites(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))}
    assert guessed == {"input": "dense: nothing trained before", "0": "sparse", "1": "sparse"}


@pytest.mark.parametrize("depth", ["a", -1, 1.5, True])
def test_a_depth_that_is_none_is_refused(depth: object) -> None:
    with pytest.raises(InvalidOption, match="depth is a number of levels"):
        ga.sites(torch.nn.Sequential(torch.nn.Linear(4, 4)), depth=depth)  # type: ignore[arg-type]
