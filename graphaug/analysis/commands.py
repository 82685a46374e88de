"""The commands about analysis: advise, analyze."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from graphaug.errors import ConfigError, RunDirectoryError, did_you_mean

Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command()(advise)
    app.command()(analyze)


def advise(
    run: Annotated[Path, typer.Argument(help="A run directory of graphaug pretrain.")],
    samples: Annotated[int, typer.Option(min=16, help="Test images to compare layers on, at most.")] = 512,
    check: Annotated[
        bool, typer.Option("--check", help="Pretrain shortly at every site and see whether the advice holds.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Of every pretraining of --check.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Pretrainings of every setting in --check.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share --check's pretrainings.")] = 1,
    metric: Annotated[str, typer.Option(help="What --check ranks by: linear, few_labels or knn.")] = "linear",
    out: Annotated[Path | None, typer.Option(help="Write what came out as JSON.")] = None,
    force: Force = False,
) -> None:
    """Suggest where to augment, from the similarity of the layers of RUN's encoder."""
    from graphaug.analysis.check import METRICS
    from graphaug.analysis.runs import read_run, write_json

    if metric not in METRICS:
        raise ConfigError(
            f"no metric is called {metric!r}.{did_you_mean(metric, METRICS)} There are {METRICS}."
        )
    if out is not None and out.exists() and not force:
        raise RunDirectoryError(f"{str(out)!r} exists. Choose another file, or pass --force to replace it.")
    found = read_run(run)
    from graphaug.analysis.study import advise_run

    advice, data = advise_run(found, samples=samples)
    print(advice.similarity)
    print(advice)
    result: dict[str, Any] = {"run": str(run), "advice": [dict(s) | {"score": s.score} for s in advice]}
    if check:
        from graphaug.analysis.check import check_advice

        def report(done: int, total: int, line: str) -> None:
            print(f"[{done}/{total}] {line}", file=sys.stderr)

        (checked,) = check_advice(
            advice,
            found.config,
            data,
            epochs=epochs,
            seeds=range(seeds),
            metrics=(metric,),
            workers=workers,
            on_trial=report,
        )
        print(checked)
        result["check"] = checked.to_dict()
    if out is not None:
        write_json(out, result)


def analyze(
    runs: Annotated[list[Path], typer.Argument(help="Run directories of graphaug pretrain.")],
    out: Annotated[Path, typer.Option(help="Directory for report.html and the figures.")] = Path("analysis"),
    samples: Annotated[int, typer.Option(min=16, help="Test images to look at, at most.")] = 512,
    force: Force = False,
) -> None:
    """Write a report on one run or several: layers, embeddings over training, what the augmentation did."""
    from graphaug.analysis.report import analyze as run

    print(
        run(
            runs,
            out,
            force=force,
            samples=samples,
            on_run=lambda name: print(f"analysing {name}", file=sys.stderr),
        )
    )
