"""Methods that are one line here: each beside its formula, run by plain hooks with the same draws.

    python -m benchmarks.transforms

Of every method: the lines of user code (they are executed as they stand), the oracle, the largest difference of outputs
and gradients from it in float64, whether the whole step compiles to one graph with the same values, which backward
stop-gradient gets, and how many claims `graphaug.verify` proves. Results go to ``benchmarks/results/transforms.json``,
and the table into ``docs/transforms.md`` between its markers.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import graphaug as ga
from benchmarks.coverage import ROOT, write

MARKS = ("<!-- benchmarks.transforms -->", "<!-- end -->")
SITE = "1"
Formula = Callable[[Tensor, Any], Tensor]
"""Augmented rows and what was drawn for them → what the paper makes of them."""


class Block(nn.Module):
    """A residual branch on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Mean(nn.Module):
    """The mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), Block(), Block(), Mean(), nn.Linear(16, 5)).double()


def along(value: Tensor, h: Tensor) -> Tensor:
    return value.view(-1, *[1] * (h.dim() - 1)).to(h)


def style(h: Tensor) -> tuple[Tensor, Tensor]:
    return h.mean(1, keepdim=True), (h.var(1, keepdim=True) + 1e-6).sqrt()


def mixstyle(h: Tensor, d: Any) -> Tensor:
    mean, std = (s.detach() for s in style(h))
    lam = along(d.lam, h)
    new_mean, new_std = (lam * s + (1 - lam) * s[d.partners] for s in (mean, std))
    return (h - mean) / std * new_std + new_mean


def dsu(h: Tensor, d: Any) -> Tensor:
    mean, std = style(h)
    spread = [(s.var(0, keepdim=True) + 1e-6).sqrt() for s in (mean, std)]
    return (h - mean) / std * (std + d.std * spread[1]) + mean + d.mean * spread[0]


@dataclass(frozen=True)
class Method:
    """A method, its code, and the formula that it is compared with."""

    name: str
    code: str
    oracle: str
    formula: Formula | None


def at_site(change: str, more: str = "") -> str:
    return f'aug = ga.rewrite(model, "{SITE}", transform={change}{more})'


METHODS = (
    Method(
        "Manifold Mixup",
        at_site("ga.Mix(alpha=2.0)"),
        "λh + (1-λ)h'",
        lambda h, d: along(d.lam, h) * h + (1 - along(d.lam, h)) * h[d.partners],
    ),
    Method(
        "feature extrapolation",
        at_site('ga.Mix("extrapolate", lam=0.5)'),
        "h + λ(h - h')",
        lambda h, d: h + 0.5 * (h - h[d.partners]),
    ),
    Method("Gaussian noise", at_site("ga.Noise(0.1)"), "h + σε", lambda h, d: h + 0.1 * d.noise.to(h)),
    Method(
        "NEFTune",
        at_site('ga.Noise(5.0, "uniform", "neftune")', ", subset=1.0"),
        "h + αu/√(LD)",
        lambda h, d: h + d.noise.to(h) * 5 / math.sqrt(h.shape[1] * h.shape[2]),
    ),
    Method(
        "MixStyle",
        at_site('ga.Statistics("mixstyle", probability=1.0)'),
        "its formula",
        mixstyle,
    ),
    Method("DSU", at_site('ga.Statistics("dsu", probability=1.0)'), "its formula", dsu),
    Method(
        "DropHead",
        at_site('ga.Dropout(0.25, "head", heads=4)'),
        "h·kept/(1-p), head by head",
        lambda h, d: h * d.kept.to(h) / 0.75,
    ),
    Method(
        "PatchDropout",
        at_site("ga.Tokens(0.5)", ", subset=1.0"),
        "tokens picked row by row",
        lambda h, d: torch.stack([row[kept] for row, kept in zip(h, d.kept, strict=True)]),
    ),
    Method(
        "activation addition",
        at_site("ga.Add(vector, scale=4.0)", ", subset=1.0"),
        "h + c·v",
        lambda h, d: h + 4 * VECTOR,
    ),
    Method("deep views", f'aug = ga.rewrite(model, "{SITE}", views=2)', "the model on [x; x]", None),
    Method(
        "skipped rows", 'aug = ga.skip_rows(model, "*.branch", rate=0.4)', "masked branches of all rows", None
    ),
    Method("features of layers", f'aug = ga.tap(model, ["{SITE}", "2"])', "forward hooks", None),
)
VECTOR = torch.linspace(-1, 1, 16, dtype=torch.float64)


def made(method: Method, model: nn.Module, x: Tensor, **options: Any) -> Any:
    """What the user's lines make, with the example and more options added to their call."""
    code = re.sub(r"\)$", ", example_inputs=x, **options)", method.code)
    names: dict[str, Any] = {"ga": ga, "model": model, "x": x, "vector": VECTOR, "options": options}
    exec(code, names)
    return names["aug"]


def step(model: Any, x: Tensor, owner: nn.Module) -> list[Tensor]:
    """Outputs and gradients of one step."""
    torch.manual_seed(1)
    out = model(x)
    outs = list(out.values()) if isinstance(out, dict) else [out]
    generator = torch.Generator().manual_seed(2)
    loss = sum((o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in outs)
    grads = torch.autograd.grad(loss, list(owner.parameters()), allow_unused=True)  # type: ignore[arg-type]
    zeros = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, owner.parameters(), strict=True)]
    return [*(o.detach() for o in outs), *zeros]


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    assert len(first) == len(second)
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


def by_formula(aug: Any, method: Method, model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The step, and that of the model with a hook that puts the formula's rows in their place."""
    transform, drawn = aug.augmentations[SITE].transform, []
    draw = transform.draw

    def kept(*args: Any) -> Any:
        drawn.append(draw(*args))
        return drawn[-1]

    transform.__dict__["draw"] = kept
    found = step(aug, x, model)
    del transform.__dict__["draw"]
    rows = aug.drawn[SITE].rows
    assert method.formula is not None
    apart = transform.needs.apart or transform.needs.new_tokens or bool(rows.all())

    def hook(_: nn.Module, __: Any, h: Tensor) -> Tensor:
        new = method.formula(h if apart else h[rows], drawn[0])  # type: ignore[misc]
        if transform.needs.new_tokens or bool(rows.all()):
            return new
        full = new if apart else torch.zeros_like(h).masked_scatter(along(rows, h).bool(), new)
        return torch.where(along(rows, h).bool(), full, h)

    handle = model.get_submodule(SITE).register_forward_hook(hook)
    expected = step(model, x, model)
    handle.remove()
    return found, expected


def otherwise(aug: Any, method: Method, model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The step of what is no transform, and that of its oracle."""
    found = step(aug, x, model)
    if method.name == "deep views":
        plain = ga.rewrite(model, SITE, backward="dense", example_inputs=x)
        return found, step(plain, torch.cat([x, x]), model)
    if method.name == "features of layers":
        seen: dict[str, Tensor] = {}
        handles = [
            model.get_submodule(name).register_forward_hook(
                lambda _, __, h, name=name: seen.update({name: h})
            )
            for name in (SITE, "2")
        ]
        expected = step(lambda x: (model(x), seen)[1], x, model)
    else:
        kept = [m.kept for name, m in aug.named_children() if name.startswith("skip_rows")]
        masks = [torch.zeros(len(x), dtype=x.dtype).index_fill(0, k, len(x) / len(k)) for k in kept]
        handles = [
            model.get_submodule(name).register_forward_hook(lambda _, __, h, mask=mask: h * along(mask, h))
            for name, mask in zip(("1.branch", "2.branch"), masks, strict=True)
        ]
        expected = step(model, x, model)
    for handle in handles:
        handle.remove()
    return found, expected


def measured(method: Method) -> dict[str, Any]:
    """All that the table says of a method."""
    model, x = (
        network(),
        torch.randn(8, 6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3)),
    )
    aug = made(method, model, x)
    compare = by_formula if method.formula is not None else otherwise
    found, expected = compare(aug, method, model, x)
    torch._dynamo.reset()
    compiled = step(torch.compile(aug, fullgraph=True, backend="aot_eager"), x, model)
    stopping = method.code.startswith("aug = ga.rewrite")
    plan = made(method, model, x, stop_grad=True).plan if stopping else None
    return {
        "method": method.name,
        "code": method.code,
        "lines": len(method.code.splitlines()),
        "oracle": method.oracle,
        "largest_difference": difference(found, expected),
        "compiled_difference": difference(found, compiled),
        "backward": "" if plan is None else plan.backward,
        "reason": "" if plan is None else plan.reason,
        "claims": list(ga.verify(aug, x, tolerance=1e-9).claims),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| method | lines | oracle | largest difference | compiled, from eager | stopped rows | verified |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        compiled = "equal" if row["compiled_difference"] == 0 else f"{row['compiled_difference']:.0e}"
        largest = "equal" if row["largest_difference"] == 0 else f"{row['largest_difference']:.0e}"
        cells = [row["method"], row["lines"], row["oracle"], largest, compiled, row["backward"] or "none"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{len(row['claims'])} claims"])) + " |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method in METHODS:
            rows.append(measured(method))
            print(f"{method.name}: {rows[-1]['largest_difference']:.1e}", flush=True)
    text = table(rows)
    print(text)
    found = {"torch": torch.__version__, "model": "two residual blocks on tokens, float64", "methods": rows}
    write(ROOT / "benchmarks/results/transforms.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    page = ROOT / "docs/transforms.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    write(page, f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
