"""Time and memory of one training step: plain, forward hook, dense and sparse Deep Augmentation.

    python -m benchmarks.step [--models vit-s bert-base convnext-t resnet18-cifar] [--rounds 7] [--subsets 0.5]
                              [--depths 3] [--modes eager compiled blocks regions] [--device cpu|cuda]
                              [--mode reduce-overhead]

One process, one batch and one seed for all; the variants take turns, a step each per round, and medians
with quartiles are reported, relative to the plain (un-augmented) step of the same mode. A step is
forward, loss and backward; the optimizer, the same for all, is left out. Memory is the activations that
autograd saves for the backward (on a GPU the allocator's peak). Every compiled variant begins without any
kernels on the disk, so that none is quick to compile because of another one; in the mode ``blocks`` the repeated blocks
are compiled alone, for any number of rows, and the rest is eager; in the mode ``regions`` the model is compiled whole
with its repeated blocks marked as regions that are compiled once. Beside every sparse step stands its floor,
``1 - (2/3)·s·f``: s the share of stopped rows, f the prefix's share of the forward FLOPs. On a GPU a step's kernels are
summed too: where they take less than the step, the GPU waits for the host, and a larger batch would not.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
import torch._inductor.utils
from torch import Tensor, nn

import graphaug
from benchmarks.coverage import ROOT, write

RATE = 0.5
MODES = ("eager", "compiled", "blocks", "regions")


@dataclass(frozen=True)
class Subject:
    """A model of the benchmark: how it is built, what it is called with, its three cuts."""

    name: str
    build: Callable[[], tuple[nn.Module, dict[str, Tensor]]]
    cuts: tuple[str, str, str]


def vit() -> tuple[nn.Module, dict[str, Tensor]]:
    import timm

    model = timm.create_model("vit_small_patch16_224", num_classes=128)
    return model, {"x": torch.randn(BATCH["vit-s"], 3, 224, 224)}


def bert() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import BertConfig, BertModel

    rows = BATCH["bert-base"]
    ids = torch.randint(5, 30000, (rows, 32))
    mask = torch.ones(rows, 32, dtype=torch.long)
    for i in range(rows):
        mask[i, 12 + i % 21 :] = 0
    return BertModel(BertConfig(), add_pooling_layer=False), {"input_ids": ids, "attention_mask": mask}


def convnext() -> tuple[nn.Module, dict[str, Tensor]]:
    import torchvision

    return torchvision.models.convnext_tiny(num_classes=128), {
        "x": torch.randn(BATCH["convnext-t"], 3, 224, 224)
    }


def resnet() -> tuple[nn.Module, dict[str, Tensor]]:
    from graphaug.vision.models import build_model

    return build_model("resnet18-cifar"), {"x": torch.randn(BATCH["resnet18-cifar"], 3, 32, 32)}


BATCH = {"vit-s": 8, "bert-base": 8, "convnext-t": 4, "resnet18-cifar": 32}
SUBJECTS = {
    s.name: s
    for s in (
        Subject("vit-s", vit, ("blocks.3", "blocks.7", "blocks.10")),
        Subject("bert-base", bert, ("encoder.layer.3", "encoder.layer.7", "encoder.layer.10")),
        Subject("convnext-t", convnext, ("features.3", "features.5.5", "features.7.0")),
        Subject("resnet18-cifar", resnet, ("layer2", "layer3", "layer4")),
    )
}


@dataclass
class Variant:
    """One way to run the step."""

    kind: str
    mode: str
    cut: str | None
    subset: float | None
    module: Any
    share: float | None = None
    compile_seconds: float | None = None
    saved: int | None = None
    weights: int = 0
    kernels: float | None = None
    seconds: list[float] | None = None

    @property
    def label(self) -> str:
        where = "" if self.cut is None else f" {self.cut}"
        return f"{self.mode} {self.kind}{where}{'' if self.subset is None else f' s={self.subset:g}'}"


def add_hook(model: nn.Module, cut: str, subset: float) -> nn.Module:
    """Deep Augmentation as a user would write it by hand today: a forward hook with a masked detach."""

    def hook(_: nn.Module, __: Any, h: Any) -> Any:
        first = h[0] if isinstance(h, tuple) else h
        rows = torch.rand(first.shape[0], device=first.device).argsort().argsort() < round(
            subset * first.shape[0]
        )
        rows = rows.view(-1, *[1] * (first.dim() - 1))
        out = torch.where(rows, nn.functional.dropout(first, RATE).detach(), first)
        return (out, *h[1:]) if isinstance(h, tuple) else out

    model.get_submodule(cut).register_forward_hook(hook)
    return model


def with_subset(aug: Any, subset: float) -> Any:
    """The same rewritten model with another subset; capture and proof are not done again."""
    added = {name: copy.deepcopy(module) for name, module in aug._parts.added.items()}
    other = graphaug.AugmentedModule(dataclasses.replace(aug._parts, added=added))
    other.set_subset(subset)
    return other


def repeated(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model: children of one class that stand in a list or a sequence."""
    lists = [list(m) for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential))]
    return [m for found in lists if len(found) > 1 and len(set(map(type, found))) == 1 for m in found]


def mark_regions(model: nn.Module) -> None:
    """Let the repeated blocks of a model compiled as a whole be compiled once, here and in no other model."""
    marked: dict[type, type] = {}
    for block in repeated(model):
        kind = type(block)
        if kind not in marked:
            forward = torch.compiler.nested_compile_region(kind.forward)
            marked[kind] = type(kind.__name__, (kind,), {"forward": forward})
        block.__class__ = marked[kind]


def of_model(
    model: nn.Module,
    inputs: dict[str, Tensor],
    modes: list[str],
    cuts: tuple[str, ...],
    subsets: list[float],
    whole: bool,
    hook: bool,
) -> list[Variant]:
    """The plain model, and its rewritten forms at each cut, which share its parameters."""
    found = [Variant("plain", mode, None, None, model) for mode in modes]
    half = 0.5 if 0.5 in subsets else subsets[0]
    for cut in cuts:
        options: dict[str, Any] = {"at": cut, "rate": RATE, "stop_grad": True, "example_inputs": inputs}
        hooked = add_hook(copy.deepcopy(model), cut, 0.5)
        dense = graphaug.rewrite(model, subset=0.5, backward="dense", **options)
        sparse = graphaug.rewrite(model, subset=0.5, backward="sparse", **options)
        share = sparse.plan.sites[0].flops_before
        print(f"  {cut}: {sparse.plan.reason}", flush=True)
        for mode in modes:
            thin = mode == "compiled" and not whole and cut != cuts[-1]
            if hook and not thin:
                found.append(Variant("hook", mode, cut, 0.5, hooked))
            found.append(Variant("dense", mode, cut, 0.5, dense))
            found += [
                Variant("sparse", mode, cut, subset, with_subset(sparse, subset), share)
                for subset in ([half] if thin else subsets)
            ]
    return found


def variants(
    subject: Subject,
    cuts: tuple[str, ...],
    subsets: list[float],
    modes: list[str],
    device: str,
    whole: bool,
    hook: bool,
) -> Any:
    """The model, its inputs and all variants that are to take turns.

    Compiled, the hook and other subsets than one half are tried at the last cut only, unless ``whole``: compiling takes
    most of the benchmark's time.
    """
    torch.manual_seed(0)
    model, inputs = subject.build()
    model = model.to(device).train()
    inputs = {k: v.to(device) for k, v in inputs.items()}
    if device == "cuda" and "resnet" in subject.name + "convnext":
        model = model.to(memory_format=torch.channels_last)
    found: list[Variant] = []
    if "blocks" in modes:  # first, as what is compiled later is not to be forgotten for them
        apart = copy.deepcopy(model)
        found += of_model(apart, inputs, ["blocks"], cuts, subsets, whole=True, hook=False)
        for block in repeated(apart):
            block.compile(dynamic=True)
    if "regions" in modes:
        apart = copy.deepcopy(model)
        mark_regions(apart)
        found += of_model(apart, inputs, ["regions"], cuts, subsets, whole=True, hook=False)
    if others := [mode for mode in modes if mode in ("eager", "compiled")]:
        found += of_model(model, inputs, others, cuts, subsets, whole, hook)
    return model, inputs, found


def output_of(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


def step(variant: Variant, inputs: dict[str, Tensor], device: str) -> None:
    """Forward, loss, backward."""
    module = variant.module
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        out = output_of(module(**inputs))
    out.float().square().mean().backward()
    module.zero_grad(set_to_none=True)


def saved_bytes(variant: Variant, inputs: dict[str, Tensor], device: str) -> tuple[int, int]:
    """Bytes that one forward keeps for its backward: activations, and copies of weights.

    Compiled convolutions keep their weights once more, in another memory format, as many for every step. On a GPU it is
    the allocator's peak, and nothing is told apart.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(variant, inputs, device)
        return torch.cuda.max_memory_allocated() - before, 0
    shapes = {p.shape for p in variant.module.parameters() if p.dim() > 1}
    own = {t.untyped_storage().data_ptr() for t in [*variant.module.parameters(), *variant.module.buffers()]}
    held: dict[int, tuple[int, bool]] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes(), t.shape in shapes
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = output_of(variant.module(**inputs))
    weights = sum(size for size, weight in held.values() if weight)
    total = sum(size for size, _ in held.values())
    out.float().square().mean().backward()
    variant.module.zero_grad(set_to_none=True)
    return total - weights, weights


def timed(variant: Variant, inputs: dict[str, Tensor], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step(variant, inputs, device)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def kernel_seconds(variant: Variant, inputs: dict[str, Tensor]) -> float:
    """The seconds of a step in which the GPU works: what is missing to the whole step, it waited for the host."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step(variant, inputs, "cuda")
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6


def measure(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Run all variants of one model in turns."""
    cuts = subject.cuts if options.depths == 3 else subject.cuts[-options.depths :]
    chosen = (options.subsets, options.modes, options.device, options.whole, not options.without_hook)
    _, inputs, found = variants(subject, cuts, *chosen)
    warnings.simplefilter("ignore")
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    if not options.cached:
        torch._inductor.config.force_disable_caches = True  # the time to compile is one of the results
    # else a model with a hook runs the program that was compiled for the same model without one
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    for variant in found:
        begin = time.perf_counter()
        if variant.mode == "blocks":
            torch._dynamo.reset()  # all share their blocks, and the first would compile them for all
        if variant.mode != "eager":
            if variant.mode != "blocks":
                variant.module = torch.compile(variant.module, fullgraph=True, mode=options.mode)
            # kernels lie on the disk, and the first step would be quick for whoever comes after one with the same
            with contextlib.nullcontext() if options.cached else torch._inductor.utils.fresh_cache():
                variant.saved, variant.weights = saved_bytes(variant, inputs, options.device)
                variant.compile_seconds = None if options.cached else time.perf_counter() - begin
                step(variant, inputs, options.device)
        else:
            variant.saved, variant.weights = saved_bytes(variant, inputs, options.device)
            step(variant, inputs, options.device)
        variant.seconds = []
        print(f"  ready {variant.label} ({time.perf_counter() - begin:.0f} s)", flush=True)
    for variant in (v for v in found if v.mode == "blocks"):
        step(variant, inputs, options.device)  # what was forgotten for the next one to compile
    with torch._dynamo.config.patch(error_on_recompile=True):
        for variant in found if options.device == "cuda" else ():
            variant.kernels = kernel_seconds(variant, inputs)
        for turn in range(options.rounds):
            for variant in found:
                if variant.mode == "eager" and turn >= options.eager_rounds:
                    continue
                assert variant.seconds is not None
                torch.manual_seed(turn)  # the same rows and dropout for all
                variant.seconds.append(timed(variant, inputs, options.device))
    rows = [describe(variant, found) for variant in found]
    record = {
        "model": subject.name,
        "batch": next(iter(inputs.values())).shape[0],
        "rounds": options.rounds,
        "rows": rows,
    }
    del found
    gc.collect()
    return record


def describe(variant: Variant, found: list[Variant]) -> dict[str, Any]:
    """A row of the table: ratios to the plain step of the same mode, taken round by round."""
    plain = next(v for v in found if v.kind == "plain" and v.mode == variant.mode)
    assert variant.seconds is not None
    assert plain.seconds is not None
    assert variant.saved is not None
    assert plain.saved
    ratios = [a / b for a, b in zip(variant.seconds, plain.seconds, strict=True)]
    low, middle, high = quartiles(ratios)
    row: dict[str, Any] = {
        "mode": variant.mode,
        "kind": variant.kind,
        "cut": variant.cut,
        "subset": variant.subset,
        "milliseconds": round(1000 * statistics.median(variant.seconds), 1),
        "ratio": round(middle, 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
        "saved_mib": round(variant.saved / 2**20, 1),
        "saved_ratio": round(variant.saved / plain.saved, 3),
        "weight_copies_mib": round(variant.weights / 2**20, 1),
    }
    if variant.kernels is not None:
        row["kernel_milliseconds"] = round(1000 * variant.kernels, 1)
    if variant.compile_seconds is not None:
        row["first_step_seconds"] = round(variant.compile_seconds, 1)
    if variant.share is not None and variant.subset is not None:
        row["prefix_share"] = round(variant.share, 3)
        row["floor"] = round(1 - 2 / 3 * variant.subset * variant.share, 3)
        row["saved_target"] = round(1 - 0.9 * variant.subset * variant.share, 3)
    return row


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def table(record: dict[str, Any]) -> str:
    """The rows of one model as Markdown."""
    lines = [
        "| mode | step | cut | s | f | time / plain (quartiles) | floor | saved / plain | 1-0.9·s·f | first step, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in record["rows"]:
        low, high = r["ratio_quartiles"]
        cells = [
            r["mode"],
            r["kind"],
            r["cut"] or "",
            "" if r["subset"] is None else f"{r['subset']:g}",
            f"{r['prefix_share']:.2f}" if "prefix_share" in r else "",
            f"{r['ratio']:.2f} ({low:.2f}–{high:.2f})",
            f"{r['floor']:.2f}" if "floor" in r else "",
            f"{r['saved_ratio']:.2f}",
            f"{r['saved_target']:.2f}" if "saved_target" in r else "",
            f"{r['first_step_seconds']:.0f}" if "first_step_seconds" in r else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    plain = ", ".join(
        f"{r['mode']} {r['milliseconds']:.0f} ms" for r in record["rows"] if r["kind"] == "plain"
    )
    return (
        f"### {record['model']}, batch {record['batch']}, {record['rounds']} rounds; plain step: {plain}\n\n"
        + "\n".join(lines)
    )


def machine(device: str) -> dict[str, str]:
    name = platform.processor() or platform.machine()
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        try:
            found = re.search(
                r"Model name:\s*(.+)", subprocess.run(["lscpu"], capture_output=True, text=True).stdout
            )
            name = found.group(1).strip() if found else name
        except OSError:
            pass
    return {"device": device, "name": name, "cores": str(os.cpu_count()), "torch": torch.__version__}


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """The figure of the README: compiled steps relative to the plain one, with the floors."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(records), figsize=(3.6 * len(records), 3.4), sharey=True, squeeze=False
    )
    styles = {"hook": ("#999999", "s"), "dense": ("#0072B2", "o"), "sparse": ("#D55E00", "D")}
    for axis, record in zip(axes[0], records, strict=True):
        mode = "compiled" if any(r["mode"] == "compiled" for r in record["rows"]) else "eager"
        rows = [r for r in record["rows"] if r["mode"] == mode and r["cut"] and r["subset"] == 0.5]
        cuts = list(dict.fromkeys(r["cut"] for r in rows))
        for kind, (color, marker) in styles.items():
            picked = [r for r in rows if r["kind"] == kind]
            places = [cuts.index(r["cut"]) for r in picked]
            heights = [r["ratio"] for r in picked]
            errors = [
                [r["ratio"] - r["ratio_quartiles"][0] for r in picked],
                [r["ratio_quartiles"][1] - r["ratio"] for r in picked],
            ]
            axis.errorbar(
                places, heights, yerr=errors, color=color, marker=marker, label=kind, capsize=3, linewidth=1
            )
        floors = [r for r in rows if r["kind"] == "sparse"]
        axis.plot(
            [cuts.index(r["cut"]) for r in floors],
            [r["floor"] for r in floors],
            "k:",
            label="floor of sparse",
        )
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(range(len(cuts)), cuts, rotation=20, fontsize=8)
        axis.set_title(f"{record['model']} ({mode})", fontsize=10)
        axis.set_xlabel("cut")
    axes[0][0].set_ylabel("time of a step / plain step")
    axes[0][-1].legend(fontsize=8)
    figure.suptitle("Half of the rows stopped at the cut", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one training step with and without Deep Augmentation.")
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["eager", "compiled"])
    parser.add_argument("--subsets", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    parser.add_argument("--depths", type=int, choices=[1, 2, 3], default=3, help="the deepest so many cuts")
    parser.add_argument("--whole", action="store_true", help="compile every subset at every cut")
    parser.add_argument("--without-hook", action="store_true", help="leave the forward hook out")
    parser.add_argument(
        "--cached", action="store_true", help="take kernels compiled before, and time no compiler"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--eager-rounds", type=int, default=3, help="eager steps are timed less often")
    parser.add_argument("--batch", type=int, default=0, help="instead of each model's own")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--mode", default=None, help="of torch.compile, such as reduce-overhead")
    parser.add_argument("--name", default=None, help="of the machine, for the result file")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.batch:
        BATCH.update(dict.fromkeys(BATCH, options.batch))
    name = options.name or ("gpu" if options.device == "cuda" else f"cpu{os.cpu_count()}")
    path = ROOT / "benchmarks/results" / f"step-{name}.json"
    records = json.loads(path.read_text())["models"] if path.exists() else []
    for chosen in options.models:
        record = measure(SUBJECTS[chosen], options)
        print(table(record), flush=True)
        records = [r for r in records if r["model"] != chosen] + [record]
        write(
            path,
            json.dumps({"machine": machine(options.device), "rate": RATE, "models": records}, indent=1)
            + "\n",
        )
    draw(records, ROOT / "docs/images" / f"step-{name}.svg")


if __name__ == "__main__":
    main()
