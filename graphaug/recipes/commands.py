"""``graphaug paper``: the paper's figures, listed and run."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from graphaug.contrastive.runs.progress import INTERRUPTED, duration
from graphaug.errors import ConfigError, RunDirectoryError
from graphaug.terminal.help import Help
from graphaug.terminal.printable import print_names as print


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command(cls=Help)(paper)


def paper(
    figure: Annotated[
        str | None, typer.Argument(help="Such as fig4; without one, all are listed with what they claim.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory for the runs, the table and the picture.")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="tiny (up to an hour), small (a night), or full, the paper's own.")
    ] = "tiny",
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="As for pretrain, repeated where a figure takes two; by default the figure's. Of fig8: a file of "
            "sentences, then SentEval's directory."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="As for pretrain, of fig8 a size or an encoder; by default the scale's."
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at", metavar="SITE", help="A site to augment at, repeatable; by default every number."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of each run; by default the scale's.")] = None,
    images: Annotated[
        int | None, typer.Option(min=2, help="Training images; by default the scale's.")
    ] = None,
    validation: Annotated[
        float,
        typer.Option(
            help="Share of the training images to hold out, and to choose settings by; 0 chooses none."
        ),
    ] = 0.0,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting; more can be added later.")] = 3,
    executor: Annotated[str, typer.Option(help="local (processes of this machine) or slurm.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time, locally with one thread each.")] = min(
        2, os.cpu_count() or 1
    ),
    partition: Annotated[str | None, typer.Option(help="Of Slurm.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it, show its runs and its claims, and write nothing.")
    ] = False,
) -> None:
    """Run a FIGURE of the paper, or go on with it: its table, its picture, and a verdict for each claim."""
    from graphaug.recipes.figures import find, listing
    from graphaug.terminal.table import terminal_width

    width = terminal_width()
    if figure is None:
        print(listing(min(width or 100, 100)))
        return
    find(figure)
    if out is None:
        raise ConfigError(f"where to? Name a directory for the runs of {figure} with --out.")
    from graphaug.contrastive.runs.sweep import Executor
    from graphaug.recipes.figures import planned
    from graphaug.recipes.preview import preview
    from graphaug.recipes.report import FILES, report

    sweep = planned(
        figure,
        out,
        scale=scale,
        data=data or (),
        model=model,
        at=at or (),
        epochs=epochs,
        images=images,
        validation=validation,
        seeds=seeds,
    )
    where = Executor(executor, workers, partition, folder=out / "slurm")
    sweep.check()
    if dry_run:
        print(preview(sweep, width))
        return
    start = time.monotonic()
    try:
        outcomes = sweep.run(where, lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print(f"\ninterrupted: what is done is kept in {out}, and the same command goes on.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    print(report(sweep.figure, sweep.plan, outcomes, out, width))
    print(
        f"{duration(time.monotonic() - start)} this time; written to {out}: {', '.join(FILES)} and the runs"
    )
    failed = [f"{n}, seed {s}" for n, by_seed in outcomes.items() for s, o in by_seed.items() if o.failed]
    if failed:
        raise RunDirectoryError(
            f"{len(failed)} run(s) did not come to their end: {'; '.join(failed)}. Their errors stand above; the same "
            "command tries them again, and repeats none that is done."
        )
