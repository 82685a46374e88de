"""The experiment on text: SimCSE with and without Deep Augmentation and masked language, on the seven STS tasks.

    python -m benchmarks.text [--data ../shared/data] [--seeds 3] [--sentences 768] [--mlm-epochs 1] [--workers 2]

A small BERT (bert-mini: 4 blocks, 256 wide, a tokenizer trained on the text) is first trained by masked language on
all sentences, of which it reads ``--max-length`` tokens. From there, with ``--sentences`` drawn lines, the same in
every run, and every seed: SimCSE, SimCSE with masked language, and both with Deep Augmentation at the first, a middle
and the last block, with and without stop-gradient, at the rates that the paper found best for each. What is reported is
the last step on the seven tasks, by SimCSE's pooler (the first position) and by the mean over tokens, mean ± standard
deviation over the seeds; beside it the encoder with random weights, and where all runs begin. A run that collapses or
diverges is reported as that and is in no mean. Results go to
``benchmarks/results/text.json`` and ``docs/images/text.svg``; ``--journal FILE`` goes on with a broken run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.coverage import ROOT, write
from benchmarks.step import machine
from graphaug.analysis.geometry import pair_geometry
from graphaug.errors import GraphaugError
from graphaug.text.config import SimCSEConfig, versions
from graphaug.text.corpus.sentences import Corpus, read_corpus
from graphaug.text.encoders.encoder import TextEncoder
from graphaug.text.encoders.load import load_encoder
from graphaug.text.encoders.pooling import POOLERS
from graphaug.text.model import build
from graphaug.text.presets import RATES
from graphaug.text.sts.evaluate import evaluate, sts_dev
from graphaug.text.sts.tasks import TASKS, load_tasks
from graphaug.text.train import simcse

SITES = (1, 2, 4)
MEAN = "Avg. of the mean pooler"
MEASURES = ("alignment", "uniformity")
LOOKS = 2
"""Looks at STS-B's development set in a run, beside the common one before it; each encodes 2,909 sentences."""

BOTH = ("cls_before_pooler", "mean")
"""The poolers that every encoder is scored with: SimCSE's, and the mean over tokens."""

KEPT = ("seeds", "sentences", "batch", "lr", "size", "max_length", "mlm_epochs")
"""The options that a journal's records depend on."""


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
            rate = RATES[self.stop_grad, self.mlm]
            values |= {"at": (self.site,), "stop_grad": self.stop_grad, "rate": rate}
        return SimCSEConfig.from_dict(values)


SETTINGS = [
    Setting(site, stop_grad, mlm)
    for mlm in (False, True)
    for site, stop_grad in [(None, False), *((site, stop) for stop in (True, False) for site in SITES)]
]


def scores(encoder: TextEncoder, data: Path) -> dict[str, Any]:
    """The seven tasks by both poolers, from one forward of every sentence."""
    known: dict[str, torch.Tensor] = {}
    POOLERS["both"] = lambda outputs, mask: torch.cat([POOLERS[name](outputs, mask) for name in BOTH], dim=1)
    encoder.pooler = "both"
    half = encoder.model.config.hidden_size

    def by(part: slice) -> Any:
        def encode(sentences: Sequence[str]) -> torch.Tensor:
            new = [s for s in dict.fromkeys(sentences) if s not in known]
            if new:
                known.update(zip(new, encoder.encode(new), strict=True))
            return torch.stack([known[s][part] for s in sentences])

        return encode

    first, mean = (evaluate(by(part), load_tasks(data)) for part in (slice(half), slice(half, None)))
    return {"spearman": dict(first.spearman), "average": first.average, "average_mean_pooler": mean.average}


def drawn(text: str, count: int) -> list[str]:
    """Sentences of the text, the same in every run: its head is of few topics."""
    lines = read_corpus(text).lines
    return random.Random(0).sample(lines, count)


def one(task: tuple[Setting, SimCSEConfig, Path, int]) -> dict[str, Any]:
    """One run and its scores, in a process of its own; of a run that fails, its error."""
    setting, config, data, sentences = task
    torch.set_num_threads(1)
    begin = time.perf_counter()
    record: dict[str, Any] = {"name": setting.name, "seed": config.seed}
    try:
        done = simcse(config, corpus=Corpus(drawn(str(config.text), sentences), 0))
        trained = time.perf_counter()
        # Larger batches are slower here: their activations do not fit into the cache.
        found = scores(TextEncoder(done.encoder, done.tokenizer, batch_size=64), data)
    except GraphaugError as error:
        message = f"{type(error).__name__}: {error}"
        return {**record, "error": message, "seconds": [round(time.perf_counter() - begin, 1), 0.0]}
    return {
        **record,
        **found,
        # A look at an encoder whose vectors are all equal has no scores.
        "path": [
            {n: line[n] for n in ("step", "stsb_dev", *MEASURES)}
            for line in done.metrics
            if "stsb_dev" in line
        ],
        "best_on_dev": done.result.get("best_on_dev"),
        "seconds": [round(trained - begin, 1), round(time.perf_counter() - trained, 1)],
    }


def look(encoder: TextEncoder, data: Path) -> dict[str, Any]:
    """An encoder before any run, on STS-B's development set."""
    dev = load_tasks(data, "dev", ["STS-B"])[0]
    geometry = pair_geometry(encoder.encode, dev.first, dev.second, dev.gold)
    return {
        "step": 0,
        "stsb_dev": sts_dev(encoder.encode, dev),
        **dict(zip(MEASURES, map(float, geometry), strict=True)),
    }


class Journal:
    """Settings, then a JSON line each time something is known, with the seconds of all sittings until then.

    A last line that a kill has cut off is dropped.

    Raises:
        SystemExit: the journal's records were made with other settings.

    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.begin, self.before = path, time.perf_counter(), 0.0
        self.entries: list[dict[str, Any]] = []
        written = path.read_text().split("\n")[:-1] if path is not None and path.exists() else []
        if written:
            head, *self.entries = map(json.loads, written)
            if head != {"settings": settings}:
                raise SystemExit(
                    f"{str(path)!r} was written with {head.get('settings', 'no settings')}, not with {settings}: go on "
                    "with the same ones, or name another journal."
                )
            self.before = self.entries[-1]["wall"] if self.entries else 0.0
        else:
            written = [json.dumps({"settings": settings})]
        if path is not None:
            write(path, "\n".join(written) + "\n")

    def seconds(self) -> float:
        """Wall time of all sittings so far, each until the last thing that it wrote."""
        return self.before + time.perf_counter() - self.begin

    def add(self, kind: str, value: Any) -> None:
        """Write something down."""
        self.entries.append({kind: value, "wall": round(self.seconds(), 1)})
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(self.entries[-1]) + "\n")

    def all(self, kind: str) -> list[Any]:
        """Everything of a kind, in its order."""
        return [entry[kind] for entry in self.entries if kind in entry]


def reference(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """A row of the table for an encoder that no run has trained."""
    mean = {**found["spearman"], "Avg.": found["average"], MEAN: found["average_mean_pooler"]}
    mean |= {measure: found[measure] for measure in ("stsb_dev", *MEASURES)}
    return {"name": name, "n": 1, "failed": 0, "mean": mean, "sd": dict.fromkeys(mean)}


def summary(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, of the runs that came to their end."""
    rows = []
    for setting in SETTINGS:
        own = [record for record in records if record["name"] == setting.name]
        if not own:
            continue
        whole = [record for record in own if "error" not in record]
        columns = {task: [r["spearman"][task] for r in whole] for task in TASKS}
        columns["Avg."] = [r["average"] for r in whole]
        columns[MEAN] = [r["average_mean_pooler"] for r in whole]
        for name in ("stsb_dev", *MEASURES):
            columns[name] = [r["path"][-1][name] for r in whole if r["path"]]
        rows.append(
            {
                "name": setting.name,
                "n": len(whole),
                "failed": len(own) - len(whole),
                "mean": {name: statistics.mean(v) if v else None for name, v in columns.items()},
                "sd": {name: statistics.stdev(v) if len(v) > 1 else None for name, v in columns.items()},
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The seven tasks, ×100, as Markdown; n is the number of runs that came to their end."""

    def cell(row: dict[str, Any], name: str, scale: float, digits: int) -> str:
        mean, sd = row["mean"][name], row["sd"][name]
        if mean is None:
            return "–"
        return f"{scale * mean:.{digits}f}" + ("" if sd is None else f" ± {scale * sd:.{digits}f}")

    names = (*TASKS, "Avg.", MEAN, *MEASURES)
    lines = ["| | n | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        cells = [cell(row, task, 100, 1) for task in TASKS]
        cells += [cell(row, name, 100, 2) for name in ("Avg.", MEAN)]
        cells += [cell(row, name, 1, 2) for name in MEASURES]
        lines.append(f"| {row['name']} | {row['n']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean_path(records: list[dict[str, Any]], start: dict[str, Any]) -> list[list[float]]:
    """Uniformity and alignment, the mean over the runs, from the common beginning to the last step that all have."""
    paths = [{0: start, **{point["step"]: point for point in record["path"]}} for record in records]
    steps = sorted(set.intersection(*map(set, paths)))
    return [[statistics.mean(path[step][m] for path in paths) for m in reversed(MEASURES)] for step in steps]


def draw(records: list[dict[str, Any]], start: dict[str, Any], path: Path) -> None:
    """Alignment and uniformity over training, means over the seeds, arrows in the direction of time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharex=True, sharey=True, layout="constrained")
    colors = {None: "#000000", 1: "#0072B2", 2: "#D55E00", 4: "#009E73"}
    for axis, mlm in zip(axes, (False, True), strict=True):
        for setting in SETTINGS:
            own = [r for r in records if r["name"] == setting.name and "error" not in r]
            if setting.mlm != mlm or not own:
                continue
            points = mean_path(own, start)
            style = {"color": colors[setting.site], "linestyle": "-" if setting.stop_grad else "--"}
            if setting.site is None:
                style["linestyle"] = "-"
            label = "no augmentation" if setting.site is None else setting.name.split(" + ")[-1]
            axis.plot(*zip(*points, strict=True), **style, label=label, linewidth=1.2)
            for begin, end in itertools.pairwise(points):
                # the head alone: a shaft would fill the gaps of dashes
                near = [0.02 * b + 0.98 * e for b, e in zip(begin, end, strict=True)]
                axis.annotate("", end, near, arrowprops={"arrowstyle": "->", "color": style["color"]})
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
    parser.add_argument("--sentences", type=int, default=768, help="of a SimCSE run")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--size", default="bert-mini")
    parser.add_argument("--max-length", type=int, default=16)
    parser.add_argument("--mlm-epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--journal", type=Path, help="keep every record here; go on from those it holds")
    parser.add_argument(
        "--limit", type=int, default=None, help="only so many settings, for a trial; nothing is written"
    )
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    text, sts = options.data / "sentences.txt.xz", options.data / "sts.tar.xz"
    settings = {name: getattr(options, name) for name in KEPT}
    journal = Journal(options.journal, settings)
    with tempfile.TemporaryDirectory() as folder:
        start = options.journal.with_suffix(".mlm") if options.journal else Path(folder) / "mlm"
        first = SimCSEConfig(
            text=str(text), from_config=options.size, contrastive=False, mlm=True, lr=5e-4, warmup=0.2,
            max_length=options.max_length, batch_size=options.batch, epochs=options.mlm_epochs, report_every=50,
            checkpoint_every=100,
        )  # fmt: skip
        print("masked language:", flush=True)

        def on_line(line: dict[str, Any]) -> None:
            journal.add("masked_language", line["mlm"])
            print(f"  {line['step']} {line['mlm']:.3f}", flush=True)

        done = simcse(first, start, resume=True, on_line=on_line)
        if not journal.all("start"):
            trained = round(journal.seconds(), 1)
            torch.manual_seed(0)
            fresh = build(first, read_corpus(str(text)).lines)
            raw = TextEncoder(fresh.encoder, fresh.tokenizer)
            journal.add("random", {**look(raw, sts), **scores(raw, sts)})
            begun = load_encoder(start)
            assert isinstance(begun, TextEncoder)
            journal.add("start", {**look(begun, sts), "seconds": trained, **scores(begun, sts)})
        ((beginning,), (raw_scores,)) = journal.all("start"), journal.all("random")
        base = SimCSEConfig(
            text=str(text), encoder=str(start), sts=str(sts), lr=options.lr, batch_size=options.batch,
            max_length=options.max_length,
            report_every=max(1, math.ceil(options.sentences // options.batch / LOOKS)), checkpoint_every=0,
        )  # fmt: skip
        done_already = {(r["name"], r["seed"]) for r in journal.all("run")}
        tasks = [
            (setting, setting.config(base, seed), sts, options.sentences)
            for seed in range(options.seeds)
            for setting in SETTINGS[: options.limit]
            if (setting.name, seed) not in done_already
        ]
        context = multiprocessing.get_context("spawn")
        with context.Pool(options.workers) as pool:
            for record in pool.imap_unordered(one, tasks):
                journal.add("run", record)
                shown = record["error"] if "error" in record else f"{100 * record['average']:.2f}"
                print(f"{record['name']} (seed {record['seed']}): {shown}, {record['seconds']}", flush=True)
    records = journal.all("run")
    rows = [reference("random weights", raw_scores), reference("masked language alone", beginning)]
    rows += summary(records)
    minutes = journal.seconds() / 60
    print(table(rows))
    print(f"{minutes:.1f} minutes, {beginning['seconds'] / 60:.1f} of them masked language")
    if options.limit is not None:
        return
    result = {
        "machine": machine("cpu"),
        "versions": versions(),
        "settings": {
            **settings,
            "workers": options.workers,
            "rates": {
                f"{'stopped' if stop else 'flowing'}{' with masked language' if mlm else ''}": rate
                for (stop, mlm), rate in RATES.items()
            },
        },
        "minutes": round(minutes, 1),
        "masked_language": [line["mlm"] for line in done.metrics],
        "start": beginning,
        "rows": rows,
        "runs": sorted(records, key=lambda r: (r["name"], r["seed"])),
    }
    write(ROOT / "benchmarks/results/text.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    draw(records, beginning, ROOT / "docs/images/text.svg")


if __name__ == "__main__":
    main()
