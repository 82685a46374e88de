"""Small networks that the tests of the core rewrite: one for each thing that a real model does."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A residual block whose ReLU is called twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.conv2(out)
        out = out + x
        return self.relu(out)


class ConvNet(nn.Module):
    """Stem, two stages of residual blocks, pooling, head: N×3×H×W to N×5."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = nn.Sequential(Block(width), Block(width))
        self.layer2 = nn.Sequential(Block(width))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, 5)
        self.config = {"width": width}

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


class Attention(nn.Module):
    """A pre-norm transformer block: N×T×D to N×T×D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(self.norm2(x))


class TextNet(nn.Module):
    """Token embedding, learned positions, a root-level buffer, blocks, mean pooling: N×T to N×4."""

    def __init__(self, width: int = 8, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.position = nn.Parameter(torch.randn(6, width))
        self.register_buffer("scale", torch.tensor(0.5))
        self.blocks = nn.ModuleList(Attention(width) for _ in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) * self.scale + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Mlp(nn.Module):
    """N×4 to N×3 with one hidden layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(4, 7), nn.Linear(7, 7), nn.Linear(7, 3)
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.act(self.hidden(x))
        x = self.hidden(x)
        return self.last(x)


class Tied(nn.Module):
    """An autoencoder whose decoder is the transposed encoder: one weight on both sides of ``act``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.act, self.decoder = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.act(self.encoder(x)))


class Checkpointed(nn.Module):
    """A leaf that recomputes its activations in the backward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """What transformers' outputs are: a mapping made from keywords."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class TwoOutputs(nn.Module):
    """A child that returns a mapping, as transformers' encoders do."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> ModelOutput:
            h = self.dense(x)
            return ModelOutput(last=h, norm=h.detach().norm())

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = self.Encoder(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)["last"])


class Modal(nn.Module):
    """Returns an auxiliary output in training mode only, and reads ``self.training`` itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.extra = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        h = F.dropout(self.first(x), 0.5, training=self.training)
        out = self.second(h)
        return (out, self.extra(h)) if self.training else out


def images(rows: int = 6, size: int = 8, seed: int = 0, **kind: Any) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(seed), **kind)


def tokens(rows: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(0, 20, (rows, 6), generator=torch.Generator().manual_seed(seed))


def features(rows: int = 6, width: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All of a model that a rewrite must leave as it is: what compares equal was not changed."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "modules": [(name, id(m), m.training, sorted(vars(m))) for name, m in model.named_modules()],
        "tensors": {n: (id(t), t._version, t.requires_grad, t.dtype, t.shape) for n, t in tensors.items()},
        "bytes": {n: t.detach().cpu().numpy().tobytes() for n, t in tensors.items() if not t.is_meta},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "rng": torch.get_rng_state().numpy().tobytes(),
    }
