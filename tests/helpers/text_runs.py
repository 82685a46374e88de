"""Small runs on text, for the tests and for the processes they start."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import torch

from graphaug.text.config import SimCSEConfig
from graphaug.text.corpus.sentences import Corpus
from graphaug.text.sts.tasks import SINGLE, SUBSETS
from graphaug.text.train import simcse

WORDS = [
    "a",
    "the",
    "cat",
    "dog",
    "man",
    "woman",
    "ran",
    "sat",
    "saw",
    "took",
    "on",
    "under",
    "mat",
    "home",
    "street",
    "quickly",
    "and",
    "then",
    "slept",
    "again",
]

CONFIG = SimCSEConfig(
    from_config="bert-tiny", vocab_size=70, batch_size=8, max_length=16, epochs=2, lr=1e-3, report_every=3,
    checkpoint_every=2, at=(1,), stop_grad=True, rate=0.3,
)  # fmt: skip


def corpus(count: int = 44) -> Corpus:
    """Sentences of 3 to 12 words."""
    generator = random.Random(0)
    lines = tuple(" ".join(generator.choices(WORDS, k=generator.randint(3, 12))) for _ in range(count))
    return Corpus(lines, 0)


def run(out: str, kill_after: int | None = None) -> None:
    """Start the run in ``out``, or go on with it; with ``kill_after``, kill this process at the line of that step."""
    torch.set_num_threads(1)

    def on_line(line: dict[str, Any]) -> None:
        if line["step"] == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    simcse(CONFIG, out, resume=True, corpus=corpus(), on_line=on_line)


def sts_files(root: Path, count: int = 24) -> Path:
    """A directory with STS-B's and SICK-R's development files, of made-up pairs."""
    generator = random.Random(1)
    rows = [
        (" ".join(generator.choices(WORDS, k=5)), " ".join(generator.choices(WORDS, k=7)), i % 6)
        for i in range(count)
    ]
    (root / "STS/STSBenchmark").mkdir(parents=True)
    (root / "SICK").mkdir()
    (root / "STS/STSBenchmark/sts-dev.csv").write_text(
        "".join(f"g\tf\t2012\t1\t{s}\t{a}\t{b}\n" for a, b, s in rows)
    )
    head = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    (root / "SICK/SICK_trial.txt").write_text(head + "".join(f"1\t{a}\t{b}\t{s}\tX\n" for a, b, s in rows))
    return root


def seven_tasks(root: Path, count: int = 5) -> Path:
    """A directory as `sts_files` makes it, with the test files of all seven tasks, too."""
    sts_files(root)
    generator = random.Random(2)
    for split in SINGLE.values():
        (root / split["test"]).write_text((root / split["dev"]).read_text())
    for task, subsets in SUBSETS.items():
        folder = root / f"STS/{task}-en-test"
        folder.mkdir()
        for subset in subsets:
            pairs = [
                "\t".join(" ".join(generator.choices(WORDS, k=k)) for k in (4, 6)) + "\n"
                for _ in range(count)
            ]
            (folder / f"STS.input.{subset}.txt").write_text("".join(pairs))
            (folder / f"STS.gs.{subset}.txt").write_text("".join(f"{i % 6}\n" for i in range(count)))
    return root
