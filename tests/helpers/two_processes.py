"""What each of two processes does in the tests of DDP and FSDP2; imported by the processes themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gloo import group_of_two
from networks import TextNet, tokens
from torch import Tensor, nn

import graphaug as ga

SITE = "blocks.1"


def model_and_augmented(stop_grad: bool) -> tuple[nn.Module, Any]:
    """The same weights in every process."""
    torch.manual_seed(0)
    model = TextNet()
    return model, ga.rewrite(model, SITE, stop_grad=stop_grad, example_inputs=tokens())


def loss_of(aug: Any, rank: int) -> Tensor:
    """The loss of one rank's share, with the masks that this rank draws."""
    torch.manual_seed(10 + rank)
    return aug(tokens(6, seed=rank)).square().mean()


def single_process(stop_grad: bool) -> tuple[list[float], dict[str, Tensor]]:
    """What two processes have to find: the losses, and the mean of the gradients."""
    model, aug = model_and_augmented(stop_grad)
    losses = []
    for rank in (0, 1):
        loss = loss_of(aug, rank)
        (loss / 2).backward()
        losses.append(float(loss.detach()))
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run(rank: int, folder: str, setups: list[tuple[str, bool]]) -> None:
    """One forward and backward per setup in one of two processes; saves the loss and the whole gradients."""
    with group_of_two(rank, folder):
        for kind, stop_grad in setups:
            model, aug = model_and_augmented(stop_grad)
            wrapped = _ddp(aug) if kind == "ddp" else _fsdp(model, aug)
            loss = loss_of(wrapped, rank)
            loss.backward()
            grads = {n: _whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
            torch.save((float(loss.detach()), grads), Path(folder) / f"{kind}_{stop_grad}_{rank}.pt")


def _ddp(aug: Any) -> Any:
    return nn.parallel.DistributedDataParallel(aug)


def _fsdp(model: nn.Module, aug: Any) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(aug, mesh=mesh)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
