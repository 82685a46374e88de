"""The help of the command line: in groups, with every default, nothing cut; the rarer settings behind --help-all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from graphaug.errors import nearest
from graphaug.terminal.options import AUGMENTATION

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Run": ("out", "preset", "config", "resume", "force"),
    "Data and model": (
        *("data", "images", "validation", "model", "size", "init", "strict", "resident"),
        *("text", "sentences", "encoder", "from_config", "vocab_size", "max_length"),
        *("labels", "task", "test", "width", "layers"),
    ),
    "Augmentation": (*("at", "everywhere", *AUGMENTATION, "mlm_augment"),),
    "Training": (
        *("epochs", "batch_size", "cache", "accumulate", "optimizer", "lr", "schedule", "lr_floor", "warmup"),
        *("warmup_from", "momentum", "weight_decay", "clip", "freeze_schedule", "freeze_until", "seed"),
    ),
    "Loss": (
        *("method", "loss", "temperature", "loss_scale", "projection", "hidden", "gather"),
        *("redundancy", "vicreg_weights", "teacher_momentum", "teacher_schedule", "queue"),
        *("contrastive", "dropout", "mlm", "mlm_weight", "mlm_rate"),
    ),
    "Views": (
        *("crop", "jitter", "jitter_p", "gray_p", "blur_p", "solarize_p"),
        *("views", "ratio", "eta"),
    ),
    "Where": (
        *("devices", "accelerator", "precision", "compile"),
        *("channels_last", "sync_batchnorm", "cuda_graphs"),
    ),
    "What is kept and looked at": (
        *("checkpoint_every", "keep", "snapshot_every", "watch_every", "collapse", "sts", "report_every"),
    ),
}
"""Which group a setting of a run stands in, of images, text or graphs."""

RARE = frozenset(
    {
        *(
            "strict",
            "resident",
            "vocab_size",
            "everywhere",
            "rates",
            "rate_end",
            "subset_end",
            "sampling",
            "pairing",
        ),
        *("mlm_augment", "cache", "accumulate", "schedule", "lr_floor", "warmup_from", "momentum", "clip"),
        *("freeze_schedule", "freeze_until"),
        *("loss_scale", "projection", "hidden", "redundancy", "vicreg_weights", "queue", "augment_teacher"),
        *(
            "teacher_momentum",
            "teacher_schedule",
            "gather",
            "contrastive",
            "dropout",
            "mlm_weight",
            "mlm_rate",
        ),
        *("crop", "jitter", "jitter_p", "gray_p", "blur_p", "solarize_p"),
        *("channels_last", "sync_batchnorm", "cuda_graphs", "keep", "collapse"),
    }
)
"""What ``--help`` leaves to ``--help-all``."""

_KINDS = {"INTEGER": "INT", "STR": "TEXT", "LIST[STR]": "TEXT"}
_WHOLE = "help_all"
_HARD_SPACE = "\u00a0"


class Help(TyperCommand):
    """A command whose help stands in groups, and which answers a mistyped option with the ones that are near."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what was typed."""
        try:
            return super().parse_args(ctx, args)
        except (
            Exception
        ) as error:  # where NoSuchOption is to be imported from differs among versions of typer
            wrong = getattr(error, "option_name", None)
            if isinstance(wrong, str) and hasattr(error, "possibilities"):
                names = [name for p in self.get_params(ctx) for name in (*p.opts, *p.secondary_opts)]
                # without the dashes, which all of them have and which make every option like every other
                near = nearest(wrong.lstrip("-"), [name.lstrip("-") for name in names])
                error.possibilities = [f"--{name}" for name in near]
            raise

    def get_help(self, ctx: Any) -> str:
        """The whole help."""
        return super().get_help(ctx).replace(_HARD_SPACE, " ")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, in groups if they have some."""
        whole = bool(ctx.meta.get(_WHOLE)) or not any(p.name == _WHOLE for p in self.params)
        shown: dict[str, list[tuple[str, str]]] = {}
        left = 0
        params = self.get_params(ctx)
        order = list(settings_in_groups()) if any(p.name == _WHOLE for p in params) else []
        for param in sorted(params, key=lambda p: order.index(p.name) if p.name in order else len(order)):
            if getattr(param, "hidden", False):
                continue
            if not whole and param.name in RARE:
                left += 1
                continue
            shown.setdefault(_group(param, self.params), []).append((_spelled(param, ctx), _described(param)))
        for title in sorted(shown, key=_place):
            with formatter.section(title):
                formatter.write_dl(shown[title])
        if left:
            formatter.write_paragraph()
            formatter.write_text(f"{left} more settings: graphaug {ctx.info_name} --help-all")


class Commands(TyperGroup):
    """The list of commands, each with the first sentences that describe it."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then the commands."""
        with formatter.section("Options"):
            formatter.write_dl(
                [(_spelled(p, ctx), getattr(p, "help", "") or "") for p in self.get_params(ctx)]
            )
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, (command.help or "").partition("\n\n")[0]) for name, command in self.commands.items()]
            )
        formatter.write_paragraph()
        formatter.write_text("graphaug COMMAND --help lists the options of a command, with their defaults.")


def _show_all(ctx: typer.Context, asked: bool) -> None:
    if asked:
        ctx.meta[_WHOLE] = True
        print(ctx.get_help())
        raise typer.Exit


HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all", is_eager=True, callback=_show_all, help="Show this message with all settings, and exit."
    ),
]
"""An option of commands that have rarer settings."""


def _group(param: Any, params: Iterable[Any]) -> str:
    if param.param_type_name == "argument":
        return "Arguments"
    if any(p.name == _WHOLE for p in params):  # a command with the settings of a run
        for title, names in GROUPS.items():
            if param.name in names:
                return title
    return "Options"


def _place(title: str) -> int:
    order = ["Arguments", *GROUPS, "Options"]
    return order.index(title)


def _spelled(param: Any, ctx: Any) -> str:
    """``--at SITE``; ``--[no-]stop-grad`` for a switch that has both forms."""
    if param.param_type_name == "argument":
        return f"{param.metavar or param.name.upper()}{'...' if param.nargs != 1 else ''}"
    names = [name for name in param.opts if name.startswith("--")] or list(param.opts)
    if param.secondary_opts:
        return f"--[no-]{names[0].removeprefix('--')}"
    if param.is_flag or param.is_eager:
        return str(names[0])
    kind = param.metavar
    if kind is None:  # "--epochs <int>", or "--epochs INTEGER RANGE", from version to version
        words = param.get_help_record(ctx)[0].partition(" ")[2].split()
        kind = words[0].strip("<>").upper() if words else ""
    return f"{names[0]} {_KINDS.get(kind, kind)}".rstrip()


def _described(param: Any) -> str:
    """The sentence of an option and its default."""
    text = str(getattr(param, "help", None) or "")
    if param.param_type_name == "argument" or param.is_eager or "[default:" in text.replace(_HARD_SPACE, " "):
        return text
    return f"{text} [required]" if param.required else f"{text} {default_of(param.default)}"


def default_of(value: Any) -> str:
    """The end of an option's sentence; its spaces are no places to break a line, see `Help.get_help`."""
    return f"[default: {said(value)}]".replace(" ", _HARD_SPACE)


def said(default: Any) -> str:
    """A default as the command line would be told it."""
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return " ".join(map(str, default)) if isinstance(default, (tuple, list)) else str(default)


def settings_in_groups() -> Iterator[str]:
    """The names in all groups."""
    for names in GROUPS.values():
        yield from names
