"""The commands about training on images: pretrain, probe, transfer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphaug.contrastive.runs.options import File, Force, Out, Preset, Resume, settled, with_settings
from graphaug.errors import ConfigError
from graphaug.terminal.help import Help
from graphaug.terminal.options import refuse_without
from graphaug.terminal.printable import print_names as print
from graphaug.terminal.spoken import about, in_options
from graphaug.vision.config import PretrainConfig
from graphaug.vision.presets import PRESETS

if TYPE_CHECKING:
    from graphaug.contrastive.runs.progress import EpochProgress
    from graphaug.vision.data.images import ImageData

Data = Annotated[
    str | None,
    typer.Option(
        help="digits, cifar10, cifar100, fashion-mnist, idx:DIR, folder:PATH or FILE.py:NAME; by default the run's."
    ),
]
Runs = Annotated[
    list[Path], typer.Argument(help="Directories of finished runs, such as seeds of one setting.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the accuracies of each run to this file.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command(cls=Help)(with_settings(pretrain, PretrainConfig))
    app.command(cls=Help)(probe)
    app.command(cls=Help)(transfer)


def pretrain(
    *,
    out: Out,
    preset: Preset = None,
    config: File = None,
    resume: Resume = False,
    force: Force = False,
    settings: dict[str, Any],
) -> None:
    """Pretrain with SimCLR or another --method, with Deep Augmentation at --at, and probe the encoder.

    The probe is fitted on the training images of the run, which may be fewer than the data have.
    """
    # Before the imports: a mistyped option should not wait for them.
    wanted = settled(
        PretrainConfig, settings, PRESETS, out=out, preset=preset, config=config, resume=resume, force=force
    )

    from graphaug.contrastive.devices import is_first_process
    from graphaug.contrastive.runs.progress import EpochProgress, interruptible
    from graphaug.vision.data.images import load
    from graphaug.vision.pretrain import pretrain as run
    from graphaug.vision.weights import settings_left

    first = is_first_process()
    begins = not (resume and (out / "config.yaml").exists())
    if first and begins and (line := settings_left(wanted)):
        print(in_options(line, wanted.names()), file=sys.stderr)
    images = load(wanted.data, size=wanted.size, strict=wanted.strict)
    if first:
        _report_skipped(images)
    bar = EpochProgress(wanted.epochs, shown=first, score=_neighbours)
    listeners: dict[str, Any] = {"on_epoch": bar, "on_step": bar.step}
    with about(wanted.model), interruptible(out, "pretrain"), bar:
        result = run(wanted, out, force=force, resume=resume, data=images, **listeners).result
    if not first:
        return
    if "linear" in result:
        few = result["few_labels"]
        counts = f"fitted on {result['train_images']} training images, {result['test_images']} test images"
        print(f"linear probe   {result['linear']:.1%}  ({counts})")
        print(
            f"few labels     {few['mean']:.1%} ± {few['std']:.1%}  ({few['labels_per_class']} a class, 10 draws)"
        )
        print(f"kNN            {result['knn']:.1%}  (among the same)")
    else:
        print("the images have no labels: nothing was probed")
    print(f"written to {out}")


def _neighbours(line: dict[str, Any]) -> str:
    """The accuracy of the nearest neighbours in a line of the metrics, where it was looked at."""
    return f"kNN {line['knn']:.1%}" if "knn" in line else ""


def probe(
    context: typer.Context,
    runs: Runs,
    data: Data = None,
    linear: Annotated[
        bool, typer.Option("--linear", help="SupContrast's linear protocol too; it takes a while.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Of the linear protocol.")] = 100,
    json_file: Json = None,
) -> None:
    """Probe the encoders of RUNS: linear with all and with few labels, nearest neighbours. The last epoch counts.

    A probe is fitted on all training images of the data, also where a run was trained on fewer (--images or
    --validation), and printed a result of a probe that was fitted on those.
    """
    if not linear:
        refuse_without(context, "--linear", "epochs")
    from graphaug.vision.probes.probe import probe_run

    def look(run: Path, images: ImageData) -> dict[str, Any]:
        with _on_labels(epochs, f"linear protocol of {run}", shown=linear) as bar:
            return probe_run(run, images, linear=linear, epochs=epochs, on_epoch=bar)

    _each_run(runs, data, json_file, look)


def transfer(
    runs: Runs,
    data: Annotated[str, typer.Option(help="The data to transfer to.")],
    epochs: Annotated[int, typer.Option(min=1, help="Of the fine-tuning.")] = 30,
    json_file: Json = None,
) -> None:
    """Transfer the encoders of RUNS to other data: linear on frozen features, and fine-tuned.

    Both are fitted on all training images of the data.
    """
    from graphaug.vision.probes.probe import transfer_run

    def look(run: Path, images: ImageData) -> dict[str, Any]:
        with _on_labels(epochs, f"fine-tuning of {run}") as bar:
            return transfer_run(run, images, epochs=epochs, on_epoch=bar)

    _each_run(runs, data, json_file, look)


def _on_labels(epochs: int, title: str, shown: bool = True) -> EpochProgress:
    """The progress of a training on labels, which may take minutes."""
    from graphaug.contrastive.runs.progress import EpochProgress

    return EpochProgress(epochs, title, shown=shown, score=lambda line: f"test {line['accuracy']:.1%}")


def _each_run(
    runs: list[Path], data: str | None, file: Path | None, look: Callable[[Path, ImageData], dict[str, Any]]
) -> None:
    from graphaug.contrastive.runs import compare
    from graphaug.contrastive.runs.files import check_target, write_json
    from graphaug.terminal.table import terminal_width
    from graphaug.vision.data.images import load
    from graphaug.vision.probes.probe import load_run, summary

    check_target(file)
    settings = [{**PretrainConfig().to_dict(), **load_run(run)[1]} for run in runs]
    _check_same_images(runs, settings, data)
    alone = [compare.Run(run, values, {}) for run, values in zip(runs, settings, strict=True)]
    compare.group(alone, free=PretrainConfig.FREE)  # what it refuses is refused before anything is computed
    images = load(data or settings[0]["data"], size=settings[0].get("size"))
    _report_skipped(images)
    results = [look(run, images) for run in runs]
    counts = f"all {len(images.train)} training images, {len(images.test)} test images"
    print(f"{images.name}: fitted on {counts}{_fitted_on_fewer(settings, data)}")
    looked = [replace(run, figures=found) for run, found in zip(alone, results, strict=True)]
    groups = compare.group(looked, free=PretrainConfig.FREE)
    if len(groups) > 1:
        print(compare.table(groups, list(results[0]), terminal_width(), unit=lambda name: "%"))
    else:
        print(summary(results))
    if file is not None:
        write_json(file, {str(run): found for run, found in zip(runs, results, strict=True)}, indent=2)


def _fitted_on_fewer(settings: list[dict[str, Any]], data: str | None) -> str:
    """That the runs' own results are of probes that saw fewer images, where that is so."""
    fewer = {
        f"--{name} {run[name]}"
        for run in settings
        for name in ("images", "validation")
        if run[name] and data in (None, run["data"])
    }
    of = ", ".join(sorted(fewer))
    return f"\nwhat a run with {of} printed itself is of probes fitted on fewer" if fewer else ""


def _check_same_images(runs: list[Path], settings: list[dict[str, Any]], data: str | None) -> None:
    """Refuse runs that would have to be looked at on different images."""
    for run, other in zip(runs[1:], settings[1:], strict=True):
        for name in ("size",) if data is not None else ("data", "size"):
            if other[name] != settings[0][name]:
                raise ConfigError(
                    f"{str(run)!r} has {name}={other[name]!r}, {str(runs[0])!r} has {settings[0][name]!r}: their "
                    f"accuracies have no mean. Look at each for itself{', or give --data' if name == 'data' else ''}."
                )


def _report_skipped(images: ImageData) -> None:
    for skipped in images.skipped[:10]:
        print(f"skipped {skipped}", file=sys.stderr)
    if images.skipped:
        print(f"{len(images.skipped)} unreadable image(s) skipped.", file=sys.stderr)
