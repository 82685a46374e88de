"""The commands about training: pretrain, presets, probe, transfer. Options of a run are made from its settings."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphaug.contrastive.settings import Settings
from graphaug.errors import ConfigError
from graphaug.options import refuse_without
from graphaug.printable import print_names as print
from graphaug.vision.config import PretrainConfig

if TYPE_CHECKING:
    from graphaug.vision.data.images import ImageData

Out = Annotated[Path, typer.Option(help="Directory for the run's files.")]
Preset = Annotated[str | None, typer.Option(help="Settings to begin with; see 'graphaug presets'.")]
File = Annotated[Path | None, typer.Option(help="Settings from a YAML file, or from a run's config.yaml.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in the output directory, if there is one.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace another run in the output directory.")]
Data = Annotated[
    str | None, typer.Option(help="digits, cifar10, cifar100 or folder:PATH; by default the run's.")
]
Runs = Annotated[
    list[Path], typer.Argument(help="Directories of finished runs, such as seeds of one setting.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the accuracies of each run to this file.")]

_KINDS: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool}

UNSET = "none"
"""What is typed for None, and for no site at all."""


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command()(with_settings(pretrain, PretrainConfig))
    app.command()(presets)
    app.command()(probe)
    app.command()(transfer)


def with_settings(command: Callable[..., None], kind: type[Settings]) -> Callable[..., None]:
    """Give a command that takes ``settings`` an option for every setting of a kind of run, none of them required.

    The word `UNSET` is the way back from what a preset or a file gives, for settings that may be None or empty.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    options = [_option(item) for item in kind.items()]
    names = [option.name for option in options]
    optional = {item.name for item in kind.items() if "None" in str(item.type) or item.default == ()}

    def run(**given: Any) -> None:
        settings = {name: given.pop(name) for name in names}
        values = {name: value for name, value in settings.items() if value not in (None, [])}
        command(**given, settings={k: _unset(v) if k in optional else v for k, v in values.items()})

    kept = [parameter for parameter in own if parameter.name != "settings"]
    run.__signature__ = inspect.Signature([*kept, *options])  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def pretrain(
    *,
    out: Out,
    preset: Preset = None,
    config: File = None,
    resume: Resume = False,
    force: Force = False,
    settings: dict[str, Any],
) -> None:
    """Pretrain with SimCLR, with Deep Augmentation at --at, and probe the encoder."""
    # Before the imports: a mistyped option should not wait for them.
    from graphaug.contrastive.presets import settle
    from graphaug.contrastive.runs.directory import RunDirectory

    earlier = earlier_settings(out, resume, force)
    wanted = settle(PretrainConfig, settings, preset, config, earlier)

    from graphaug.contrastive.devices import is_first_process
    from graphaug.contrastive.runs.progress import EpochProgress
    from graphaug.vision.data.images import load
    from graphaug.vision.pretrain import pretrain as run

    first = is_first_process()
    if first:
        RunDirectory(out, force, resume)  # refuse before the data are read
    if earlier is not None:
        RunDirectory.at(out).check_settings(PretrainConfig, wanted.to_dict())
    images = load(wanted.data, size=wanted.size, strict=wanted.strict)
    if first:
        _report_skipped(images)
    with EpochProgress(wanted.epochs, shown=first) as progress:
        result = run(wanted, out, force=force, resume=resume, data=images, on_epoch=progress).result
    if not first:
        return
    if "linear" in result:
        few = result["few_labels"]
        print(f"linear probe   {result['linear']:.1%}  ({result['train_images']} labels)")
        print(
            f"few labels     {few['mean']:.1%} ± {few['std']:.1%}  ({few['labels_per_class']} a class, 10 draws)"
        )
        print(f"kNN            {result['knn']:.1%}")
    else:
        print("the images have no labels: nothing was probed")
    print(f"written to {out}")


def earlier_settings(out: Path, resume: bool, force: bool) -> dict[str, Any] | None:
    """The settings of the run to resume, if there is one."""
    from graphaug.contrastive.runs.directory import RunDirectory

    if resume and force:
        raise ConfigError("--resume goes on with a run, --force replaces it: give one of them.")
    if not resume:
        return None
    run = RunDirectory.at(out)
    earlier = run.settings()
    if earlier is None:
        print(f"nothing to resume in {out}: a new run.", file=sys.stderr)
    elif run.begins_again():
        print(f"the run in {out} has no checkpoint yet: it begins again.", file=sys.stderr)
    return earlier


def presets() -> None:
    """Print the presets, as YAML that --config reads."""
    import yaml

    from graphaug.contrastive.presets import PRESETS
    from graphaug.text.presets import PRESETS as TEXT_PRESETS

    for command, found in {"pretrain": PRESETS, "simcse": TEXT_PRESETS}.items():
        for name, settings in found.items():
            print(f"# graphaug {command} --preset {name}\n{yaml.safe_dump(settings, sort_keys=False)}")


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
    """Probe the encoders of RUNS: linear with all and with few labels, nearest neighbours. The last epoch counts."""
    if not linear:
        refuse_without(context, "--linear", "epochs")
    from graphaug.vision.probes.probe import probe_run

    _each_run(runs, data, json_file, lambda run, images: probe_run(run, images, linear=linear, epochs=epochs))


def transfer(
    runs: Runs,
    data: Annotated[str, typer.Option(help="The data to transfer to.")],
    epochs: Annotated[int, typer.Option(min=1, help="Of the fine-tuning.")] = 30,
    json_file: Json = None,
) -> None:
    """Transfer the encoders of RUNS to other data: linear on frozen features, and fine-tuned."""
    from graphaug.vision.probes.probe import transfer_run

    _each_run(runs, data, json_file, lambda run, images: transfer_run(run, images, epochs=epochs))


def _each_run(
    runs: list[Path], data: str | None, file: Path | None, look: Callable[[Path, ImageData], dict[str, Any]]
) -> None:
    from graphaug.contrastive.runs.files import write_file
    from graphaug.vision.data.images import load
    from graphaug.vision.probes.probe import load_run, summary

    settings = [load_run(run)[1] for run in runs]
    _check_comparable(runs, settings, data)
    images = load(data or settings[0]["data"], size=settings[0].get("size"))
    _report_skipped(images)
    results = [look(run, images) for run in runs]
    print(f"{images.name}: {len(images.train)} training and {len(images.test)} test images")
    print(summary(results))
    if file is not None:
        text = json.dumps({str(run): found for run, found in zip(runs, results, strict=True)}, indent=2)
        write_file(file, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def _check_comparable(runs: list[Path], settings: list[dict[str, Any]], data: str | None) -> None:
    """Refuse runs that would have to be looked at on different images, and name what else they differ in."""
    first = {**PretrainConfig().to_dict(), **settings[0]}
    for run, other in zip(runs[1:], settings[1:], strict=True):
        other = {**PretrainConfig().to_dict(), **other}
        for name in ("size",) if data is not None else ("data", "size"):
            if other[name] != first[name]:
                raise ConfigError(
                    f"{str(run)!r} has {name}={other[name]!r}, {str(runs[0])!r} has {first[name]!r}: their accuracies "
                    f"have no mean. Look at each for itself{', or give --data' if name == 'data' else ''}."
                )
        found = [line for line in PretrainConfig.differences(first, other) if not line.startswith("seed:")]
        if found:
            print(
                f"{run} differs from {runs[0]} in more than its seed: {'; '.join(found)}. The mean is over both.",
                file=sys.stderr,
            )


def _report_skipped(images: ImageData) -> None:
    for skipped in images.skipped[:10]:
        print(f"skipped {skipped}", file=sys.stderr)
    if images.skipped:
        print(f"{len(images.skipped)} unreadable image(s) skipped.", file=sys.stderr)


def _or_unset(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of numbers that lets `UNSET` through."""

    def number(text: str) -> Any:
        return text if text == UNSET else kind(text)

    return number


def _unset(value: Any) -> Any:
    """The value that was meant: None for `UNSET`, nothing for a list of it alone."""
    if value == [UNSET]:
        return []
    return None if value == UNSET else value


def _option(item: Field[Any]) -> inspect.Parameter:
    """The command-line option of a setting: --batch-size for ``batch_size``."""
    kind, flag = str(item.type), "--" + item.name.replace("_", "-")
    names = [f"{flag}/--no-{flag[2:]}"] if kind == "bool" else [flag]
    shown = "" if item.default in (None, ()) else f" [default: {item.default}]"
    described: dict[str, Any] = {"help": item.metadata["help"] + shown, "show_default": False}
    plain: Any = _KINDS.get(kind.split(" ")[0])
    if kind.startswith("tuple"):
        annotation: Any = list[float] | None if "float" in kind else list[str] | None
    else:
        annotation = plain | None
    if "None" in kind and plain in (int, float):  # typer would refuse the word
        described |= {
            "parser": _or_unset(plain),
            "metavar": f"{'INTEGER' if plain is int else 'FLOAT'}|{UNSET}",
        }
    option = typer.Option(*names, **described)
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )
