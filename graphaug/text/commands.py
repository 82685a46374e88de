"""The commands about text: simcse, sts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from graphaug.contrastive.runs.options import File, Force, Out, Preset, Resume, settled, with_settings
from graphaug.terminal.help import Help
from graphaug.terminal.printable import print_names as print
from graphaug.terminal.spoken import about
from graphaug.text.config import SimCSEConfig
from graphaug.text.presets import PRESETS


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command(cls=Help)(with_settings(simcse, SimCSEConfig))
    app.command(cls=Help)(sts)


def simcse(
    *,
    out: Out,
    preset: Preset = None,
    config: File = None,
    resume: Resume = False,
    force: Force = False,
    settings: dict[str, Any],
) -> None:
    """Train an encoder of sentences with unsupervised SimCSE, with Deep Augmentation at --at."""
    for one, other in (("from_config", "encoder"), ("encoder", "from_config")):
        if one in settings:  # given by hand, it replaces the other one of a preset
            settings.setdefault(other, None)
    # Before the imports: a mistyped option should not wait for them.
    wanted = settled(
        SimCSEConfig, settings, PRESETS, out=out, preset=preset, config=config, resume=resume, force=force
    )

    from graphaug.contrastive.devices import is_first_process
    from graphaug.contrastive.runs.progress import EpochProgress, interruptible
    from graphaug.text.corpus.sentences import fewer, read_corpus
    from graphaug.text.listed import PREFIX
    from graphaug.text.sts.report import quiet

    first = is_first_process()
    quiet()
    from graphaug.text.train import simcse as run

    corpus = fewer(read_corpus(wanted.text), wanted.sentences) if wanted.text is not None else None
    if first and corpus is not None and corpus.empty:
        print(f"{corpus.empty} empty line(s) left out.", file=sys.stderr)

    def on_start(counts: dict[str, int]) -> None:
        if counts["truncated"]:
            print(
                f"{counts['truncated']} sentence(s) of more than {wanted.max_length} tokens truncated.",
                file=sys.stderr,
            )

    steps = 0 if corpus is None else wanted.epochs * (len(corpus) // wanted.batch_size)
    bar = EpochProgress(steps, "simcse", unit="step", shown=first, score=_stsb)
    listeners: dict[str, Any] = {"on_line": bar, "on_start": on_start, "on_step": bar.step}
    listed = f"{PREFIX}{wanted.from_config or wanted.encoder}"
    with about(listed), interruptible(out, "simcse"), bar:
        result = run(wanted, out, force=force, resume=resume, corpus=corpus, **listeners).result
    if not first:
        return
    for name, scores in {"last step": result, "best on dev": result.get("best_on_dev", {})}.items():
        if "stsb_dev" in scores:
            print(
                f"{name:<12} STS-B dev {100 * scores['stsb_dev']:.2f}  alignment {scores['alignment']:.3f}  "
                f"uniformity {scores['uniformity']:.3f}  (step {scores['step']})"
            )
    print(f"written to {out}")


def _stsb(line: dict[str, Any]) -> str:
    """The score on STS-B's development set in a line of the metrics, where it was looked at."""
    return f"STS-B dev {100 * line['stsb_dev']:.2f}" if "stsb_dev" in line else ""


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
    from graphaug.contrastive.runs.files import check_target
    from graphaug.text.sts.report import quiet, write_report
    from graphaug.text.sts.tasks import load_tasks

    if json is not None:
        check_target(json)
    tasks = load_tasks(data, split)  # first: it is quicker to fail than loading an encoder
    quiet()
    from graphaug.text.encoders.load import load_encoder
    from graphaug.text.sts.evaluate import evaluate, table

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
