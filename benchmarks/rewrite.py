"""Processor time of `graphaug.rewrite` against an eager training step of the same model and batch.

``python -m benchmarks.rewrite [names]``: one row a model; with ``--depth`` BERTs of 2 to 24 layers, whose times should
grow as their layers do; with ``--meta`` a Llama of 7 billion parameters on the meta device, which cannot take a step.
Both are timed in one process by processor time, so that a busy machine matters little.
All models together go to ``benchmarks/results/rewrite-NAME.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import graphaug as ga
from benchmarks.coverage import ROOT, write
from benchmarks.step import machine

ROWS, TOKENS = 8, 64
TARGET = 2.0
"""So many steps a rewrite may take."""


def _text(model: nn.Module) -> tuple[nn.Module, Any]:
    ids = torch.randint(1000, (ROWS, TOKENS))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def bert(layers: int = 12) -> tuple[nn.Module, Any, str]:
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(num_hidden_layers=layers), add_pooling_layer=False)
    return *_text(model), f"encoder.layer.{layers // 2}"


def gpt2() -> tuple[nn.Module, Any, str]:
    from transformers import GPT2Config, GPT2Model

    return *_text(GPT2Model(GPT2Config(use_cache=False))), "h.6"


def llama() -> tuple[nn.Module, Any, str]:
    from transformers import LlamaConfig, LlamaModel

    with torch.device("meta"):
        model = LlamaModel(LlamaConfig(use_cache=False))
        return *_text(model), "layers.16"


def _image(name: str, at: str) -> tuple[nn.Module, Any, str]:
    import torchvision

    return torchvision.models.get_model(name, weights=None), torch.randn(ROWS, 3, 224, 224), at


MODELS: dict[str, Callable[[], tuple[nn.Module, Any, str]]] = {
    "BERT-base": bert,
    "GPT-2": gpt2,
    "ViT-B/16": lambda: _image("vit_b_16", "encoder.layers.encoder_layer_6"),
    "Swin-T": lambda: _image("swin_t", "features.5"),
    "ConvNeXt-T": lambda: _image("convnext_tiny", "features.5"),
    "ResNet-50": lambda: _image("resnet50", "layer3"),
}


def step(model: nn.Module, x: Any) -> None:
    """A forward and a backward."""
    out = model(**x) if isinstance(x, dict) else model(x)
    out = out if isinstance(out, Tensor) else out[0]
    out.square().mean().backward()
    model.zero_grad()


def seconds(run: Callable[[], Any], times: int = 2) -> float:
    """The least processor time of a few runs."""
    taken = []
    for _ in range(times):
        begin = time.process_time()
        run()
        taken.append(time.process_time() - begin)
    return min(taken)


def measure(build: Callable[[], tuple[nn.Module, Any, str]]) -> tuple[float, float, str]:
    """Processor seconds of a rewrite and of a step, and what was chosen."""
    model, x, at = build()
    model.train()
    steps = not next(model.parameters()).is_meta
    one = seconds(lambda: step(model, x)) if steps else float("nan")
    plan = ga.rewrite(model, at, stop_grad=True, example_inputs=x, dry_run=True)
    taken = seconds(lambda: ga.rewrite(model, at, stop_grad=True, example_inputs=x, dry_run=True), 1)
    return taken, one, f"{plan.backward}: {plan.reason}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *MODELS], default=[])
    parser.add_argument("--depth", action="store_true", help="BERTs of 2 to 24 layers instead")
    parser.add_argument("--meta", action="store_true", help="Llama-7B on the meta device instead")
    parser.add_argument("--name", default=f"cpu{os.cpu_count()}", help="of the machine, for the result file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = {name: MODELS[name] for name in options.names or MODELS}
    if options.depth:
        chosen = {f"BERT, {n} layers": (lambda n=n: bert(n)) for n in (2, 6, 12, 24)}
    if options.meta:
        chosen = {"Llama-7B, meta": llama}
    rows = []
    print("| model | rewrite (s) | step (s) | steps | backward |\n| --- | ---: | ---: | ---: | --- |")
    for name, build in chosen.items():
        taken, one, what = measure(build)
        print(f"| {name} | {taken:.2f} | {one:.2f} | {taken / one:.2f} | {what} |", flush=True)
        rows.append({"model": name, "rewrite": taken, "step": one, "steps": taken / one, "backward": what})
    if not (options.names or options.depth or options.meta):
        path = ROOT / f"benchmarks/results/rewrite-{options.name}.json"
        write(path, json.dumps({"machine": machine("cpu"), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
