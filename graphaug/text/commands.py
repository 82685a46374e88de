"""The commands about text: sts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command()(sts)


def sts(
    encoder: Annotated[
        str,
        typer.Argument(
            help="A run's directory, a transformers or sentence-transformers model, local or on the hub."
        ),
    ],
    data: Annotated[
        Path, typer.Option(help="SentEval's directory with STS/ and SICK/, or a tar archive of it.")
    ],
    pooler: Annotated[
        str | None,
        typer.Option(help="cls, cls_before_pooler, mean or first-last-mean; by default the encoder's own."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sentences a forward.")] = 64,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a sentence; longer ones are truncated. By default the model's."),
    ] = None,
    split: Annotated[str, typer.Option(help="test: all seven tasks. dev: STS-B and SICK-R.")] = "test",
    json: Annotated[Path | None, typer.Option(help="Write the scores here too.")] = None,
) -> None:
    """Score ENCODER on the seven STS tasks: Spearman of cosine similarity with the gold scores, ×100."""
    from graphaug.text.report import check_target, quiet, write_report
    from graphaug.text.sts_data import load_tasks

    if json is not None:
        check_target(json)
    tasks = load_tasks(data, split)  # first: it is quicker to fail than loading an encoder
    quiet()
    from graphaug.text.load import load_encoder
    from graphaug.text.sts import evaluate, table

    model = load_encoder(encoder, pooler, max_length=max_length, batch_size=batch_size)
    result = evaluate(model.encode, tasks, split)
    print(table({Path(encoder).resolve().name: result}))
    if model.truncated:
        print(
            f"{model.truncated} sentence(s) of more than {model.max_length} tokens truncated.",
            file=sys.stderr,
        )
    if json is not None:
        write_report(json, encoder, model, result)
