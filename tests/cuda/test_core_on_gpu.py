"""The core on a GPU: place, capture, compilation, sparse equals dense, bf16, channels last, streams, one NCCL process.

Marked ``cuda`` and left out elsewhere; with GRAPHAUG_REHEARSE=1 they run on the CPU, so that they are known to run.
Oracles: the plain model, and the dense backward.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga

REHEARSED = bool(os.environ.get("GRAPHAUG_REHEARSE"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cpu" and not REHEARSED, reason="needs a GPU, or GRAPHAUG_REHEARSE=1"),
    # what a compiler thinks of the precision of float32, and torch of its own mode that tells who waits
    pytest.mark.filterwarnings("ignore:TensorFloat32", "ignore:Synchronization debug mode"),
]


class Encoder(nn.Module):
    """Blocks of attention without batch statistics."""

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        make = lambda: nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)  # noqa: E731
        self.blocks = nn.ModuleList(make() for _ in range(depth))
        self.head = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean(1))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.tail = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tail(self.body(x)).mean((2, 3)))


def encoder() -> tuple[Encoder, Tensor]:
    torch.manual_seed(0)
    return Encoder().to(DEVICE), torch.randn(8, 6, 16, device=DEVICE)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    model(x).float().square().mean().backward()
    return gradients(model)


def test_place_and_eval() -> None:
    model, x = encoder()
    aug = ga.rewrite(model, "blocks.1", stop_grad=True, example_inputs=x)
    assert all(p.device.type == DEVICE for p in aug.parameters())
    assert torch.equal(aug.eval()(x), model.eval()(x))
    moved = copy.deepcopy(aug).cpu()
    assert moved.train()(x.cpu()).device.type == "cpu"


def test_verify() -> None:
    model, x = encoder()
    ga.verify(ga.rewrite(model, "blocks.1", stop_grad=True), x, tolerance=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_equals_dense(dtype: torch.dtype) -> None:
    model, x = encoder()
    dense = ga.rewrite(
        copy.deepcopy(model), "blocks.2", rate=0.0, stop_grad=True, example_inputs=x, backward="dense"
    )
    sparse = ga.rewrite(
        copy.deepcopy(model), "blocks.2", rate=0.0, stop_grad=True, example_inputs=x, backward="sparse"
    )
    assert sparse.plan.backward == "sparse"
    with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
        wanted, found = step(dense, x), step(sparse, x)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) <= tolerance * float(value.abs().max() + 1e-3), name


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("backward", ["dense", "sparse"])
def test_compiled(mode: str | None, backward: str) -> None:
    if REHEARSED and DEVICE == "cpu" and mode:
        pytest.skip("graphs of a GPU")
    model, x = encoder()
    aug = ga.rewrite(model, "blocks.2", stop_grad=True, example_inputs=x, backward=backward)
    backend = "aot_eager" if REHEARSED and DEVICE == "cpu" else "inductor"
    options = {"fullgraph": True, "backend": backend, **({"mode": mode} if mode else {})}
    for module in (copy.deepcopy(model), aug):  # the plain model first: what fails with it is torch's
        fast = torch.compile(module, **options)
        for _ in range(4):
            loss = fast(x).square().mean()
            loss.backward()
            assert torch.isfinite(loss), type(module)
    assert all(p.grad is not None for p in model.head.parameters())


def test_channels_last() -> None:
    torch.manual_seed(0)
    model = ConvNet().to(DEVICE, memory_format=torch.channels_last)
    x = torch.randn(8, 3, 16, 16, device=DEVICE).to(memory_format=torch.channels_last)
    aug = ga.rewrite(model, "body", stop_grad=True, example_inputs=x, backward="sparse")
    aug(x).square().mean().backward()
    assert torch.equal(aug.eval()(x), model.eval()(x))


def test_a_stream_of_one_s_own() -> None:
    model, x = encoder()
    aug = ga.rewrite(model, "blocks.1", stop_grad=True, example_inputs=x)
    if DEVICE == "cuda":
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = step(aug, x)
        torch.cuda.current_stream().wait_stream(stream)
    else:
        found = step(aug, x)
    assert all(torch.isfinite(g).all() for g in found.values())


def test_drawing_waits_for_nothing() -> None:
    """A training step of the dense form never makes the host wait for the GPU."""
    model, x = encoder()
    aug = ga.rewrite(model, "blocks.1", example_inputs=x)
    step(aug, x)
    if DEVICE == "cpu":
        return
    try:
        torch.cuda.set_sync_debug_mode("error")
        aug(x).square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_process_of_ddp(tmp_path: object) -> None:
    model, x = encoder()
    aug = ga.rewrite(model, "blocks.1", stop_grad=True, example_inputs=x, backward="dense")
    torch.distributed.init_process_group(
        "nccl" if DEVICE == "cuda" else "gloo",
        init_method=f"file://{tmp_path}/rendezvous",
        rank=0,
        world_size=1,
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(aug, device_ids=[0] if DEVICE == "cuda" else None)
        wrapped(x).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(p.grad is not None for p in model.head.parameters())
