"""`rewrite` and `strip`: every option, every guarantee, and every input that is refused."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks import (
    Checkpointed,
    ConvNet,
    Mlp,
    Modal,
    TextNet,
    Tied,
    TwoOutputs,
    features,
    fingerprint,
    images,
    tokens,
)
from torch import Tensor, fx, nn
from torchvision.models.resnet import BasicBlock

import graphaug as ga
from graphaug.errors import (
    AlreadyRewritten,
    AmbiguousSite,
    BatchError,
    BypassedSite,
    CaptureError,
    GraphaugError,
    InvalidOption,
    NotRewritten,
    SelectorError,
    SharedAcrossCut,
    SiteCountMismatch,
    SiteNotFound,
    SparseBackwardError,
    UnsupportedModel,
)

pytestmark = pytest.mark.few(2)


def small_resnet() -> nn.Module:
    return torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)


def recorded(aug: ga.AugmentedModule, x: Any, index: int = 0) -> tuple[Tensor, Tensor]:
    """What goes into the augmentation and what comes out of it, in one forward."""
    seen: list[tuple[Tensor, Tensor]] = []
    node = list(aug.augmentations.values())[index]
    handle = node.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    aug(x)
    handle.remove()
    (pair,) = seen
    return pair


def nodes(aug: ga.AugmentedModule) -> list[str]:
    return [n.format_node() for n in aug.graph.nodes]


def changed(pair: tuple[Tensor, Tensor]) -> Tensor:
    return (pair[0] != pair[1]).flatten(1).any(1)


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("subset", "count"), [(0.0, 0), (0.25, 2), (0.5, 3), (1.0, 6)])
@pytest.mark.long
def test_subset_and_rate_act_at_the_site(subset: float, count: int) -> None:
    torch.manual_seed(0)
    before, after = recorded(ga.rewrite(ConvNet(), "stem", rate=0.25, subset=subset), images(6))
    rows = changed((before, after))
    assert int(rows.sum()) == count
    factors = after[rows] / before[rows]
    assert torch.isclose(factors[~factors.isnan()].unique(), torch.tensor([0, 4 / 3])[:, None]).any(0).all()


def test_bernoulli_sampling_varies_the_count() -> None:
    torch.manual_seed(0)
    aug = ga.rewrite(ConvNet(), "layer1", sampling="bernoulli", subset=0.5)
    assert len({int(changed(recorded(aug, images(12))).sum()) for _ in range(12)}) > 2


@pytest.mark.parametrize("granularity", ["element", "channel", "position"])
@pytest.mark.long
def test_granularity_reaches_the_site(granularity: str) -> None:
    torch.manual_seed(0)
    aug = ga.rewrite(ConvNet(), "stem.0", granularity=granularity, subset=1.0, rate=0.5)
    before, after = recorded(aug, images())
    dropped = (after == 0) & (before != 0)
    maps, places = dropped.flatten(2).float().mean(2), dropped.float().mean(1)
    assert bool(torch.isin(maps, torch.tensor([0.0, 1.0])).all()) == (granularity == "channel")
    assert bool(torch.isin(places, torch.tensor([0.0, 1.0])).all()) == (granularity == "position")


def test_one_sided_pairing_reaches_the_site() -> None:
    torch.manual_seed(0)
    aug = ga.rewrite(ConvNet(), "layer1", pairing="one-sided")
    assert changed(recorded(aug, images(8))).tolist() == [True] * 4 + [False] * 4


def test_stop_grad_stops_augmented_rows_only_and_only_below_the_cut() -> None:
    torch.manual_seed(0)
    aug, x = ga.rewrite(ConvNet(), "layer1", subset=0.5, stop_grad=True), images().requires_grad_()
    for module in aug.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # batch statistics would let the rows see each other
    seen: list[Tensor] = []
    aug.deep_augment.register_forward_hook(lambda _, args, out: seen.append(changed((args[0], out))))
    aug(x).square().sum().backward()
    rows = seen[0]
    assert torch.equal((x.grad != 0).flatten(1).any(1), ~rows)
    assert all(p.grad.any() for n, p in aug.named_parameters() if n.startswith(("layer2.0.conv", "fc")))


@pytest.mark.parametrize(
    ("at", "node"),
    [
        ("layer1", "layer1"),
        ("layer1.1", "layer1_1"),
        ("layer1[-1]", "layer1_1"),
        (nn.AdaptiveAvgPool2d, "pool"),
        ("AdaptiveAvgPool2d", "pool"),
        ("re:.*yer2", "layer2"),
        (lambda site: site.path == "fc", "fc"),
        ("flatten", "flatten"),
        ("layer1.1.add", "add"),
        ("input", "x"),
        (-1, "x"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.long
def test_the_augmentation_follows_what_is_named(at: Any, node: str) -> None:
    aug = ga.rewrite(ConvNet(), at)
    placed = next(n for n in aug.graph.nodes if n.target == "deep_augment")
    (source,) = placed.args
    assert source.name.startswith(node)
    assert set(source.users) == {placed}
    assert len(placed.users) == 1 or node in ("layer1", "add", "x", "layer1_1")


@pytest.mark.parametrize("at", ["layer2.input", "layer2.0.input"])
@pytest.mark.long
def test_the_input_side_augments_what_enters(at: str) -> None:
    aug = ga.rewrite(ConvNet(), at)
    before, _ = recorded(aug, images())
    after_hook: list[Tensor] = []
    aug.layer1.register_forward_hook(lambda *a: after_hook.append(a[2]))
    aug(images())
    assert before.shape == after_hook[0].shape
    same = ga.rewrite(ConvNet(), at.removesuffix(".input"), side="before", dry_run=True)
    assert same.sites[0].request.target == aug.plan.sites[0].request.target


def test_the_second_call_of_a_module_is_another_site_than_the_first() -> None:
    for call, name in ((0, "first"), (1, "hidden")):
        aug = ga.rewrite(Mlp(), f"act@{call}", rate=1.0, subset=1.0)
        before, _ = recorded(aug, features())
        linear: list[Tensor] = []
        aug.get_submodule(name).register_forward_hook(lambda *a, into=linear: into.append(a[2]))
        aug(features())
        assert torch.equal(before, linear[0].tanh())


def test_several_sites_each_with_its_own_rate() -> None:
    torch.manual_seed(0)
    aug = ga.rewrite(ConvNet(), {"stem": 0.0, "layer1": 1.0, "layer2": 0.25}, subset=1.0)
    rates = {str(target): float(node.rate) for target, node in aug.augmentations.items()}
    assert rates == {"stem": 0.0, "layer1": 1.0, "layer2": 0.25}
    assert [n.target for n in aug.graph.nodes if "augment" in str(n.target)] == [
        "deep_augment",
        "deep_augment_1",
        "deep_augment_2",
    ]
    assert torch.equal(*recorded(aug, images(), 0))
    assert not recorded(aug, images(), 1)[1].any()
    aug.set_rate({"layer1": 0.5})
    aug.set_subset({"stem": 0.5})
    assert float(aug.deep_augment_1.rate) == 0.5
    assert (float(aug.deep_augment.subset), float(aug.deep_augment_1.subset)) == (0.5, 1.0)
    aug.set_rate(0.1)
    assert {float(node.rate) for node in aug.augmentations.values()} == {0.1}


@pytest.mark.long
def test_a_list_with_exclude_and_expect() -> None:
    plan = ga.rewrite(ConvNet(), ["layer1.*", "layer2"], exclude="layer1.0", expect=2, dry_run=True)
    assert [str(s.request.target) for s in plan.sites] == ["layer1.1", "layer2"]
    plan = ga.rewrite(ConvNet(), "layer1.1.relu", expect=2, allow_bypass=True, dry_run=True)
    assert [str(s.request.target) for s in plan.sites] == ["layer1.1.relu@0", "layer1.1.relu@1"]


@pytest.mark.parametrize(
    ("number", "module", "shape"),
    [
        (-1, None, (4, 3, 32, 32)),
        (0, "relu", (4, 64, 16, 16)),
        (1, "layer1", (4, 64, 8, 8)),
        (2, "layer2", (4, 128, 4, 4)),
        (3, "layer3", (4, 256, 2, 2)),
        (4, "layer4", (4, 512, 1, 1)),
        (5, None, (4, 512)),
        (6, "fc", (4, 5)),
    ],
)
@pytest.mark.long
def test_the_papers_numbers_of_a_resnet(number: int, module: str | None, shape: tuple[int, ...]) -> None:
    model, x = small_resnet(), images(4, 32)
    aug = ga.rewrite(model, number)
    outputs: list[Tensor] = []
    if module:
        model.get_submodule(module).register_forward_hook(lambda *a: outputs.append(a[2]))
    before, _ = recorded(aug, x)
    assert before.shape == torch.Size(shape)
    if module:
        assert before is outputs[0]
    elif number == -1:
        assert before is x


@pytest.mark.long
def test_the_numbers_of_a_list_of_blocks() -> None:
    for number, site in ((0, "blocks.0@0.input"), (1, "blocks.0"), (3, "blocks.2")):
        plan = ga.rewrite(TextNet(), number, dry_run=True)
        assert str(plan.sites[0].request.target) in (site, site.replace("@0", ""))


# --- freeze -------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.long
def test_freeze_trains_the_other_side_only(side: str) -> None:
    model = ConvNet()
    aug = ga.rewrite(model, "layer1", freeze=side, stop_grad=False)
    below = ("stem", "layer1")
    frozen = {n for n, _ in model.named_parameters() if n.startswith(below) == (side == "before")}
    assert set(aug.plan.freeze.parameters) == frozen
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in aug.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    aug(images()).square().sum().backward()
    optimizer.step()
    assert {n for n, p in model.named_parameters() if p.grad is None} == frozen
    assert {n for n, p in model.named_parameters() if torch.equal(p, weights[n])} == frozen


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {n: b.clone() for n, b in model.named_buffers() if "running" in n or "tracked" in n}


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.long
def test_batchnorm_in_a_frozen_region_keeps_its_statistics(side: str) -> None:
    model = ConvNet()
    aug = ga.rewrite(model, "layer1", freeze=side)
    before = statistics(model)
    for _ in range(2):
        aug.eval()
        aug.train()
        aug(images())
    kept = {n for n, b in statistics(model).items() if torch.equal(b, before[n])}
    assert kept == {n for n in before if n.startswith(("stem", "layer1")) == (side == "before")}

    aug.keep_frozen_statistics(False)
    aug(images())
    assert all(not torch.equal(b, before[n]) for n, b in statistics(model).items())
    aug.keep_frozen_statistics()
    before = statistics(model)
    aug(images())
    assert {n for n, b in statistics(model).items() if torch.equal(b, before[n])} == kept


def test_what_the_user_froze_stays_frozen_and_strip_frees_only_ours() -> None:
    model = ConvNet()
    model.stem[0].weight.requires_grad_(False)
    model.fc.bias.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    aug = ga.rewrite(model, "layer1", freeze="before")
    assert "stem.0.weight" not in aug.plan.freeze.parameters
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.startswith(("stem", "layer1")))
    assert ga.strip(aug) is model
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert all(m.training for m in model.modules())


def test_stop_grad_alone_touches_no_requires_grad() -> None:
    model = ConvNet()
    flags = [p.requires_grad for p in model.parameters()]
    aug = ga.rewrite(model, "layer1", stop_grad=True)
    aug(images()).sum().backward()
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_parameter_on_both_sides_of_the_cut_cannot_be_frozen(side: str) -> None:
    model = Tied()
    before = fingerprint(model)
    with pytest.raises(SharedAcrossCut, match=r"encoder\.weight is used on both sides of the cut"):
        ga.rewrite(model, "act", freeze=side)
    assert fingerprint(model) == before
    with pytest.raises(SharedAcrossCut, match=r"hidden\.weight, hidden\.bias are used on both sides"):
        ga.rewrite(Mlp(), "act@1", freeze=side)


# --- dry run and plan ---------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["yes", 1, None])
def test_whether_it_is_a_dry_run_is_true_or_false(flag: Any) -> None:
    with pytest.raises(InvalidOption, match=r"dry_run=.* is neither True nor False"):
        ga.rewrite(ConvNet(), "layer1", dry_run=flag)


def test_a_dry_run_builds_and_changes_nothing() -> None:
    model = ConvNet()
    before = fingerprint(model)
    plan = ga.rewrite(model, "layer1", freeze="before", stop_grad=True, dry_run=True)
    assert isinstance(plan, ga.Plan)
    assert fingerprint(model) == before
    aug = ga.rewrite(model, "layer1", freeze="before", stop_grad=True)
    assert str(aug.plan) == str(plan)


@pytest.mark.long
def test_the_plan_says_what_was_done() -> None:
    model = ConvNet()
    text = str(
        ga.rewrite(
            model,
            {"layer1": 0.3, "layer2.0.conv1": 0.6},
            subset=0.25,
            stop_grad=True,
            granularity="channel",
            pairing="one-sided",
            freeze="before",
            allow_bypass=True,
            example_inputs=images(),
        ).plan
    )
    for part in (
        "Deep Augmentation of ConvNet",
        "one graph for both modes; opened: layer2, layer2.0",
        "layer1  (as deep_augment)",
        "dropout 0.3 per channel on 25% of the rows (exact), first view only, gradient of augmented rows stopped",
        "separates the input from the output",
        "dropout 0.6 per channel",
        "bypassed (allowed): 'layer2.0.add' also receives",
        "value 6×6×8×8",
        "backward  dense",
        "parameters up to and including the cut",
        "running statistics of",
    ):
        assert part in text, part
    assert ga.strip(ga.rewrite(model, "layer1")) is model


def test_a_rewrite_changes_nothing_of_the_model() -> None:
    for build, at in ((ConvNet, "layer1.1.add"), (TextNet, "blocks.1"), (Mlp, "act@1"), (small_resnet, 4)):
        model = build()
        model.eval()
        next(model.children()).train()
        before = fingerprint(model)
        ga.rewrite(model, at, stop_grad=True)
        assert fingerprint(model) == before


@pytest.mark.long
def test_only_what_leads_to_the_site_is_opened() -> None:
    aug = ga.rewrite(small_resnet(), "layer4")
    assert len(aug.graph.nodes) == 14
    assert aug.plan.opened == ()
    assert isinstance(aug.layer3, nn.Sequential)
    assert [n.target for n in aug.graph.nodes if n.op == "call_module"][4:9] == [
        "layer1", "layer2", "layer3", "layer4", "deep_augment",
    ]  # fmt: skip


# --- being the model ----------------------------------------------------------------------------

CASES: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "convnet": (ConvNet, "layer1", images()),
    "operation": (ConvNet, "layer1.1.add", images()),
    "text": (TextNet, "blocks.1", tokens()),
    "mlp": (Mlp, "act@1", features()),
    "tied": (Tied, "act", features()),
    "mapping": (TwoOutputs, "encoder", features()),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, ga.AugmentedModule, Any]:
    torch.manual_seed(0)
    build, at, x = CASES[request.param]
    model = build()
    return model, ga.rewrite(model, at, stop_grad=True), x


Case = tuple[nn.Module, ga.AugmentedModule, Any]


@pytest.mark.long
def test_it_is_a_graph_module_that_shares_everything(case: Case) -> None:
    model, aug, _ = case
    assert isinstance(aug, fx.GraphModule)
    for name, module in model.named_children():
        assert getattr(aug, name) is module
    assert [(n, id(p)) for n, p in aug.named_parameters()] == [
        (n, id(p)) for n, p in model.named_parameters()
    ]
    mine = {n: id(b) for n, b in aug.named_buffers() if not n.startswith("deep_augment")}
    assert mine == {n: id(b) for n, b in model.named_buffers()}
    assert {n for n, _ in aug.named_modules() if "augment" not in n} == {n for n, _ in model.named_modules()}


@pytest.mark.long
def test_the_state_dict_has_the_same_keys_and_loads_both_ways(case: Case) -> None:
    model, aug, x = case
    assert list(aug.state_dict()) == list(model.state_dict())
    other = type(model)()
    other.load_state_dict(aug.state_dict())
    assert torch.equal(other.eval()(x), model.eval()(x))
    fresh = type(model)()
    aug.load_state_dict(fresh.state_dict())
    assert torch.equal(aug.eval()(x), fresh.eval()(x))


@pytest.mark.long
def test_eval_is_the_original_bit_for_bit(case: Case) -> None:
    model, aug, x = case
    aug.eval()
    assert not model.training
    for rows in (x, x[:1], torch.cat([x, x])):
        assert torch.equal(aug(rows), model(rows))
    aug.train()
    assert model.training
    assert not torch.equal(aug(x), model(x))


@pytest.mark.long
def test_strip_gives_the_very_model_back_with_trained_weights(case: Case) -> None:
    model, aug, x = case
    weights = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(aug.parameters(), 0.1)
    aug(x).square().sum().backward()
    optimizer.step()
    stripped = ga.strip(aug)
    assert stripped is model
    assert any(not torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert not any(isinstance(m, ga.DeepAugment) for m in model.modules())
    assert torch.equal(stripped.eval()(x), aug.eval()(x))
    ga.rewrite(stripped, "input" if x.is_floating_point() else "blocks.0")  # and it can be rewritten again


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
@pytest.mark.long
def test_copies_compute_the_same_and_share_nothing(case: Case, how: str, tmp_path: Path) -> None:
    model, aug, x = case
    aug.set_rate(0.3)
    aug.note = "kept"
    if how == "deepcopy":
        twin = copy.deepcopy(aug)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(aug))
    else:
        torch.save(aug, tmp_path / "aug.pt")
        twin = torch.load(tmp_path / "aug.pt", weights_only=False)
    assert twin.note == "kept"
    assert {float(n.rate) for n in twin.augmentations.values()} == {0.3}
    assert str(twin.plan) == str(aug.plan)
    assert nodes(twin) == nodes(aug)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in aug.parameters()}
    for mode in (True, False):
        for m in (aug, twin):
            m.train(mode)
            torch.manual_seed(7)
            m.result = m(x)
        assert torch.equal(aug.result, twin.result)
    del aug.result, twin.result
    ga.verify(twin, x)
    inner = ga.strip(twin)
    assert type(inner) is type(model)
    assert inner is not model
    with torch.no_grad():
        next(iter(twin.parameters())).zero_()
    assert any(p.any() for p in [next(iter(model.parameters()))])


@pytest.mark.long
def test_hooks_of_the_model_and_its_modules_fire(case: Case) -> None:
    model, aug, x = case
    fired: list[str] = []
    model.register_forward_pre_hook(lambda *_: fired.append("root before"))
    model.register_forward_hook(lambda *_: fired.append("root"))
    name, child = next((n, m) for n, m in model.named_children() if not isinstance(m, nn.ModuleList))
    child.register_forward_hook(lambda *_: fired.append(name))
    with warnings.catch_warnings():  # of a hook in the prefix nothing is proved: it says that it runs dense
        warnings.simplefilter("ignore", ga.errors.SparseBackwardLost)
        aug(x)
    assert fired[0] == "root before"
    assert name in fired
    assert fired[-1] == "root"


@pytest.mark.long
def test_precision_follows_the_model(case: Case) -> None:
    _, aug, x = case
    aug.to(torch.float64)
    out = aug(x.double() if x.is_floating_point() else x)
    assert out.dtype == torch.float64
    aug.bfloat16()
    assert {float(node.subset) for node in aug.augmentations.values()} == {0.5}
    assert aug(x.bfloat16() if x.is_floating_point() else x).dtype == torch.bfloat16


@pytest.mark.long
def test_autocast_and_gradients_through_it(case: Case) -> None:
    model, aug, x = case
    with torch.autocast("cpu", torch.bfloat16):
        out = aug(x)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in grads)


def test_channels_last_is_kept() -> None:
    aug = ga.rewrite(ConvNet(), "layer1", stop_grad=True).to(memory_format=torch.channels_last)
    x = images().to(memory_format=torch.channels_last)
    before, after = recorded(aug, x)
    assert before.is_contiguous(memory_format=torch.channels_last)
    assert after.is_contiguous(memory_format=torch.channels_last)
    assert not after.is_contiguous()


def test_activation_checkpointing_inside_a_leaf_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 8)), nn.Linear(8, 2))
    wrapped = nn.Sequential(plain[0], Checkpointed(plain[1]), plain[2])
    grads = []
    for model, at in ((plain, "1"), (wrapped, "1")):
        aug = ga.rewrite(model, at, stop_grad=True)
        torch.manual_seed(3)
        aug(features(8)).square().sum().backward()
        grads.append([p.grad.clone() for p in plain.parameters()])
        plain.zero_grad()
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_distributed_data_parallel_wraps_it(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = ConvNet()
        aug = ga.rewrite(model, "layer1", stop_grad=True, freeze="before")
        torch.manual_seed(2)
        aug(images()).square().sum().backward()
        expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        wrapped = DistributedDataParallel(aug)
        torch.manual_seed(2)
        wrapped(images()).square().sum().backward()
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert expected.keys() == found.keys()
        for n, g in expected.items():
            torch.testing.assert_close(g, found[n])
        with pytest.raises(UnsupportedModel, match=r"DistributedDataParallel: rewrite model\.module first"):
            ga.rewrite(DistributedDataParallel(ConvNet()), "layer1")
        with pytest.raises(NotRewritten, match="the module inside the wrapper"):
            ga.strip(wrapped)
    finally:
        dist.destroy_process_group()


def test_attributes_of_the_model_are_there() -> None:
    model = ConvNet()
    model.describe = lambda: "mine"  # type: ignore[assignment]
    aug = ga.rewrite(model, "layer1")
    assert aug.config is model.config
    assert aug.describe() == "mine"
    assert aug.layer1[0].conv1.weight is model.layer1[0].conv1.weight
    model.added_later = 3  # type: ignore[assignment]
    assert aug.added_later == 3
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = aug.no_such_thing
    assert not hasattr(aug, "no_such_thing")


def test_a_new_head_goes_to_both() -> None:
    model = ConvNet()
    aug = ga.rewrite(model, "layer1")
    aug.fc = nn.Linear(6, 11)
    assert model.fc is aug.fc
    assert aug(images()).shape == model(images()).shape == (6, 11)
    assert list(aug.state_dict()) == list(model.state_dict())
    twin = copy.deepcopy(aug)
    assert twin(images()).shape == (6, 11)
    assert ga.strip(aug).fc.out_features == 11


def test_root_parameters_and_buffers_are_the_models() -> None:
    model = TextNet()
    aug = ga.rewrite(model, "blocks.1")
    assert aug.position is model.position
    assert aug.scale is model.scale
    with torch.no_grad():
        model.position.zero_()
        model.scale.fill_(2.0)
    assert torch.equal(aug.eval()(tokens()), model.eval()(tokens()))
    aug(tokens()).sum().backward()
    assert model.position.grad is not None


@pytest.mark.long
def test_two_runs_with_one_seed_are_one_run() -> None:
    outputs = []
    for _ in range(2):
        torch.manual_seed(11)
        aug = ga.rewrite(ConvNet(), "layer1")
        optimizer = torch.optim.SGD(aug.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            aug(images()).square().sum().backward()
            optimizer.step()
        outputs.append(aug(images()))
    assert torch.equal(*outputs)


def test_a_forward_with_optional_inputs_is_called_as_before() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
            h = self.first(x)
            if mask is not None:
                h = h * mask
            return self.second(h) * scale

    model, x = Masked().eval(), features()
    plain = ga.rewrite(model, "first")
    for given in ({"mask": torch.ones(6, 4)}, {"scale": 2.0}):  # in eval mode the model itself runs
        assert torch.equal(plain(x, **given), model(x, **given))
    for call in (lambda m: m(x), lambda m: m(x=x), lambda m: m(x, None), lambda m: m(x, scale=1.0)):
        assert torch.equal(call(plain), call(model))
    plain.train()
    with pytest.raises(GraphaugError, match="captured without 'mask'"):
        plain(x, torch.ones(6, 4))
    with pytest.raises(GraphaugError, match="captured without 'scale'"):
        plain(x, scale=2.0)
    plain.eval()
    masked = ga.rewrite(model, "first", example_inputs={"x": x, "mask": torch.ones(6, 4)})
    mask = features(seed=3)
    assert torch.equal(masked(x, mask), model(x, mask))
    assert torch.equal(masked(x, mask=mask), model(x, mask=mask))


def test_training_mode_that_matters_gives_two_graphs() -> None:
    model, x = Modal(), features()
    aug = ga.rewrite(model, "first")
    assert aug.plan.two_graphs
    assert "two graphs, for training and eval mode" in str(aug.plan)
    for m in (aug, copy.deepcopy(aug), pickle.loads(pickle.dumps(aug))):
        m.train()
        assert isinstance(m(x), tuple)
        m.eval()
        assert torch.equal(m(x), model.eval()(x))
    ga.verify(aug, x)


# --- a second rewrite ---------------------------------------------------------------------------


@pytest.mark.long
def test_a_second_rewrite_adds_a_site() -> None:
    model = ConvNet()
    first = ga.rewrite(model, "layer1", rate=0.2, stop_grad=True)
    both = ga.rewrite(first, "layer2", rate=0.7)
    assert {str(t): float(n.rate) for t, n in both.augmentations.items()} == {"layer1": 0.2, "layer2": 0.7}
    assert [s.request.stop_grad for s in both.plan.sites] == [True, False]
    assert ga.strip(both) is model
    ga.verify(both, images())
    assert len(first.augmentations) == 1


@pytest.mark.parametrize("at", ["layer1", ["layer2", "layer1"], "re:layer1"])
@pytest.mark.long
def test_a_site_is_rewritten_once(at: Any) -> None:
    aug = ga.rewrite(ConvNet(), "layer1")
    with pytest.raises(AlreadyRewritten, match=r"already rewritten at layer1: use aug\.set_rate"):
        ga.rewrite(aug, at)


@pytest.mark.long
def test_the_same_call_by_another_spelling_is_the_same_site() -> None:
    with pytest.raises(AlreadyRewritten, match=r"use aug\.set_rate"):
        ga.rewrite(ga.rewrite(ConvNet(), "layer1.1.relu@1"), "layer1.1.relu", expect=2, allow_bypass=True)


@pytest.mark.long
def test_a_second_rewrite_keeps_a_rate_that_was_set() -> None:
    first = ga.rewrite(ConvNet(), "layer1", rate=0.2)
    first.set_rate(0.9)
    first.set_subset(0.25)
    both = ga.rewrite(first, "layer2")
    assert float(both.deep_augment.rate) == 0.9
    assert float(both.deep_augment.subset) == 0.25


# --- bad input ----------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], type[GraphaugError], str]] = {
    "unknown layer": (
        {"at": "layer3"},
        SiteNotFound,
        "Did you mean 'layer2', 'layer1'|Did you mean 'layer1', 'layer2'",
    ),
    "unknown inner layer": ({"at": "layer1.1.conv3"}, SiteNotFound, r"Did you mean 'layer1\.1\.conv[12]'"),
    "several unknown": ({"at": ["layer9", "steem"]}, SiteNotFound, "(?s)'layer9'.*'steem'.*'stem'"),
    "index out of range": ({"at": "layer1[2]"}, SiteNotFound, r"layer1\[2\]"),
    "stage out of range": ({"at": 99}, SiteNotFound, "99"),
    "negative stage": ({"at": -2}, SelectorError, "-1 is the model input"),
    "empty regex match": ({"at": "re:nothing.*"}, SiteNotFound, "matches nothing in ConvNet"),
    "empty glob match": ({"at": "layer1.*.conv9"}, SiteNotFound, "matches nothing in ConvNet"),
    "no such class": ({"at": nn.GRU}, SiteNotFound, "is a GRU"),
    "predicate of nothing": ({"at": lambda site: False}, SiteNotFound, "accepts none"),
    "everything excluded": ({"at": "layer1", "exclude": "layer1"}, SiteNotFound, "leaves nothing"),
    "empty string": ({"at": ""}, SelectorError, "is empty"),
    "empty list": ({"at": []}, SelectorError, "empty list"),
    "empty dict": ({"at": {}}, SelectorError, "names no site"),
    "none": ({"at": None}, SelectorError, "None is no selector"),
    "an input": ({"at": torch.ones(2)}, SelectorError, "a Tensor is no selector: inputs are given by name"),
    "float": ({"at": 1.5}, SelectorError, "a float is no selector"),
    "bool": ({"at": True}, SelectorError, "a bool is no selector"),
    "module": ({"at": nn.Linear(1, 1)}, SelectorError, "ConvNet has no such module: use a path or a class"),
    "nested list": ({"at": [["layer1"]]}, SelectorError, "a list is no selector"),
    "broken regex": ({"at": "re:("}, SelectorError, "no valid regular expression"),
    "ambiguous call": (
        {"at": "layer1.1.relu"},
        AmbiguousSite,
        r"'layer1\.1\.relu' is called 2 times: use 'layer1\.1\.relu@0' or '@1', or expect=2 for both",
    ),
    "call out of range": ({"at": "layer1.1.relu@2"}, SiteNotFound, "called 2 times"),
    "other count": ({"at": "layer1.*", "expect": 3}, SiteCountMismatch, "2 sites, not 3"),
    "other count of a dict": ({"at": {"layer1": 0.1}, "expect": 2}, SiteCountMismatch, "expect=2"),
    "bypassed site": (
        {"at": "layer1.1.conv2"},
        BypassedSite,
        r"'layer1\.1\.conv2' does not separate input from output: 'layer1\.1\.add' also receives 'layer1\.0'\. "
        r"Use 'layer1\.1\.add', or pass allow_bypass=True",
    ),
    "rate above": ({"rate": 1.5}, InvalidOption, r"rate=1\.5 is outside"),
    "rate below": ({"rate": -0.1}, InvalidOption, r"rate=-0\.1 is outside"),
    "rate nan": ({"rate": math.nan}, InvalidOption, "rate=nan is outside"),
    "rate bool": ({"rate": True}, InvalidOption, "rate=True is no number"),
    "rate text": ({"rate": "0.5"}, InvalidOption, r"rate='0\.5' is no number"),
    "subset above": ({"subset": 2}, InvalidOption, "subset=2 is outside"),
    "subset below": ({"subset": -1e-9}, InvalidOption, "subset=-1e-09 is outside"),
    "subset nan": ({"subset": math.nan}, InvalidOption, "subset=nan is outside"),
    "subset bool": ({"subset": False}, InvalidOption, "subset=False is no number"),
    "subset text": ({"subset": "half"}, InvalidOption, "subset='half' is no number"),
    "rate of a site": ({"at": {"layer1": 1.5}}, InvalidOption, r"rate at 'layer1'=1\.5"),
    "two rates": ({"at": {"layer1": 0.1, "re:layer1": 0.2}}, InvalidOption, "'layer1' two rates"),
    "sampling": ({"sampling": "exactly"}, InvalidOption, "Did you mean 'exact'"),
    "granularity": ({"granularity": "channels"}, InvalidOption, "Did you mean 'channel'"),
    "granularity of Dropout": ({"granularity": "head"}, InvalidOption, r"graphaug.Dropout\(0.5, 'head', …\)"),
    "pairing": ({"pairing": "one_sided"}, InvalidOption, "Did you mean 'one-sided'"),
    "one-sided subset": ({"pairing": "one-sided", "subset": 0.75}, InvalidOption, "at most 0.5"),
    "stop_grad": ({"stop_grad": "yes"}, InvalidOption, "neither True nor False"),
    "freeze": ({"freeze": "befor"}, InvalidOption, "Did you mean 'before'"),
    "freeze bool": ({"freeze": True}, InvalidOption, "Known: None, 'before', 'after'"),
    "side": ({"side": "behind"}, InvalidOption, "neither 'after' nor 'before'"),
    "expect": ({"expect": 0}, InvalidOption, "positive integer"),
    "allow_bypass": ({"allow_bypass": 1}, InvalidOption, "neither True nor False"),
    "backward": ({"backward": "spares"}, InvalidOption, "Did you mean 'sparse'"),
    "examples": ({"example_inputs": 3}, CaptureError, "give a tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_changed(name: str) -> None:
    options, error, message = BAD[name]
    model = ConvNet()
    before = fingerprint(model)
    with pytest.raises(error, match=message):
        ga.rewrite(model, **{"at": "layer1", "freeze": "before", **options})
    assert fingerprint(model) == before


def test_a_number_needs_known_stages() -> None:
    with pytest.raises(SiteNotFound, match="the stages of Mlp have no known numbers"):
        ga.rewrite(Mlp(), 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.DataParallel(ConvNet()), r"DataParallel: rewrite model\.module first, then wrap"),
        (lambda: torch.compile(ConvNet()), "compiled already: rewrite first, then compile"),
        (lambda: ConvNet, "the class ConvNet: make an instance of it"),
        (lambda: "resnet18", "this is a str"),
        (lambda: None, "this is None"),
        (lambda: lambda x: x, "this is a function"),
        (lambda: ConvNet().state_dict(), "this is an OrderedDict"),
    ],
    ids=["DataParallel", "compiled", "class", "str", "None", "function", "state_dict"],
)
def test_what_is_no_plain_model_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        ga.rewrite(make(), "layer1")


def test_a_batch_without_rows_is_refused_in_training_only() -> None:
    aug = ga.rewrite(Mlp(), "last")
    with pytest.raises(BatchError, match="0 row"):
        aug(features(0))
    assert aug.eval()(features(0)).shape == (0, 3)


def test_a_batch_of_one_row_trains_on_as_the_model_would() -> None:
    model = Mlp()
    aug = ga.rewrite(model, "last")  # a single row has no other to be mixed with: it stays as it is
    for mode in (True, False):
        aug.train(mode), model.train(mode)
        torch.testing.assert_close(aug(features(1)), model(features(1)), rtol=0, atol=0)
    aug.train()(features(1)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_odd_rows_with_one_sided_pairing_are_refused_in_training_only() -> None:
    aug = ga.rewrite(ConvNet(), "layer1", pairing="one-sided")
    with pytest.raises(BatchError, match=r"two views stacked as \[x1; x2\]: 5 rows is odd"):
        aug(images(5))
    assert aug.eval()(images(5)).shape == (5, 5)


def test_an_integer_input_is_no_batch_of_activations() -> None:
    with pytest.raises(SiteNotFound, match="'input' holds no floating-point tensor"):
        ga.rewrite(TextNet(), "input", example_inputs=tokens())
    with pytest.raises(SiteNotFound, match="'input' holds no floating-point tensor"):
        ga.rewrite(TextNet(), "input")


@pytest.mark.parametrize("value", [1.5, -1, math.nan, True, "0.5", None, {"layer1": 2.0}], ids=str)
@pytest.mark.long
def test_a_setting_outside_its_domain_changes_nothing(value: Any) -> None:
    aug = ga.rewrite(ConvNet(), ["layer1", "layer2"], rate=0.5)
    for setter in (aug.set_rate, aug.set_subset):
        with pytest.raises(InvalidOption, match=r"(rate|subset).*is (outside|no number)"):
            setter(value)
    assert {float(n.rate) for n in aug.augmentations.values()} == {0.5}


def test_a_setting_of_one_site_of_several_is_all_or_nothing() -> None:
    aug = ga.rewrite(ConvNet(), ["layer1", "layer2"], rate=0.5)
    with pytest.raises(SiteNotFound, match=r"not augmented at 'layer3'.*Its sites: layer1, layer2"):
        aug.set_rate({"layer1": 0.1, "layer3": 0.2})
    with pytest.raises(InvalidOption):
        aug.set_rate({"layer1": 0.1, "layer2": 7})
    assert {float(n.rate) for n in aug.augmentations.values()} == {0.5}


def test_a_one_sided_subset_above_half_changes_no_site() -> None:
    aug = ga.rewrite(ConvNet(), ["layer1", "layer2"], pairing="one-sided", subset=0.25)
    with pytest.raises(InvalidOption, match=r"at most 0\.5"):
        aug.set_subset({"layer1": 0.5, "layer2": 0.75})
    assert {float(n.subset) for n in aug.augmentations.values()} == {0.25}


def test_the_sparse_backward_is_refused_where_rows_see_each_other() -> None:
    with pytest.raises(SparseBackwardError):
        ga.rewrite(ConvNet(), "layer1", backward="proved", stop_grad=True)


@pytest.mark.parametrize(
    "thing", [ConvNet(), None, "aug", nn.Sequential()], ids=["model", "None", "str", "empty"]
)
def test_strip_takes_what_rewrite_returned(thing: Any) -> None:
    named = "None" if thing is None else f"a {type(thing).__name__}"
    with pytest.raises(NotRewritten, match=f"not {named}"):
        ga.strip(thing)
