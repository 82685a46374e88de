"""Sentences per second of SimCSE's training on a BERT-base shape: sentence-transformers' trainer, and ours.

    python -m benchmarks.text_step [--batch 16] [--steps 3] [--rounds 3] [--size bert-base] [--at 8]
                                   [--text SENTENCES] [--device cpu|cuda] [--precision 32-true]

One process, the same encoder (random weights), sentences, batch, optimizer and clipping for all; the contenders take
turns, ``--steps`` steps each per round, padding included, and medians over the rounds are reported with quartiles.
sentence-transformers tokenizes in every step, ours once before the first. It trains with its
MultipleNegativesRankingLoss on pairs of equal sentences, which is SimCSE's loss; ours is the engine behind
``graphaug simcse``, compiled, and has SimCSE's head.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.coverage import ROOT, write
from benchmarks.step import machine, quartiles
from graphaug.contrastive.devices import make_fabric
from graphaug.text.config import SimCSEConfig, versions
from graphaug.text.corpus.sentences import read_corpus
from graphaug.text.encoders.encoder import padding_id
from graphaug.text.encoders.load import save_encoder
from graphaug.text.job import build_engine
from graphaug.text.model import Model, build, sizes, tokenized
from graphaug.text.objective import TextFeed
from graphaug.text.passes import augmented
from graphaug.text.simcse import SimCSE

SENTENCES = ROOT.parent / "shared/data/sentences.txt.xz"

Steps = Callable[[int], float]
"""Makes so many steps, and returns their seconds."""


def ours(config: SimCSEConfig, lines: list[str], stack: ExitStack) -> tuple[Steps, str]:
    """The engine, as ``graphaug simcse`` sets it up."""
    torch.manual_seed(0)
    fabric = make_fabric(1, config.accelerator, config.precision)
    model = build(config, lines)
    rows, _ = tokenized(model, lines, config.max_length)
    feed = TextFeed(rows, config, sizes(config), padding_id(model.tokenizer), fabric.device)
    wrapped = SimCSE(model.encoder).to(fabric.device)
    objective = stack.enter_context(augmented(wrapped, model, config, feed))
    engine = build_engine(fabric, objective, feed, config)
    objective.train()
    feed.start_epoch()
    at = 0

    def run(steps: int) -> float:
        nonlocal at
        begin = time.perf_counter()
        for _ in range(steps):
            engine._step(0.0, at % feed.steps)
            at += 1
        _wait(fabric.device.type)
        return time.perf_counter() - begin

    return run, str(getattr(objective.network, "plan", ""))


def theirs(config: SimCSEConfig, model: Model, lines: list[str], folder: Path) -> Steps:
    """sentence-transformers' trainer; the clock starts behind its first step, which sets things up."""
    import datasets
    import sentence_transformers as st
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer import modules
    from transformers import TrainerCallback

    save_encoder(folder / "encoder", model.encoder, model.tokenizer)
    device = "cpu" if config.accelerator == "cpu" else "cuda"
    transformer = modules.Transformer(str(folder / "encoder"), max_seq_length=config.max_length)
    sentences = st.SentenceTransformer(
        modules=[transformer, modules.Pooling(model.encoder.config.hidden_size, "cls")], device=device
    )
    pairs = datasets.Dataset.from_dict({"anchor": list(lines), "positive": list(lines)})
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            _wait(device)
            ends.append(time.perf_counter())

    def run(steps: int) -> float:
        ends.clear()
        arguments = st.SentenceTransformerTrainingArguments(
            str(folder / "run"), max_steps=steps + 1, per_device_train_batch_size=config.batch_size,
            learning_rate=config.lr, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=device == "cpu", bf16=config.precision == "bf16-mixed",
        )  # fmt: skip
        trainer = st.SentenceTransformerTrainer(
            sentences,
            arguments,
            pairs,
            loss=MultipleNegativesRankingLoss(sentences, scale=20.0),
            callbacks=[Clock()],
        )
        trainer.train()
        return ends[-1] - ends[0]

    return run


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def sentences(path: Path | None, words: int, count: int) -> list[str]:
    """Sentences of at least so many words; without a file, of drawn words: a step's time asks for no sense."""
    path = path or (SENTENCES if SENTENCES.exists() else None)
    if path is not None:
        return [line for line in read_corpus(path).lines if len(line.split()) >= words][:count]
    draw = random.Random(0)
    known = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(2000)]
    return [" ".join(draw.choices(known, k=words + draw.randint(0, 8))) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time training steps on text.")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="bert-base")
    parser.add_argument("--at", type=int, default=8)
    parser.add_argument("--subset", type=float, default=0.5)
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument(
        "--text", type=Path, default=None, help="by default the shared sentences, or drawn ones"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--name", default=None, help="of the machine, for the result file")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    torch._dynamo.config.recompile_limit = 32
    base = SimCSEConfig(
        from_config=options.size, batch_size=options.batch, compile=True, max_length=options.max_length,
        accelerator=options.device, precision=options.precision,
    )  # fmt: skip
    # Long ones, so that all batches have one length, and no contender pays for another one's padding.
    count = max(512, 4 * options.batch)
    lines = sentences(options.text, options.max_length, count)
    augmented_ = replace(base, at=(options.at,), stop_grad=True, subset=options.subset)
    settings = {
        "ours, plain": base,
        "ours, dense": replace(augmented_, backward="dense"),
        "ours, sparse": replace(augmented_, backward="sparse"),
    }
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        contenders: dict[str, Steps] = {
            "sentence-transformers": theirs(base, build(base, lines), lines, Path(folder))
        }
        plans = {}
        for name, config in settings.items():
            contenders[name], plans[name] = ours(config, lines, stack)
        for name, run in contenders.items():
            print(f"  {name}: ready in {run(2):.0f} s", flush=True)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(options.rounds):
            for name, run in contenders.items():
                seconds[name].append(run(options.steps))
                print(
                    f"  round {turn + 1}: {name} {seconds[name][-1] / options.steps:.2f} s a step", flush=True
                )
    rates = {
        name: options.batch * options.steps / statistics.median(found) for name, found in seconds.items()
    }
    rows = [
        {
            "contender": name,
            "sentences_per_second": round(rates[name], 2),
            "times_sentence_transformers": round(rates[name] / rates["sentence-transformers"], 3),
            "times_plain": round(rates[name] / rates["ours, plain"], 3),
            "seconds_a_step_quartiles": [round(s / options.steps, 3) for s in quartiles(found)],
        }
        for name, found in seconds.items()
    ]
    for row in rows:
        print(row)
    chosen = {
        k: getattr(options, k) for k in ("batch", "steps", "rounds", "size", "at", "subset", "max_length")
    }
    result = {
        "machine": machine(options.device),
        "versions": versions(),
        "settings": {**chosen, "precision": options.precision},
        "plan": plans["ours, sparse"],
        "rows": rows,
    }
    name = options.name or (
        f"gpu-{options.precision}" if options.device == "cuda" else f"cpu{os.cpu_count()}"
    )
    write(ROOT / f"benchmarks/results/text-step-{name}.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
