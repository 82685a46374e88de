"""CKA between all blocks, ours, torch_cka and plain NumPy side by side in one run; memory of it and of uniformity.

    python -m benchmarks.cka [--samples 2048] [--batch 128] [--large-batch 512] [--models resnet18 bert] [--rounds 3]

The first two models are compared with larger batches too, where the pairs weigh more against the forward. Rounds are
interleaved; medians with quartiles. Memory is the peak resident memory of a process of its own for each count of
samples, and its growth what that is more than the peak of the process with the fewest; the large case is 50 sites by 50
sites on 10,000 samples in one pass. Uniformity is that of 100,000 points. Results go to
``benchmarks/results/cka.json``. torch_cka comes with ``pip install -e '.[bench]'``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import io
import json
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import hyp0f1
from torch import Tensor, nn

from graphaug.analysis import cka, uniformity

ROOT = Path(__file__).resolve().parent.parent


class BertShape(nn.Module):
    """A 12-block encoder of BERT's shape on token ids, one tensor in, as torch_cka wants it."""

    def __init__(self, width: int = 256, blocks: int = 12, length: int = 32) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=2000,
            hidden_size=width,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            intermediate_size=4 * width,
            max_position_embeddings=length,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        output: Tensor = self.bert(input_ids=input_ids).last_hidden_state
        return output


def resnet18() -> tuple[nn.Module, list[str], Callable[[int], Tensor]]:
    """ResNet-18 at 32×32, its stem and its eight blocks."""
    import torchvision

    names = ["relu", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(2))]
    return torchvision.models.resnet18().eval(), names, lambda n: torch.randn(n, 3, 32, 32)


def bert() -> tuple[nn.Module, list[str], Callable[[int], Tensor]]:
    """A BERT shape, its embeddings and its twelve blocks."""
    names = ["bert.embeddings", *(f"bert.encoder.layer.{i}" for i in range(12))]
    return BertShape().eval(), names, lambda n: torch.randint(0, 2000, (n, 32))


def bert_sublayers() -> tuple[nn.Module, list[str], Callable[[int], Tensor]]:
    """The same, at the three sublayers of every block: attention, intermediate and output."""
    parts = ("attention.output", "intermediate", "output")
    names = ["bert.embeddings", *(f"bert.encoder.layer.{i}.{part}" for i in range(12) for part in parts)]
    return BertShape().eval(), names, lambda n: torch.randint(0, 2000, (n, 32))


MODELS = {"resnet18": resnet18, "bert": bert, "bert-sublayers": bert_sublayers}


def ours(model: nn.Module, names: list[str], batches: list[Tensor]) -> np.ndarray:
    """The library, with tokens flattened as the others do."""
    return cka(model, batches, names, tokens="flatten").values.numpy()


def by_torch_cka(model: nn.Module, names: list[str], batches: list[Tensor]) -> np.ndarray:
    """torch_cka on the same layers; it compares two models, and wants a loader that yields tuples.

    It never removes its hooks: it is to be given a copy of the model.
    """
    from torch_cka import CKA

    loader = torch.utils.data.DataLoader(
        [(x,) for batch in batches for x in batch], batch_size=len(batches[0])
    )
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = CKA(model, model, model1_layers=names, model2_layers=names, device="cpu")
        method.compare(loader)
        found: np.ndarray = method.export()["CKA"].numpy()
    return found


def by_numpy(model: nn.Module, names: list[str], batches: list[Tensor]) -> np.ndarray:
    """The textbook: hooks, then the unbiased HSIC of every pair of sites in every batch."""
    sums = np.zeros((len(names), len(names)))
    for batch in batches:
        held: dict[str, Tensor] = {}

        def keep(name: str, held: dict[str, Tensor]) -> Any:
            return lambda _, __, out: held.update(
                {name: (out[0] if isinstance(out, tuple) else out).flatten(1).clone()}
            )

        handles = [model.get_submodule(n).register_forward_hook(keep(n, held)) for n in names]
        with torch.no_grad():
            model(batch)
        for handle in handles:
            handle.remove()
        grams = []
        for name in names:
            x = held[name].numpy()
            k = x @ x.T
            np.fill_diagonal(k, 0)
            grams.append(k.astype(np.float64))
        n = len(batch)
        for i, k in enumerate(grams):
            for j, m in enumerate(grams):
                sums[i, j] += (
                    (k * m.T).sum()
                    + k.sum() * m.sum() / ((n - 1) * (n - 2))
                    - 2 / (n - 2) * (k.sum(0) @ m.sum(1))
                ) / (n * (n - 3))
    scale = np.sqrt(np.diag(sums))
    return sums / scale[:, None] / scale[None]


def forward_only(model: nn.Module, batches: list[Tensor]) -> None:
    """What no method can be faster than: the model alone, on all batches."""
    with torch.no_grad():
        for batch in batches:
            model(batch)


METHODS = {"graphaug": ours, "torch_cka": by_torch_cka, "numpy": by_numpy}


def compare(name: str, samples: int, batch: int, rounds: int) -> dict[str, Any]:
    """Times of the three methods, interleaved, and how far they are apart."""
    torch.manual_seed(0)
    model, sites, make = MODELS[name]()
    batches = list(make(samples).split(batch))
    floor: list[float] = []
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    values: dict[str, np.ndarray] = {}
    for round_ in range(rounds):
        begin = time.perf_counter()
        forward_only(model, batches)
        floor.append(time.perf_counter() - begin)
        for method, run in METHODS.items():
            given = copy.deepcopy(model)  # for all alike: torch_cka leaves its hooks on it
            begin = time.perf_counter()
            values[method] = run(given, sites, batches)
            seconds[method].append(time.perf_counter() - begin)
            print(f"{name} round {round_ + 1}: {method} {seconds[method][-1]:.1f} s", flush=True)
    medians = {method: statistics.median(s) for method, s in seconds.items()}
    return {
        "model": name,
        "sites": len(sites),
        "samples": samples,
        "batch": batch,
        "seconds": {
            method: {"median": medians[method], "quartiles": _quartiles(s), "all": s}
            for method, s in seconds.items()
        },
        "forward_only_seconds": floor,
        "times_faster_than": {m: medians[m] / medians["graphaug"] for m in METHODS if m != "graphaug"},
        "largest_difference": {
            m: float(np.nanmax(np.abs(values[m] - values["graphaug"]))) for m in METHODS if m != "graphaug"
        },
        "not_a_number": {m: int(np.isnan(v).sum()) for m, v in values.items()},
    }


def _quartiles(values: list[float]) -> list[float]:
    return list(np.quantile(values, [0.25, 0.75])) if len(values) > 1 else values * 2


def peak_memory() -> float:
    """Peak resident memory of this process in MiB."""
    # getrusage also counts what the parent held when it started this process
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def grow(samples: int, batch: int, sites: int) -> dict[str, float]:
    """Seconds of one pass, and the peak memory of the process, which does nothing else."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(sites)))
    stream = (torch.randn(min(batch, samples - i), 256) for i in range(0, samples, batch))
    names = [str(i) for i in range(sites)]
    cka(model, torch.randn(batch, 256), names)  # libraries loaded, allocator warm
    begin = time.perf_counter()
    cka(model, stream, names)
    seconds = time.perf_counter() - begin
    return {
        "samples": samples,
        "sites": sites,
        "seconds": seconds,
        "peak_memory_mib": peak_memory(),
    }


def spread_out(points: int, width: int) -> dict[str, float]:
    """Uniformity of points drawn evenly on a sphere: seconds, peak memory, and how far it is from the closed form."""
    torch.manual_seed(0)
    x = torch.randn(points, width)
    uniformity(x[:4096])  # libraries loaded, allocator warm
    begin = time.perf_counter()
    found = uniformity(x, t=2.0)
    seconds = time.perf_counter() - begin
    # E exp(4 cos) over the sphere is 0F1(width / 2; 4): the mean resultant of the von Mises-Fisher distribution
    expected = float(np.log(hyp0f1(width / 2, 4.0))) - 4.0
    return {
        "points": points,
        "width": width,
        "seconds": seconds,
        "peak_memory_mib": peak_memory(),
        "uniformity": found,
        "closed_form": expected,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time CKA against torch_cka and NumPy.")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--large-batch", type=int, default=512, help="0: without")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    options = parser.parse_args()
    if importlib.util.find_spec("torch_cka") is None:
        parser.error("torch_cka is not installed: pip install -e '.[bench]'")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "models": [
            compare(name, options.samples, batch, options.rounds)
            for batch in filter(None, (options.batch, options.large_batch))
            for name in options.models
            if batch == options.batch or name in ("resnet18", "bert")
        ],
    }
    context = multiprocessing.get_context("spawn")
    result["memory"] = []
    for samples in (1000, 10000, 40000):
        with context.Pool(1) as pool:
            found = pool.apply(grow, (samples, 250, 50))
        fewest = result["memory"][0] if result["memory"] else found
        found["growth_over_fewest_mib"] = found["peak_memory_mib"] - fewest["peak_memory_mib"]
        result["memory"].append(found)
    with context.Pool(1) as pool:
        result["uniformity"] = pool.apply(spread_out, (100_000, 128))
    print(json.dumps({k: v for k, v in result.items() if k != "models"}, indent=1))
    for m in result["models"]:
        print(m["model"], m["batch"], m["times_faster_than"], m["largest_difference"], m["not_a_number"])
    target = ROOT / "benchmarks/results/cka.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(target)


if __name__ == "__main__":
    main()
