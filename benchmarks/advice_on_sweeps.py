"""Does the advice rank the sites of a finished sweep of `graphaug paper` by how well they did?

    python -m benchmarks.advice_on_sweeps runs/fig4-cifar10 runs/fig4-fashion-mnist

For every seed the layers of its SimCLR run are compared on training images, which tells what `graphaug.analysis.advise`
would advise; beside each setting's accuracy stands the score of the advice. Spearman's correlation over the settings,
its bootstrap interval and a permutation test are those of `graphaug advise --check`. Results go to
``benchmarks/results/advice-on-sweeps.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from graphaug.analysis.advise import Advice, advise
from graphaug.analysis.check import rank_correlation
from graphaug.analysis.report.measure_images import balanced, encoder_sites
from graphaug.analysis.report.read import ImageRun, read_run
from graphaug.recipes.methods.images import PLAIN
from graphaug.recipes.methods.treatments import called
from graphaug.recipes.runs.looks import SAMPLES
from graphaug.sites import structure_of
from graphaug.vision.models import to_rgb
from graphaug.vision.pretrain import ImageTask
from graphaug.vision.views.pipeline import EvalView

RESULTS = Path(__file__).resolve().parent / "results/advice-on-sweeps.json"


def advice_of_run(path: Path) -> tuple[Advice, dict[int, str]]:
    """What the layers of a run advise, and by the paper's number the compared site that has its value."""
    run = read_run(path)
    assert isinstance(run, ImageRun)
    task = ImageTask(run.config)
    task.read()
    images = task.data.train.images[balanced(task.data.train.labels, SAMPLES)]
    x = to_rgb(EvalView(run.config.size or task.data.view_size, *task.data.statistics())(images))
    model = run.model()
    advice = advise(model, x, encoder_sites(model, x))
    rows = advice.similarity.rows
    numbers = {}
    for number, site in structure_of(model, (x[:2],)).stages.items():
        inside = [name for name in rows if name == site or name.startswith(f"{site}.")]
        if inside:  # a stage is compared by its blocks, and has the value of its last
            numbers[number] = inside[-1]
    return advice, numbers


def examine(sweep: Path) -> dict[str, Any]:
    """The scores and accuracies of every seed's settings, and their correlation."""
    results = json.loads((sweep / "results.json").read_text(encoding="utf-8"))
    measure = "linear"
    accuracy = {(r["setting"], r["seed"]): r[measure] for r in results["runs"]}
    seeds = sorted({seed for _, seed in accuracy})
    found: dict[str, Any] = {"sweep": sweep.name, "measure": measure, "seeds": {}}
    for seed in seeds:
        (path,) = sweep.glob(f"runs/00-*-seed{seed}")
        advice, numbers = advice_of_run(path)
        settings = [
            (called(number, stopped), advice.score(site, stopped))
            for number, site in numbers.items()
            for stopped in (False, True)
            if accuracy.get((called(number, stopped), seed)) is not None
        ]
        names, scores = zip(*settings, strict=True)
        values = [accuracy[name, seed] for name in names]
        value, low, high, p = rank_correlation(scores, values)
        found["seeds"][str(seed)] = {
            "advice": [{**dict(s), "score": s.score} for s in advice],
            "threshold": advice.threshold,
            "settings": {n: {"score": s, measure: v} for n, s, v in zip(names, scores, values, strict=True)},
            PLAIN: accuracy[PLAIN, seed],
            "spearman": value,
            "interval": [low, high],
            "p": p,
        }
        said = (
            "no advice"
            if value is None
            else f"Spearman {value:+.2f} ({low:+.2f} to {high:+.2f}), p = {p:.2f}"
        )
        print(f"{sweep.name}, seed {seed}: {said}, {len(names)} settings")
    return found


def main() -> None:
    """Examine the sweeps that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sweeps", nargs="+", type=Path)
    found = [examine(sweep) for sweep in parser.parse_args().sweeps]
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
