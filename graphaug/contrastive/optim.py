"""Optimizers: SGD, LARS and AdamW, fused where there is such a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

OPTIMIZERS = ("sgd", "lars", "adamw")
"""The optimizers by name."""


class LARS(torch.optim.Optimizer):
    """SGD whose step is scaled per layer: layer-wise adaptive rate scaling (You et al. 2017), in SimCLR's variant.

    For a parameter w with gradient g: ``d = g + wd·w``; where ``adapt`` holds for its group, d is multiplied by
    ``trust · |w| / |d|`` (by 1 if either norm is 0); ``v = momentum·v + d``; ``w = w - lr·v``. You et al. (algorithm 1)
    divide by ``|g| + wd·|w|`` instead. Norms and biases are neither decayed nor adapted: `parameter_groups`.

    Args:
        params: parameters, or groups with their own ``weight_decay`` and ``adapt``.
        lr: the global learning rate.
        momentum: in [0, 1).
        weight_decay: of the L2 penalty.
        trust: η, the trust coefficient.
        adapt: whether the step is scaled.

    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        adapt: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make a step; ``closure`` is not called."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                d = p.grad.add(p, alpha=group["weight_decay"])
                if group["adapt"]:
                    d = d * self._trust_ratio(p, d, group["trust"])
                velocity = self.state[p].get("momentum_buffer")
                if velocity is None:
                    velocity = self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                velocity.mul_(group["momentum"]).add_(d)
                p.add_(velocity, alpha=-group["lr"])

    @staticmethod
    def _trust_ratio(p: Tensor, d: Tensor, trust: float) -> Tensor:
        # A tensor, and no branch on it: a branch would wait for the device at every layer.
        size, step = p.norm(), d.norm()
        return torch.where((size > 0) & (step > 0), trust * size / step, 1.0)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: decayed weights, and norms and biases, which are not decayed or adapted.

    The second group holds every parameter of one dimension or none.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    name: str, module: nn.Module, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters of ``module``.

    SGD decays all of them, as SupContrast does; LARS and AdamW leave out norms and biases. On a CPU and a GPU the step
    of SGD and AdamW is one fused kernel, which reads every parameter once.
    """
    groups: list[Any] = parameter_groups(module, weight_decay)
    if name == "lars":
        return LARS(groups, lr, momentum)
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"]) or None
    if name == "adamw":
        for group in groups:
            group.pop("adapt", None)
        return torch.optim.AdamW(groups, lr, fused=fused)
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr, momentum, weight_decay=weight_decay, fused=fused)
