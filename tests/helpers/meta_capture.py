"""Captures a 7-billion-parameter Llama on the meta device and prints what it took; run as a script."""

from __future__ import annotations

import json
import resource
import sys
import time

import torch
import transformers

import graphaug as ga


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(device: str) -> None:
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig())
    inputs = {
        "input_ids": torch.ones(2, 2048, dtype=torch.long, device=device),
        "attention_mask": torch.ones(2, 2048, dtype=torch.long, device=device),
        "use_cache": False,
    }
    before, begin = peak_megabytes(), time.perf_counter()
    aug = ga.rewrite(model, "model.layers.16", stop_grad=True, example_inputs=inputs)
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": time.perf_counter() - begin,
        "megabytes": peak_megabytes() - before,
        "nodes": aug.plan.nodes,
        "shape": list(aug.plan.sites[0].shape or ()),
        "meta": all(p.is_meta for p in aug.parameters()),
        "notes": aug.plan.notes,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    for device in sys.argv[1:]:
        main(device)
