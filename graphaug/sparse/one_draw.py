"""Random numbers that are all the same: what is computed in parts then draws what one run draws."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graphaug.capture.state import seed
from graphaug.torch_private import OpOverload


class OneDraw(TorchDispatchMode):
    """Every random number is the same one, so that a row draws the same wherever it stands."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):
            return func(*args, **kwargs)
        names = [a.name for a in func._schema.arguments]
        if "dropout_p" in names:  # a fused attention, or its backward
            position = names.index("dropout_p")
            if position < len(args):
                args = (*args[:position], 0.0, *args[position + 1 :])
            else:
                kwargs = {**kwargs, "dropout_p": 0.0}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").removesuffix("_").removesuffix("_like")
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        seed(0)
        drawn = func(*args, **kwargs)
        if name == "randperm":
            return drawn.copy_(torch.arange(len(drawn)))
        if name in ("bernoulli", "uniform", "normal", "rand", "randn", "exponential"):
            return drawn.fill_(1 if name == "bernoulli" else 0.5)
        return drawn
