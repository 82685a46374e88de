"""The demonstration on Fashion-MNIST: SimCLR beside Deep Augmentation at two sites, by dropout and PCA, and a choice.

What is shown is ``graphaug paper pca`` at its smallest, with a tenth of the training images held out: what does best on
them is chosen, by the other seeds' runs, and stands beside all that loses, on test images that chose nothing.
"""

from __future__ import annotations

from pathlib import Path

from graphaug.contrastive.runs.sweep import Executor
from graphaug.recipes.figures import planned
from graphaug.recipes.report import FILES, report
from graphaug.recipes.sweep import Say
from graphaug.vision.data.image_cache import data_root

FIGURE = "pca"
SITES = (2, 4)
HELD_OUT = 0.1


def found() -> str | None:
    """The name of Fashion-MNIST, if the whole of it was downloaded before; nothing is downloaded here."""
    from torchvision.datasets import FashionMNIST

    try:  # it looks for the files of both parts: a download that failed leaves their folder
        FashionMNIST(str(data_root()))
    except (OSError, RuntimeError, ValueError):
        return None
    return "fashion-mnist"


def run_demo_on(
    data: str, out: Path, *, epochs: int | None, seeds: int, workers: int, say: Say, width: int | None = None
) -> str:
    """Make the runs, or go on with them; give the table, the choice and the verdicts.

    Args:
        data: as for ``graphaug pretrain``; five classes or more, as it is probed with few labels.
        out: directory of the sweep, as of ``graphaug paper``.
        epochs: of each run; by default 4.
        seeds: runs of each setting.
        workers: runs at a time, of one thread each.
        say: told of each run that is done, with the time that is left.
        width: columns of the terminal.

    Raises:
        GraphaugError: what `graphaug.recipes.sweep.Sweep.check` raises, before anything is written.

    """
    sweep = planned(FIGURE, out, data=[data], at=SITES, epochs=epochs, validation=HELD_OUT, seeds=seeds)
    sweep.check()
    outcomes = sweep.run(Executor(workers=workers), say)
    text = report(sweep.figure, sweep.plan, outcomes, out, width)
    return f"{text}\nwritten to {out}: {', '.join(FILES)} and the runs"
