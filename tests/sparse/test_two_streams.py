"""BatchNorm over two streams: torch's own on the whole batch in value, the stopped rows detached in gradient."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import ConvNet
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import AssumptionViolated, SparseBackwardError
from graphaug.sparse.two_streams import two_stream_batch_norm
from graphaug.vision.models import build_model

pytestmark = pytest.mark.few(1)

SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (4,),
    nn.BatchNorm2d: (4, 3, 5),
    nn.BatchNorm3d: (4, 2, 3, 2),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"affine": False},
    {"track_running_stats": False},
    {"momentum": None},
    {"momentum": 0.7, "eps": 1e-2},
]


def made(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    norm = kind(4, **options)
    for p in norm.parameters():
        nn.init.normal_(p)
    return norm


def rows_of(kind: Any, count: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows far from normalised, and differing from each other."""
    x = torch.randn(count, *SHAPES[kind], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (x * 3 + torch.arange(count).view(-1, *[1] * (x.dim() - 1))).to(dtype)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("stopped", [1, 3, 6])
def test_forward_statistics_and_gradient_are_those_of_the_joint_batch(
    kind: Any, options: dict[str, Any], stopped: int
) -> None:
    norm = made(kind, **options).double()
    twin, x = copy.deepcopy(norm), rows_of(kind)
    weights = torch.randn_like(x)
    kept = x[stopped:].clone().requires_grad_()
    for _ in range(3):  # the statistics of several steps
        out, out_stopped = two_stream_batch_norm(norm, kept, x[:stopped])
        assert not out_stopped.requires_grad
        # the meaning: stopped rows detached before the norm and behind it
        other = x[stopped:].clone().requires_grad_()
        expected = twin(torch.cat([x[:stopped], other]))
        torch.testing.assert_close(out, expected[stopped:], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(out_stopped, expected[:stopped], rtol=1e-10, atol=1e-10)
        for (name, mine), theirs in zip(norm.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12, msg=name)
    mine = torch.autograd.grad((out * weights[stopped:]).sum(), [kept, *norm.parameters()])
    theirs = torch.autograd.grad((expected[stopped:] * weights[stopped:]).sum(), [other, *twin.parameters()])
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)]
)
def test_forward_in_other_precisions(kind: Any, dtype: torch.dtype, tolerance: float) -> None:
    norm = made(kind)  # float32 with its statistics, as under autocast
    twin, x = copy.deepcopy(norm).double(), rows_of(kind, dtype=dtype)
    out, out_stopped = two_stream_batch_norm(norm, x[3:], x[:3])
    assert out.dtype == out_stopped.dtype == dtype
    found, expected = torch.cat([out_stopped, out]).double(), twin(x.double())
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    torch.testing.assert_close(norm.running_var.double(), twin.running_var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", SHAPES)
def test_large_means_do_not_cancel(kind: Any) -> None:
    """The textbook E[x²] - E[x]² would lose all digits here."""
    x = rows_of(kind, dtype=torch.float32) + 4096
    norm = made(kind)
    twin = copy.deepcopy(norm)
    out, _ = two_stream_batch_norm(norm, x[3:], x[:3])
    expected = copy.deepcopy(twin).double()(x.double())[3:]
    torch_error = float((twin(x)[3:] - expected).detach().abs().max())
    assert float((out - expected).detach().abs().max()) <= max(10 * torch_error, 1e-2)


@pytest.mark.parametrize("kind", SHAPES)
def test_eval_mode_uses_and_keeps_the_running_statistics(kind: Any) -> None:
    norm, x = made(kind).double(), rows_of(kind)
    norm(x)
    norm.eval()
    state = copy.deepcopy(norm.state_dict())
    out, out_stopped = two_stream_batch_norm(norm, x[2:].requires_grad_(), x[:2])
    torch.testing.assert_close(torch.cat([out_stopped, out]), norm(x))
    assert out.requires_grad
    assert not out_stopped.requires_grad
    for name, value in norm.state_dict().items():
        assert torch.equal(value, state[name])


# --- whole networks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet18-cifar:8")


def images(rows: int = 6) -> Tensor:
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def two_streams(model: nn.Module, at: str, **options: Any) -> ga.AugmentedModule:
    return ga.rewrite(model, at, stop_grad=True, backward="sparse", example_inputs=images(), **options)


@pytest.mark.parametrize(
    ("at", "subset"), [("layer1", 0.5), ("layer3", 1 / 6), ("layer4", 0.5), ("layer4", 5 / 6)]
)
@pytest.mark.long
def test_a_resnet_is_forward_the_dense_one(resnet: nn.Module, at: str, subset: float) -> None:
    model = copy.deepcopy(resnet)
    sparse = two_streams(model, at, subset=subset, rate=0.0)
    assert sparse.plan.backward == "sparse"
    assert "two streams share the statistics of" in sparse.plan.reason
    assert "is dropped" in sparse.plan.reason
    dense = ga.rewrite(copy.deepcopy(resnet), at, subset=subset, rate=0.0, stop_grad=True, backward="dense")
    for _ in range(2):
        found, expected = sparse(images()), dense(images())
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    for (name, mine), theirs in zip(model.named_buffers(), dense.original.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, msg=name)
        if name.endswith("num_batches_tracked"):
            assert int(mine) == 2
    ga.verify(sparse, images())


@pytest.mark.parametrize("subset", [0.0, 1.0])
@pytest.mark.long
def test_none_or_all_rows_stopped(resnet: nn.Module, subset: float) -> None:
    model = copy.deepcopy(resnet)
    sparse = two_streams(model, "layer3", subset=subset, rate=0.0)
    plain = copy.deepcopy(resnet)
    found, expected = sparse(images()), plain(images())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for (name, mine), theirs in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(mine, theirs[1], rtol=1e-5, atol=1e-6, msg=name)
    found.square().sum().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    assert any(n.startswith("layer4") for n in reached)
    assert ("conv1.weight" in reached) == (subset == 0.0)


@pytest.mark.long
def test_the_gradient_is_that_of_rows_detached_at_every_norm(resnet: nn.Module) -> None:
    """The oracle runs the whole batch and detaches the stopped rows before each BatchNorm and at the cut."""
    model = copy.deepcopy(resnet).double()
    x = images().double()
    rows = torch.tensor([True, False, True, False, False, True])
    sparse = ga.rewrite(model, "layer2", stop_grad=True, rate=0.0, backward="sparse", example_inputs=x)
    sparse.deep_augment.draw_rows = lambda count, device: rows

    def detach(h: Tensor) -> Tensor:
        return torch.where(rows.view(-1, 1, 1, 1), h.detach(), h)

    model.eval()
    state = copy.deepcopy(model.state_dict())
    sparse.train()
    names = [n for n, p in model.named_parameters()]
    weights = torch.randn(6, model(x).shape[1], dtype=torch.float64)
    mine = torch.autograd.grad((sparse(x) * weights).sum(), list(model.parameters()))
    model.load_state_dict(state)
    handles = [model.layer2.register_forward_hook(lambda m, a, out: detach(out))]
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and not name.startswith(("layer3", "layer4")):
            handles.append(module.register_forward_pre_hook(lambda m, a: (detach(a[0]),)))
            # what stopped rows add to weight and bias of the norm is gone, too
            handles.append(module.register_forward_hook(lambda m, a, out: detach(out)))
    theirs = torch.autograd.grad((model.train()(x) * weights).sum(), list(model.parameters()))
    for handle in handles:
        handle.remove()
    for name, a, b in zip(names, mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.long
def test_two_streams_are_only_on_request(resnet: nn.Module) -> None:
    plan = ga.rewrite(resnet, "layer3", stop_grad=True, example_inputs=images()).plan
    assert plan.backward == "dense"
    assert plan.reason == (
        "BatchNorm2d 'bn1' couples the rows by its batch statistics; "
        "backward='sparse' splits the rows in two streams that share them"
    )
    assert (
        ga.rewrite(resnet, "layer3", stop_grad=True, backward="sparse", example_inputs=images()).plan.backward
        == "sparse"
    )


@pytest.mark.long
def test_other_batch_norms_are_refused_by_name() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("regnetx_002", num_classes=5)
    plan = ga.rewrite(model, "s2", stop_grad=True, example_inputs=torch.randn(2, 3, 32, 32), dry_run=True)
    assert "backward='sparse'" not in plan.reason  # it would be refused
    with pytest.raises(SparseBackwardError, match=r"BatchNormAct2d 'stem\.bn' couples the rows"):
        ga.rewrite(model, "s2", stop_grad=True, backward="sparse", example_inputs=torch.randn(2, 3, 32, 32))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(build_model("resnet18-cifar:8")).eval()
    with pytest.raises(SparseBackwardError, match="SyncBatchNorm 'bn1' couples the rows"):
        ga.rewrite(synced, "layer2", stop_grad=True, backward="sparse", example_inputs=images())


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_the_same(how: str) -> None:
    torch.manual_seed(0)
    sparse = two_streams(ConvNet(), "layer1")
    twin = copy.deepcopy(sparse) if how == "deepcopy" else pickle.loads(pickle.dumps(sparse))
    results = []
    for model in (sparse, twin):
        torch.manual_seed(0)
        out = model(images())
        out.square().sum().backward()
        results.append((out, [p.grad for p in model.parameters()], list(model.buffers())))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in sparse.parameters()}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_streams_compile_without_a_break_or_a_recompile(resnet: nn.Module) -> None:
    sparse = two_streams(copy.deepcopy(resnet), "layer2", rate=1.0)
    rows = torch.tensor([True, False, True, False, False, True])
    sparse.deep_augment.draw_rows = lambda count, device: rows
    state = copy.deepcopy(sparse.state_dict())
    sparse(images()).square().sum().backward()
    wanted, buffers = [p.grad for p in sparse.parameters()], copy.deepcopy(dict(sparse.named_buffers()))
    sparse.load_state_dict(state)
    sparse.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    compiled(images()).square().sum().backward()
    for (name, p), g in zip(sparse.named_parameters(), wanted, strict=True):
        assert (p.grad is None) == (g is None), name
        if g is not None:
            torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-4, msg=name)
    torch.testing.assert_close(dict(sparse.named_buffers()), buffers, rtol=1e-4, atol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rate in (0.1, 0.5, 0.9):
            sparse.set_rate(rate)
            compiled(images()).square().sum().backward()
    torch._dynamo.reset()


class Skips(nn.Module):
    """A decoder that is asked whether its sizes fit, and fails where they do not and it was not captured so."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.ReLU())
        self.pool, self.up, self.dec = nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        h = self.up(self.pool(skip))
        if h.shape[2:] != skip.shape[2:]:
            h = nn.functional.interpolate(h, size=skip.shape[2:])
        return self.dec(torch.cat([h, skip], 1)).mean((2, 3))


@pytest.mark.parametrize("backward", ["dense", "sparse"])
@pytest.mark.parametrize("norm", [True, False], ids=["two streams", "two runs"])
def test_what_fails_by_a_violated_assumption_says_so(norm: bool, backward: str, capfd: Any) -> None:
    x = torch.randn(4, 3, 8, 8)
    aug = ga.rewrite(Skips(norm), "dec", stop_grad=True, backward=backward, example_inputs=x)
    assert (aug._parts.split is not None and aug._parts.split.two_streams is not None) == (
        norm and backward == "sparse"
    )
    with pytest.raises(AssumptionViolated, match="captured"):
        aug(torch.randn(4, 3, 7, 7))
    assert capfd.readouterr().err == ""
    assert aug(x).shape == (4, 4)
    with pytest.raises(RuntimeError, match="channels"):  # what has another reason keeps it
        aug(torch.randn(4, 2, 8, 8))


@pytest.mark.parametrize(
    "register",
    [
        lambda norm: norm.register_full_backward_hook(lambda *_: None),
        lambda norm: norm.register_full_backward_pre_hook(lambda *_: None),
        lambda norm: norm.register_forward_hook(lambda *_: None),
    ],
    ids=["backward", "backward, before", "forward"],
)
def test_a_hook_that_would_not_be_called_is_refused(register: Callable[[Any], Any]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 3))
    x = torch.randn(8, 6)
    aug = ga.rewrite(model, "2", stop_grad=True, backward="sparse", example_inputs=x).train()
    aug(x)
    register(model[1])
    with pytest.raises(SparseBackwardError, match="has hooks since the model was rewritten"):
        aug(x)


@pytest.mark.parametrize("gone", [("running_mean", "running_var"), ("num_batches_tracked",)])
def test_statistics_that_are_not_kept_any_more(gone: tuple[str, ...]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 3))
    x, plain = torch.randn(8, 6), copy.deepcopy(model)
    aug = ga.rewrite(model, "2", rate=0.0, stop_grad=True, backward="sparse", example_inputs=x).train()
    for name in gone:
        setattr(model[1], name, None)
        setattr(plain[1], name, None)
    torch.testing.assert_close(aug(x), plain(x))
    torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()))
