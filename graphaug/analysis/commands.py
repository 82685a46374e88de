"""The commands about analysis: advise, analyze."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphaug.errors import ConfigError, RunDirectoryError, did_you_mean
from graphaug.terminal.help import Help
from graphaug.terminal.options import refuse_typed, refuse_without
from graphaug.terminal.printable import print_names as print
from graphaug.terminal.spoken import about

if TYPE_CHECKING:
    from graphaug.analysis.advise import Advice
    from graphaug.analysis.report.read import Run
    from graphaug.vision.data.images import ImageData

Sts = Annotated[
    Path | None,
    typer.Option(help="Of runs on text: SentEval's directory or an archive of it; by default the run's own."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command(cls=Help)(advise)
    app.command(cls=Help)(analyze)


def advise(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run directory of graphaug pretrain or graphaug simcse.")],
    samples: Annotated[
        int, typer.Option(min=16, help="Test images, or sentences, to compare layers on, at most.")
    ] = 512,
    sts: Sts = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Pretrain shortly at every site and see whether the advice holds; on images only."
        ),
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Of every pretraining of --check.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Pretrainings of every setting in --check.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share --check's pretrainings.")] = 1,
    metric: Annotated[str, typer.Option(help="What --check ranks by: linear, few_labels or knn.")] = "linear",
    out: Annotated[Path | None, typer.Option(help="Write what came out as JSON.")] = None,
    force: Force = False,
) -> None:
    """Suggest where to augment, from the similarity of the layers of RUN's encoder."""
    from graphaug.analysis.check import METRICS, check_advice
    from graphaug.analysis.report.read import ImageRun, read_run
    from graphaug.contrastive.runs.files import make_folder, write_json

    if not check:
        refuse_without(context, "--check", "epochs", "seeds", "workers", "metric")
    if metric not in METRICS:
        raise ConfigError(
            f"no metric is called {metric!r}.{did_you_mean(metric, METRICS)} There are {', '.join(METRICS)}."
        )
    if out is not None and out.exists() and not force:
        raise RunDirectoryError(f"{str(out)!r} exists. Choose another file, or pass --force to replace it.")
    found = read_run(run)
    if isinstance(found, ImageRun):
        refuse_typed(context, "sts", reason="with a run on images")
    if check and not isinstance(found, ImageRun):
        raise ConfigError(
            f"--check pretrains on images, and {str(run)!r} is a run on text: leave it out, and try the sites with "
            "'graphaug simcse --at'."
        )
    with about(found.config.model) if isinstance(found, ImageRun) else nullcontext():
        advice, data = _advice(found, sts, samples)
    print(advice.similarity)
    print(advice)
    result: dict[str, Any] = {"run": str(run), "advice": [dict(s) | {"score": s.score} for s in advice]}
    if check and isinstance(found, ImageRun) and data is not None:
        (checked,) = check_advice(
            advice,
            found.config,
            data,
            epochs=epochs,
            seeds=range(seeds),
            metrics=(metric,),
            workers=workers,
            on_trial=_report,
        )
        print(checked)
        result["check"] = checked.to_dict()
    if out is not None:
        make_folder(out.parent)
        write_json(out, result)


def _advice(run: Run, sts: Path | None, samples: int) -> tuple[Advice, ImageData | None]:
    """For a run of either kind, with the data of one on images."""
    from graphaug.analysis.report.read import ImageRun, TextRun

    if isinstance(run, ImageRun):
        from graphaug.analysis.report.measure_images import advise_images

        return advise_images(run, samples=samples)
    from graphaug.analysis.report.measure_text import advise_text
    from graphaug.text.sts.report import quiet

    assert isinstance(run, TextRun)
    quiet()
    return advise_text(run, sts=sts, samples=samples), None


def _report(done: int, total: int, line: str) -> None:
    print(f"[{done}/{total}] {line}", file=sys.stderr)


def analyze(
    context: typer.Context,
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories of graphaug pretrain, or of graphaug simcse.")
    ],
    out: Annotated[Path, typer.Option(help="Directory for report.html and the figures.")] = Path("analysis"),
    samples: Annotated[
        int, typer.Option(min=16, help="Test images, or sentences for CKA, to look at, at most.")
    ] = 512,
    sts: Sts = None,
    force: Force = False,
) -> None:
    """Write a report on one run or several: layers, embeddings over training, what the augmentation did."""
    from graphaug.analysis.report.analyze import analyze as run
    from graphaug.analysis.report.read import TextRun, read_run

    if any(isinstance(read_run(path), TextRun) for path in runs):
        from graphaug.text.sts.report import quiet

        quiet()
    else:
        refuse_typed(context, "sts", reason="with runs on images")
    print(
        run(
            runs,
            out,
            force=force,
            samples=samples,
            sts=sts,
            on_run=lambda name: print(f"analysing {name}", file=sys.stderr),
        )
    )
