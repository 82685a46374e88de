"""Options of the commands that train: those of every run, and those that are made from its settings."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import Field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from graphaug.contrastive.config import presets as named
from graphaug.contrastive.config.settings import Settings
from graphaug.contrastive.config.sites import sites_and_rates
from graphaug.contrastive.devices import is_first_process
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.contrastive.runs.files import runs_beside
from graphaug.errors import ConfigError, RunDirectoryError
from graphaug.terminal.help import HelpAll, default_of

S = TypeVar("S", bound=Settings)

Out = Annotated[Path, typer.Option(metavar="DIR", help="Directory for the run's files.")]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", help="Settings to begin with; see 'graphaug presets'.")
]
File = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings from a YAML file, or from a run's config.yaml.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in the output directory, if there is one.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace another run in the output directory.")]

_KINDS: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool}

_METAVARS = {"at": "SITE[=RATE]", "freeze_schedule": "MODULE"}
_WORDS = {"str": "TEXT", "int": "INT", "float": "FLOAT"}

_HOW = ("devices", "accelerator", "compile")
"""Settings that say how a run is computed and not what it does."""

UNSET = "none"
"""What is typed for None, and for no site at all."""


def with_settings(command: Callable[..., None], kind: type[Settings]) -> Callable[..., None]:
    """Give a command that takes ``settings`` an option for every setting of a kind of run, none of them required.

    The word `UNSET` is the way back from what a preset or a file gives, for settings that may be None or empty.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    options = [
        _option(item, item.name in kind.TAKEN_BACK) for item in kind.items() if item.name not in kind.REFUSED
    ]
    names = [option.name for option in options]
    optional = {item.name for item in kind.items() if "None" in str(item.type) or item.default == ()}
    optional |= set(kind.TAKEN_BACK)

    def run(**given: Any) -> None:
        given.pop("help_all")
        settings = {name: given.pop(name) for name in names}
        values = {name: value for name, value in settings.items() if value not in (None, [])}
        if values.get("at", [UNSET]) != [UNSET]:
            values["at"], rates = sites_and_rates(values["at"])
            if rates and "rates" in values:
                raise ConfigError("the sites have rates of their own: leave --rates out.")
            values.setdefault("rates", rates)
        command(**given, settings={k: _unset(v) if k in optional else v for k, v in values.items()})

    kept = [parameter for parameter in own if parameter.name != "settings"]
    help_all = inspect.Parameter(
        "help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=HelpAll
    )
    run.__signature__ = inspect.Signature([*kept, *options, help_all])  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def settled(
    kind: type[S],
    settings: dict[str, Any],
    presets: named.Presets,
    *,
    out: Path,
    preset: str | None,
    config: Path | None,
    resume: bool,
    force: bool,
) -> S:
    """The settings of the run that was asked for, after all that can be refused before its data are read.

    Args:
        kind: of settings.
        settings: given by hand.
        presets: of this kind of run.
        out, preset, config, resume, force: the options of every run.

    Raises:
        ConfigError: no such preset, file or setting, or a run to go on with that has other settings.
        RunDirectoryError: the output directory holds another run; or none, and ``resume`` is all that was asked for.

    """
    earlier = earlier_settings(out, resume, force)
    said = preset is not None or config is not None or not settings.keys() <= {*kind.FREE, *_HOW}
    if resume and earlier is None:
        if not said:
            raise _nothing_to_resume(out)
        print(f"nothing to resume in {out}: a new run.", file=sys.stderr)
    wanted = named.settle(kind, settings, preset, config, earlier, presets)
    if is_first_process():
        RunDirectory(out, force, resume)
        for note in _of_little_effect(wanted):
            print(note, file=sys.stderr)
    if earlier is not None:
        run = RunDirectory.at(out)
        run.check_settings(kind, wanted.to_dict())
        if run.finished() is not None and is_first_process():
            print(f"the run in {out} is finished: this is its result.", file=sys.stderr)
    return wanted


def _of_little_effect(wanted: Settings) -> Iterator[str]:
    """What a run is asked for and will not, or hardly, do."""
    if wanted.warmup > wanted.epochs:
        yield (
            f"--warmup {wanted.warmup:g} is longer than the {wanted.epochs} epoch(s) of --epochs: the learning rate "
            "rises until the run ends."
        )
    if wanted.at and not wanted.subset and not getattr(wanted, "subset_end", None):
        yield f"--subset 0: no row is augmented at {', '.join(map(str, wanted.at))}, as in a run without a site."


def earlier_settings(out: Path, resume: bool, force: bool) -> dict[str, Any] | None:
    """The settings of the run to resume, if there is one."""
    if resume and force:
        raise ConfigError("--resume goes on with a run, --force replaces it: give one of them.")
    if not resume:
        return None
    run = RunDirectory.at(out)
    earlier = run.settings()
    if earlier is not None and run.begins_again():
        print(f"the run in {out} has no checkpoint yet: it begins again.", file=sys.stderr)
    return earlier


def _nothing_to_resume(out: Path) -> RunDirectoryError:
    """The error for --resume where there is no run, and nothing that says what another one should do."""
    what = "holds no run" if out.is_dir() else "does not exist"
    return RunDirectoryError(
        f"nothing to resume: {str(out)!r} {what}.{runs_beside(out)} --resume begins a new run where other options say "
        "what it should do, such as --data, --preset or --config."
    )


def _number(kind: Callable[[str], Any], unset: bool) -> Callable[[str], Any]:
    """A parser of numbers, which may let `UNSET` through."""

    def number(text: str) -> Any:
        try:
            return text if unset and text == UNSET else kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise typer.BadParameter(f"{text!r} is not {what}{f' or {UNSET}' if unset else ''}.") from None

    return number


def _unset(value: Any) -> Any:
    """The value that was meant: None for `UNSET`, nothing for a list of it alone."""
    if value == [UNSET]:
        return []
    return None if value == UNSET else value


def _metavar(item: Field[Any], unset: bool) -> str:
    """What stands for the value in the help."""
    if item.name in _METAVARS:
        return _METAVARS[item.name]
    if item.metadata["choices"]:
        return "|".join(item.metadata["choices"])
    word = next(word for name, word in _WORDS.items() if name in str(item.type))
    return f"{word}|{UNSET}" if unset else word


def _option(item: Field[Any], unset: bool = False) -> inspect.Parameter:
    """The command-line option of a setting: --batch-size for ``batch_size``; ``unset``: it takes `UNSET`."""
    kind, flag = str(item.type), "--" + item.name.replace("_", "-")
    names = [f"{flag}/--no-{flag[2:]}"] if kind == "bool" else [flag]
    described: dict[str, Any] = {
        "help": f"{item.metadata['help']} {default_of(item.default)}",
        "show_default": False,
    }
    unset = unset or "None" in kind
    plain: Any = _KINDS.get(kind.split(" ")[0])
    if kind.startswith("tuple"):
        annotation: Any = list[float] | None if "float" in kind else list[str] | None
    else:
        annotation = plain | None
    if not kind.startswith("bool"):
        described["metavar"] = _metavar(item, unset)
    if plain in (int, float):  # typer would refuse the word, and not say which it was given
        described["parser"] = _number(plain, unset)
    option = typer.Option(*names, **described)
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )
