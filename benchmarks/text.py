"""The experiment on text: SimCSE with and without Deep Augmentation and masked language, on the seven STS tasks.

    python -m benchmarks.text [--data ../shared/data] [--seeds 3] [--sentences 3072] [--mlm-epochs 3] [--workers 2]

A small BERT (bert-mini: 4 blocks, 256 wide, a tokenizer trained on the text) is first trained by masked language on
all sentences. From there, with the first ``--sentences`` lines and every seed: SimCSE, SimCSE with masked language, and
both with Deep Augmentation at the first, a middle and the last block, with and without stop-gradient. What is reported
is the last step on the seven tasks, mean ± standard deviation over the seeds. Results go to
``benchmarks/results/text.json`` and ``docs/images/text.svg``; ``--journal FILE`` goes on with a broken run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.coverage import ROOT, write
from benchmarks.step import machine
from graphaug.text.config import SimCSEConfig, versions
from graphaug.text.corpus import Corpus, read_corpus
from graphaug.text.encoder import TextEncoder
from graphaug.text.sts import evaluate
from graphaug.text.sts_data import load_tasks
from graphaug.text.train import simcse

SITES = (1, 2, 4)
STOPPED = {"rate": 0.125, "stop_grad": True}
FLOWING = {"rate": 0.25, "stop_grad": False}
"""The rates that the paper found best with and without stop-gradient."""

MEASURES = ("alignment", "uniformity")


@dataclass(frozen=True)
class Setting:
    """A line of the table."""

    site: int | None
    stop_grad: bool
    mlm: bool

    @property
    def name(self) -> str:
        parts = ["SimCSE"]
        if self.mlm:
            parts.append("MLM")
        if self.site is not None:
            parts.append(f"Deep Augmentation at {self.site}{', stopped' if self.stop_grad else ''}")
        return " + ".join(parts)

    def config(self, base: SimCSEConfig, seed: int) -> SimCSEConfig:
        values = {**base.to_dict(), "mlm": self.mlm, "seed": seed}
        if self.site is not None:
            values |= {"at": (self.site,), **(STOPPED if self.stop_grad else FLOWING)}
        return SimCSEConfig.from_dict(values)


SETTINGS = [
    Setting(site, stop_grad, mlm)
    for mlm in (False, True)
    for site, stop_grad in [(None, False), *((site, stop) for stop in (True, False) for site in SITES)]
]


def one(task: tuple[Setting, SimCSEConfig, Path, int]) -> dict[str, Any]:
    """One run and its scores, in a process of its own."""
    setting, config, data, sentences = task
    torch.set_num_threads(1)
    begin = time.perf_counter()
    lines = read_corpus(str(config.text)).lines[:sentences]
    done = simcse(config, corpus=Corpus(lines, 0))
    trained = time.perf_counter()
    encoder = TextEncoder(done.encoder, done.tokenizer, batch_size=128)
    scores = evaluate(encoder.encode, load_tasks(data))
    return {
        "name": setting.name,
        "seed": config.seed,
        "spearman": dict(scores.spearman),
        "average": scores.average,
        "path": [{name: line[name] for name in ("step", "stsb_dev", *MEASURES)} for line in done.metrics],
        "best_on_dev": done.result["best_on_dev"],
        "seconds": [round(trained - begin, 1), round(time.perf_counter() - trained, 1)],
    }


def summary(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds."""
    rows = []
    for setting in SETTINGS:
        own = [record for record in records if record["name"] == setting.name]
        if not own:
            continue
        columns = {task: [r["spearman"][task] for r in own] for task in own[0]["spearman"]}
        columns["Avg."] = [r["average"] for r in own]
        for name in ("stsb_dev", *MEASURES):
            columns[name] = [r["path"][-1][name] for r in own]
        rows.append(
            {
                "name": setting.name,
                "n": len(own),
                "mean": {name: statistics.mean(values) for name, values in columns.items()},
                "sd": {
                    name: statistics.stdev(values) if len(own) > 1 else math.nan
                    for name, values in columns.items()
                },
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The seven tasks, ×100, as Markdown."""
    tasks = [name for name in rows[0]["mean"] if name not in ("stsb_dev", *MEASURES)]
    lines = ["| | " + " | ".join(tasks) + " | alignment | uniformity |", "|---" * (len(tasks) + 3) + "|"]
    for row in rows:
        mean, sd = row["mean"], row["sd"]
        cells = [f"{100 * mean[t]:.1f}" for t in tasks[:-1]]
        cells += [f"{100 * mean['Avg.']:.2f} ± {100 * sd['Avg.']:.2f}"]
        cells += [f"{mean[m]:.2f} ± {sd[m]:.2f}" for m in MEASURES]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Alignment and uniformity over training, means over the seeds, arrows in the direction of time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharex=True, sharey=True, layout="constrained")
    colors = {None: "#000000", 1: "#0072B2", 2: "#D55E00", 4: "#009E73"}
    for axis, mlm in zip(axes, (False, True), strict=True):
        for setting in SETTINGS:
            own = [r for r in records if r["name"] == setting.name]
            if setting.mlm != mlm or not own:
                continue
            points = [
                [statistics.mean(r["path"][i][m] for r in own) for m in reversed(MEASURES)]
                for i in range(len(own[0]["path"]))
            ]
            style = {"color": colors[setting.site], "linestyle": "-" if setting.stop_grad else "--"}
            if setting.site is None:
                style["linestyle"] = "-"
            label = "no augmentation" if setting.site is None else setting.name.split(" + ")[-1]
            axis.plot(*zip(*points, strict=True), **style, label=label, linewidth=1.2)
            for begin, end in itertools.pairwise(points):
                axis.annotate(
                    "", end, begin, arrowprops={"arrowstyle": "->", "color": style["color"], "lw": 1.0}
                )
        axis.set_title("SimCSE with masked language" if mlm else "SimCSE")
        axis.set_xlabel("uniformity on STS-B dev (lower is better)")
    axes[0].set_ylabel("alignment on STS-B dev (lower is better)")
    axes[1].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and evaluate small sentence encoders.")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=3072, help="of a SimCSE run")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--size", default="bert-mini")
    parser.add_argument("--mlm-epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--journal", type=Path, help="keep every record here; go on from those it holds")
    parser.add_argument(
        "--limit", type=int, default=None, help="only so many settings, for a trial; nothing is written"
    )
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    begin = time.perf_counter()
    text, sts = options.data / "sentences.txt.xz", options.data / "sts.tar.xz"
    known = options.journal.read_text().splitlines() if options.journal and options.journal.exists() else []
    records: list[dict[str, Any]] = [json.loads(line) for line in known]
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "mlm"
        if options.journal:
            start = options.journal.with_suffix(".mlm")
        first = SimCSEConfig(
            text=str(text), from_config=options.size, contrastive=False, mlm=True, lr=5e-4, warmup=0.2,
            batch_size=options.batch, epochs=options.mlm_epochs, report_every=200,
        )  # fmt: skip
        print("masked language:", flush=True)
        done = simcse(
            first,
            start,
            resume=True,
            on_line=lambda line: print(f"  {line['step']} {line['mlm']:.3f}", flush=True),
        )
        mlm_seconds = time.perf_counter() - begin
        base = SimCSEConfig(
            text=str(text), encoder=str(start), sts=str(sts), lr=options.lr, batch_size=options.batch,
            report_every=max(1, options.sentences // options.batch // 6), checkpoint_every=0,
        )  # fmt: skip
        done_already = {(r["name"], r["seed"]) for r in records}
        tasks = [
            (setting, setting.config(base, seed), sts, options.sentences)
            for seed in range(options.seeds)
            for setting in SETTINGS[: options.limit]
            if (setting.name, seed) not in done_already
        ]
        context = multiprocessing.get_context("spawn")
        with context.Pool(options.workers) as pool:
            for record in pool.imap_unordered(one, tasks):
                records.append(record)
                print(
                    f"{record['name']} (seed {record['seed']}): {100 * record['average']:.2f}, {record['seconds']}",
                    flush=True,
                )
                if options.journal:
                    with options.journal.open("a") as file:
                        file.write(json.dumps(record) + "\n")
    minutes = (time.perf_counter() - begin) / 60
    whole = not known  # of a run that was broken off, the time is not known
    rows = summary(records)
    print(table(rows))
    print(f"{minutes:.1f} minutes, {mlm_seconds / 60:.1f} of them masked language")
    if options.limit is not None:
        return
    settings = {
        k: getattr(options, k) for k in ("seeds", "sentences", "batch", "lr", "size", "mlm_epochs", "workers")
    }
    result = {
        "machine": machine("cpu"),
        "versions": versions(),
        "settings": {**settings, "stopped": STOPPED, "flowing": FLOWING},
        "minutes": round(minutes, 1) if whole else None,
        "masked_language": [line["mlm"] for line in done.metrics],
        "rows": rows,
        "runs": sorted(records, key=lambda r: (r["name"], r["seed"])),
    }
    write(ROOT / "benchmarks/results/text.json", json.dumps(result, indent=1) + "\n")
    draw(records, ROOT / "docs/images/text.svg")


if __name__ == "__main__":
    main()
