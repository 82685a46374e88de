"""The command line: one thin command per verb. Errors of our own are one message and exit code 2."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from graphaug.errors import ConfigError, GraphaugError
from graphaug.terminal.printable import print_names as print
from graphaug.terminal.spoken import about, in_options, options_of

try:
    import typer
    from rich.console import Console
except ImportError as missing:  # the core alone is installed
    raise SystemExit(f"the command line needs {missing.name}: pip install 'graphaug[train]'") from missing

from graphaug.analysis import commands as analysis
from graphaug.contrastive.runs.options import Force
from graphaug.graphs import commands as graphs
from graphaug.recipes import commands as recipes
from graphaug.terminal.help import Commands, Help
from graphaug.terminal.options import refuse_typed
from graphaug.text import commands as text
from graphaug.vision import commands as vision

app = typer.Typer(
    name="graphaug",
    cls=Commands,
    rich_markup_mode=None,
    help="Deep Augmentation by model surgery: look at a model's sites, rewrite, pretrain, evaluate, analyse.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

At = Annotated[
    list[str] | None,
    typer.Option(
        "--at",
        metavar="SITE[=RATE]",
        help="A site, in the selection language; a whole number is the paper's. Repeatable.",
    ),
]
Rate = Annotated[float, typer.Option(help="Dropout probability on the augmented rows.")]
Subset = Annotated[float, typer.Option(help="Share of the rows that is augmented.")]
StopGrad = Annotated[bool, typer.Option("--stop-grad/--no-stop-grad", help="Detach the augmented rows.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A torchvision classification model, resnet18-cifar, timm:NAME, encoder:NAME (as simcse takes it: a size, "
        "a directory, a name on the hub), or FILE.py:NAME, your own.",
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Height and width of the example image; else what a timm model declares, 32 for CIFAR nets, 224.",
    ),
]


def main() -> None:
    """Run the command line; the console script's entry point."""
    try:
        app()
    except GraphaugError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}:[/] ", end="")
        # not through Rich, which would read [0] as markup
        print(in_options(str(error), options_of(app, sys.argv[1:])), file=sys.stderr)
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


@app.command(cls=Help)
def sites(model: Model, size: Size = None) -> None:
    """Print what can be targeted in MODEL, as wide as the terminal; a pipe gets the whole table."""
    import graphaug
    from graphaug.terminal.table import terminal_width

    module, example = _built(model, size)
    print(graphaug.sites(module, example_inputs=example).table(terminal_width()))


@app.command(cls=Help)
def draw(
    context: typer.Context,
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
    from graphaug.contrastive.config.sites import sites_and_rates
    from graphaug.draw import check_format, draw_graph

    check_format(out)
    with about(model):
        if not at:
            raise ConfigError("nothing to draw: name a site with --at; graphaug.sites(model) lists them.")
        sites, rates = sites_and_rates(at)
        if rates:
            refuse_typed(context, "rate", reason="where each site has a rate of its own")
        module, example = _built(model, size)
        aug = graphaug.rewrite(
            module,
            at=dict(zip(sites, rates, strict=True)) if rates else sites,
            rate=None if rates else rate,
            subset=subset,
            stop_grad=stop_grad,
            allow_bypass=allow_bypass,
            example_inputs=example,
        )
    print(draw_graph(aug, out))


@app.command(cls=Help)
def demo(
    out: Annotated[Path, typer.Option(help="Directory for the table, the plot and the runs.")] = Path("demo"),
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist, idx:DIR or others, as for pretrain; by default Fashion-MNIST where it was "
            "downloaded before, else digits."
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="The budget of each run; by default 12, of other data than digits 4."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the runs, one thread each.")] = (
        min(4, os.cpu_count() or 1)
    ),
    force: Force = False,
) -> None:
    """Compare SimCLR with Deep Augmentation, with one budget: on digits, or by a choice on Fashion-MNIST."""
    from graphaug.recipes.demo import found, run_demo_on
    from graphaug.terminal.table import terminal_width
    from graphaug.vision.demo import run_demo

    def report(done: int, total: int, line: str) -> None:
        print(f"[{done}/{total}] {line}", file=sys.stderr)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    chosen = data or found() or "digits"
    if chosen == "digits":
        print(run_demo(out, epochs=epochs or 12, seeds=seeds, workers=workers, force=force, report=report))
        return
    print(
        run_demo_on(chosen, out, epochs=epochs, seeds=seeds, workers=workers, say=say, width=terminal_width())
    )


@app.command(cls=Help)
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Directories of finished runs, on images, text or graphs.")
    ],
    by: Annotated[
        str | None,
        typer.Option(help="What tells the settings apart, such as at,stop_grad; by default all of it."),
    ] = None,
    show: Annotated[
        str | None,
        typer.Option(help="The figures to show, such as linear,knn; by default those that differ."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table to this file.")] = None,
) -> None:
    """Compare finished RUNS: one row a setting, mean and 95 % interval over its seeds."""

    from graphaug.contrastive.runs import compare as comparison
    from graphaug.contrastive.runs.files import check_target, write_json
    from graphaug.graphs.config import GraphsConfig
    from graphaug.terminal.table import terminal_width
    from graphaug.text.config import SimCSEConfig
    from graphaug.vision.config import PretrainConfig

    check_target(json_file)
    found = [comparison.read(run) for run in runs]
    # a run from before there was a setting has its default
    told = {"from_config": SimCSEConfig, "layers": GraphsConfig}  # by a setting that only they have
    kinds = [
        next((kind for name, kind in told.items() if name in run.settings), PretrainConfig) for run in found
    ]
    found = [
        replace(run, settings={**kind().to_dict(), **run.settings})
        for run, kind in zip(found, kinds, strict=True)
    ]
    settings = comparison.group(
        found, _names(by), {*PretrainConfig.FREE, *SimCSEConfig.FREE, *GraphsConfig.FREE}
    )
    figures = comparison.figures_of(found, _names(show))
    print(comparison.table(settings, figures, terminal_width()))
    if json_file is not None:
        rows = [
            {
                **s.values,
                "runs": [str(run.path) for run in s.runs],
                **{
                    figure: dict(zip(("mean", "half_width"), s.interval(figure), strict=True))
                    for figure in figures
                },
            }
            for s in settings
        ]
        write_json(json_file, rows, indent=2)


def _names(text: str | None) -> list[str]:
    """Names with commas between; each once, in their order."""
    return list(dict.fromkeys(filter(None, map(str.strip, (text or "").split(",")))))


@app.command(cls=Help)
def presets() -> None:
    """Print the presets, as YAML that --config reads."""
    import yaml

    from graphaug.text.presets import PRESETS as SENTENCES
    from graphaug.vision.presets import PRESETS as IMAGES

    for command, found in {"pretrain": IMAGES, "simcse": SENTENCES}.items():
        for name, settings in found.items():
            print(f"# graphaug {command} --preset {name}\n{yaml.safe_dump(settings, sort_keys=False)}")


def _built(model: str, size: int | None) -> tuple[Any, Any]:
    """A model with its example: an image, tokens, or what a user's file brings; else None, to be found in the model."""
    import torch

    from graphaug.text.listed import PREFIX, encoder_in_training, is_encoder, is_meant
    from graphaug.vision.models import build_model
    from graphaug.vision.user_models import is_own, own_example

    if is_encoder(model):
        if size is not None:
            raise ConfigError("--size does nothing with an encoder of text: leave it out.")
        return encoder_in_training(model)
    if not is_own(model) and is_meant(model):
        raise ConfigError(f"{model!r} is no model of images; an encoder of text is named {PREFIX}{model}.")
    module = build_model(model)
    if size is None and is_own(model):
        return module, own_example(model)
    if size is None and model.startswith("timm:"):
        return module, None  # not all were made for 224 pixels
    size = size or (32 if "cifar" in model else 224)
    return module, (torch.zeros(2, 3, size, size),)


for part in (vision, analysis, text, graphs, recipes):
    part.register(app)

if __name__ == "__main__":
    main()
