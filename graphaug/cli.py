"""The command line: one thin command per verb. Errors of our own are one message and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from graphaug.errors import ConfigError, GraphaugError, RunDirectoryError, did_you_mean

try:
    import typer
    from rich.console import Console
except ImportError as missing:  # the core alone is installed
    raise SystemExit(f"the command line needs {missing.name}: pip install 'graphaug[train]'") from missing

if TYPE_CHECKING:
    import torch

app = typer.Typer(
    name="graphaug",
    help="Deep Augmentation by model surgery: a model's sites, a picture of a rewrite, pretraining, and STS scores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

At = Annotated[
    list[str] | None,
    typer.Option(
        "--at", help="A site, in the selection language; a whole number is the paper's. Repeatable."
    ),
]
Rate = Annotated[float, typer.Option(help="Dropout probability on the augmented rows.")]
Subset = Annotated[float, typer.Option(help="Share of the rows that is augmented.")]
StopGrad = Annotated[bool, typer.Option("--stop-grad/--no-stop-grad", help="Detach the augmented rows.")]
Sampling = Annotated[str, typer.Option(help="exact or bernoulli.")]
Granularity = Annotated[str, typer.Option(help="element, channel or position.")]
Pairing = Annotated[str, typer.Option(help="any or one-sided.")]
Freeze = Annotated[str | None, typer.Option(help="before or after: which side of the cut is not trained.")]
Model = Annotated[
    str, typer.Argument(help="A torchvision classification model, resnet18-cifar, or timm:NAME.")
]
Size = Annotated[
    int | None,
    typer.Option(min=1, help="Height and width of the example image; 32 for CIFAR nets, else 224."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace another run in the output directory.")]


def main() -> None:
    """Run the command line; the console script's entry point."""
    try:
        app()
    except GraphaugError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}:[/] ", end="")
        print(error, file=sys.stderr)  # not through Rich, which would read [0] as markup
        sys.exit(2)


def _version(show: bool) -> None:
    if show:
        import graphaug

        print(f"graphaug {graphaug.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Directory for the run's files.")],
    data: Annotated[str, typer.Option(help="digits, cifar10, cifar100 or folder:PATH.")] = "digits",
    model: Annotated[str, typer.Option(help="A torchvision model, resnet18-cifar[:WIDTH], or timm:NAME.")] = (
        "resnet18-cifar"
    ),
    at: At = None,
    rate: Rate = 0.5,
    subset: Subset = 0.5,
    stop_grad: StopGrad = False,
    sampling: Sampling = "exact",
    granularity: Granularity = "element",
    pairing: Pairing = "any",
    freeze: Freeze = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Images a step; twice as many views.")] = 256,
    lr: Annotated[float, typer.Option(help="Peak learning rate of SGD with warm-up and cosine.")] = 0.1,
    temperature: Annotated[float, typer.Option(help="Temperature of the loss.")] = 0.5,
    loss: Annotated[str, typer.Option(help="nt_xent (SimCLR) or info_nce (the paper's Eq. 1).")] = "nt_xent",
    size: Annotated[
        int | None, typer.Option(help="Height and width of the views; by default the data's.")
    ] = None,
    crop: Annotated[float, typer.Option(help="Smallest share of the image area that a view shows.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="torch.compile model and views.")
    ] = False,
    force: Force = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse unreadable images instead of skipping them.")
    ] = False,
) -> None:
    """Pretrain with SimCLR, with Deep Augmentation at --at, and probe the encoder."""
    settings = {name: value for name, value in locals().items() if name not in ("out", "force")}
    # Before the imports: a mistyped option should not wait for them.
    from graphaug.contrastive.config import PretrainConfig
    from graphaug.contrastive.data import load
    from graphaug.contrastive.pretrain import pretrain as run
    from graphaug.contrastive.run_dir import RunDirectory

    config = PretrainConfig.from_dict({**settings, "at": tuple(at or ())})
    RunDirectory(out, force)  # refuse before the data are read
    images = load(data, size=size, strict=strict)
    for skipped in images.skipped[:10]:
        print(f"skipped {skipped}", file=sys.stderr)
    if images.skipped:
        print(f"{len(images.skipped)} unreadable image(s) skipped.", file=sys.stderr)
    with EpochProgress(config.epochs) as progress:
        result = run(config, out, force=force, data=images, on_epoch=progress).result
    few = result["few_labels"]
    print(f"linear probe   {result['linear']:.1%}  ({result['train_images']} labels)")
    print(
        f"few labels     {few['mean']:.1%} ± {few['std']:.1%}  ({few['labels_per_class']} a class, 10 draws)"
    )
    print(f"kNN            {result['knn']:.1%}")
    print(f"written to {out}")


@app.command()
def sites(model: Model, size: Size = None) -> None:
    """Print what can be targeted in MODEL."""
    import graphaug
    from graphaug.contrastive.models import build_model

    print(graphaug.sites(build_model(model), example_inputs=_example(model, size)))


@app.command()
def draw(
    model: Model,
    out: Annotated[Path, typer.Option(help="The picture, .svg, .png or .pdf.")],
    at: At = None,
    rate: Rate = 0.5,
    subset: Subset = 0.5,
    stop_grad: StopGrad = False,
    allow_bypass: Annotated[
        bool, typer.Option("--allow-bypass", help="Accept a cut with a way past it.")
    ] = False,
    size: Size = None,
) -> None:
    """Draw the shallow graph of MODEL rewritten at --at: prefix, cut, suffix and bypasses in colour."""
    import graphaug
    from graphaug.contrastive.config import site
    from graphaug.contrastive.models import build_model
    from graphaug.draw import check_format, draw_graph

    check_format(out)
    if not at:
        raise ConfigError("nothing to draw: name a site with --at; 'graphaug sites MODEL' lists them.")
    aug = graphaug.rewrite(
        build_model(model),
        at=[site(a) for a in at] if len(at) > 1 else site(at[0]),
        rate=rate,
        subset=subset,
        stop_grad=stop_grad,
        allow_bypass=allow_bypass,
        example_inputs=_example(model, size),
    )
    print(draw_graph(aug, out))


@app.command()
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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for the table, the plot and the runs.")] = Path("demo"),
    epochs: Annotated[int, typer.Option(min=1, help="The budget of each run.")] = 12,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the runs, one thread each.")] = (
        min(4, os.cpu_count() or 1)
    ),
    force: Force = False,
) -> None:
    """Compare SimCLR with Deep Augmentation at three sites on digits, with one budget."""
    from graphaug.contrastive.demo import run_demo

    def report(done: int, total: int, line: str) -> None:
        print(f"[{done}/{total}] {line}", file=sys.stderr)

    print(run_demo(out, epochs=epochs, seeds=seeds, workers=workers, force=force, report=report))


@app.command()
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


@app.command()
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


class EpochProgress:
    """A progress bar over epochs on a terminal; a line an epoch elsewhere. Call it with an epoch's metrics.

    Args:
        epochs: how many there will be.
        title: in front of it.

    """

    def __init__(self, epochs: int, title: str = "pretraining") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.epochs, self.title = epochs, title
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=self.console)
        self.task = self.bar.add_task(title, total=epochs, numbers="")

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        """Show the bar, where there is a terminal."""
        if self.console.is_terminal:
            self.bar.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is."""
        self.bar.stop()

    def _advance(self, metrics: dict[str, Any]) -> None:
        numbers = (
            f"loss {metrics['loss']:.3f}  lr {metrics['lr']:.4f}  {metrics['views_per_second']:.0f} views/s"
        )
        if self.console.is_terminal:
            self.bar.update(self.task, advance=1, numbers=numbers)
        else:
            print(f"{self.title}: epoch {metrics['epoch']}/{self.epochs}  {numbers}", file=sys.stderr)


def _example(model: str, size: int | None) -> tuple[torch.Tensor, ...]:
    import torch

    size = size or (32 if "cifar" in model else 224)
    return (torch.zeros(2, 3, size, size),)


if __name__ == "__main__":
    main()
