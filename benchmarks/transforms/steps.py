"""Steps of user code, and those of their oracles: the model with plain forward hooks, given the same draws."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import graphaug as ga
from benchmarks.transforms.formulas import VECTOR, WIDTH, Rows, along
from benchmarks.transforms.methods import SITE, Method

TOKENS, BATCH = 6, 8


class Block(nn.Module):
    """A residual branch on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Mean(nn.Module):
    """The mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, WIDTH), Block(), Block(), Mean(), nn.Linear(WIDTH, 5)).double()


def given() -> dict[str, Tensor]:
    """What user code finds: inputs, labels, and another input's activation at the site."""
    generator = torch.Generator().manual_seed(3)
    return {
        "x": torch.randn(BATCH, TOKENS, 12, dtype=torch.float64, generator=generator),
        "source": torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.float64, generator=generator),
        "labels": torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]),
        "vector": VECTOR,
    }


def made(method: Method, model: nn.Module, **options: Any) -> Any:
    """What the user's line makes, with the example and more options added to its call."""
    names: dict[str, Any] = {"ga": ga, "torch": torch, "model": model, "options": options, **given()}
    wants_example = "perturb_weights" not in method.make
    exec(re.sub(r"\)$", f"{', example_inputs=x' if wants_example else ''}, **options)", method.make), names)
    return names["aug"]


def parameters_of(aug: Any) -> list[nn.Parameter]:
    """Those that are trained; what moves weights owns none."""
    return list(aug.__dict__.get("model", aug).parameters())


def step(aug: Any, method: Method, parameters: list[nn.Parameter], seed: int = 1) -> list[Tensor]:
    """Output and gradients of one step of the user's code."""
    names = {"ga": ga, "torch": torch, "aug": aug, **given()}
    torch.manual_seed(seed)
    exec(method.use, names)
    return with_gradients(names["out"], parameters)


def with_gradients(out: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    grads = torch.autograd.grad((out * weight).sum(), parameters, allow_unused=True)
    return [
        out.detach(),
        *(torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)),
    ]


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    assert [t.shape for t in first] == [t.shape for t in second]
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


@contextlib.contextmanager
def keeping_draws(aug: Any, into: dict[str, Any]) -> Iterator[None]:
    """Keep what every site draws in this block, by site."""
    nodes = dict(zip(map(str, aug.augmentations), aug.augmentations.values(), strict=True))
    owners = {
        site: (getattr(node, "transform", node), "draw" if hasattr(node, "transform") else "draw_noise")
        for site, node in nodes.items()
    }

    def keeping(site: str, draw: Any) -> Any:
        def kept(*args: Any) -> Any:
            assert site not in into, f"{site} drew twice in one forward"
            into[site] = draw(*args)
            return into[site]

        return kept

    for site, (owner, name) in owners.items():
        owner.__dict__[name] = keeping(site, getattr(owner, name))
    try:
        yield
    finally:
        for owner, name in owners.values():
            del owner.__dict__[name]


def by_formula(aug: Any, method: Method, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The step, and that of the model with hooks that put the formulas' rows in their places."""
    draws: dict[str, Any] = {}
    with keeping_draws(aug, draws):
        found = step(aug, method, parameters_of(model))
    stopped = {str(s.request.target): s.request.stop_grad for s in aug.plan.sites}
    drawn = {site: aug.drawn[site] for site in method.sites}
    tensors = given()

    def hook(site: str) -> Any:
        def put(_: nn.Module, __: Any, h: Tensor) -> Tensor:
            rows, index = drawn[site].rows, drawn[site].index
            chosen = Rows(h[index], draws[site], h, tensors["labels"][index], tensors["source"][index])
            new = method.sites[site](chosen)
            new = new.detach() if stopped[site] else new
            if new.shape[1:] != h.shape[1:]:
                return new
            return torch.where(along(rows, h).bool(), h.index_copy(0, index, new), h)

        return model.get_submodule(site).register_forward_hook(put)

    handles = [hook(site) for site in method.sites]
    out = model(tensors["x"])
    for handle in handles:
        handle.remove()
    if method.loss is not None:
        out = method.loss(out, tensors["labels"], drawn if len(drawn) > 1 else drawn[SITE])
    return found, with_gradients(out, parameters_of(model))


def otherwise(aug: Any, method: Method, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The step of what is no transform, and that of its oracle."""
    x, parameters = given()["x"], parameters_of(model)
    if method.name == "moved weights":
        return moved_weights(aug, method, model)
    found = step(aug, method, parameters)
    if method.name == "deep views":
        torch.manual_seed(1)
        plain = ga.rewrite(model, SITE, backward="dense", example_inputs=x, **stopping(aug))
        return found, with_gradients(plain(torch.cat([x, x])), parameters)
    seen: list[Tensor] = []
    if method.name == "features of layers":
        handles = [
            model.get_submodule(name).register_forward_hook(lambda _, __, h: seen.append(h.flatten()))
            for name in (SITE, "2")
        ]
    else:
        kept = [m.kept for name, m in aug.named_children() if name.startswith("skip_rows")]
        masks = [torch.zeros(BATCH, dtype=x.dtype).index_fill(0, k, BATCH / len(k)) for k in kept]
        handles = [
            model.get_submodule(name).register_forward_hook(lambda _, __, h, mask=mask: h * along(mask, h))
            for name, mask in zip(("1.branch", "2.branch"), masks, strict=True)
        ]
    out = model(x)
    for handle in handles:
        handle.remove()
    return found, with_gradients(torch.cat(seen) if seen else out, parameters)


def stopping(aug: Any) -> dict[str, bool]:
    return {"stop_grad": aug.plan.sites[0].request.stop_grad}


def moved_weights(aug: Any, method: Method, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The step, and that of a copy whose weights were moved by hand with the same random numbers."""
    found = step(aug, method, parameters_of(model))
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in twin.parameters():
            p += p.std() * torch.randn(p.shape, dtype=p.dtype)
    return found, with_gradients(twin(given()["x"]), parameters_of(twin))
