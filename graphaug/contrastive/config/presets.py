"""Where settings come from: a preset, then a file, then the command line. Each modality has presets of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from graphaug.contrastive.config.names import setting_meant
from graphaug.contrastive.config.settings import Settings
from graphaug.errors import ConfigError, an, did_you_mean, meant
from graphaug.terminal.options import refuse_idle

S = TypeVar("S", bound=Settings)

Presets = Mapping[str, Mapping[str, Any]]
"""Name → settings."""


def preset(name: str, presets: Presets) -> dict[str, Any]:
    """The settings of a preset that differ from, or are meant to be seen beside, the defaults.

    Raises:
        ConfigError: there is none of that name.

    """
    if name not in presets:
        raise ConfigError(
            f"no preset is called {name!r}.{did_you_mean(name, presets)} There are {', '.join(presets) or 'none'}."
        )
    return dict(presets[name])


def read_settings(path: Path, kind: type[Settings]) -> dict[str, Any]:
    """The settings in a YAML file; the ``config.yaml`` of a run is one.

    Raises:
        ConfigError: there is no such file, it is no YAML mapping or too large for one, it has a key that is no setting.

    """
    import yaml

    from graphaug.contrastive.config.yaml_files import no_yaml, read_yaml

    try:
        found = read_yaml(path)
    except OSError as error:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        own = path / "config.yaml"
        hint = meant([str(own)]) if own.is_file() else did_you_mean(path.name, names)
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}.{hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(no_yaml(path, error)) from error
    if found is None:
        raise ConfigError(f"{str(path)!r} is empty; lines 'setting: value' are expected.")
    if not isinstance(found, dict):
        raise ConfigError(f"{str(path)!r} holds {an(found)}; lines 'setting: value' are expected.")
    settings = {name: value for name, value in found.items() if name not in ("resolved", "versions")}
    known = kind.names()
    for name in settings:
        if name not in known:
            raise ConfigError(f"{path}: no setting is called {name!r}.{setting_meant(str(name), known)}")
    return settings


def settle(
    kind: type[S],
    given: Mapping[str, Any],
    name: str | None = None,
    file: Path | None = None,
    run: Mapping[str, Any] | None = None,
    presets: Presets | None = None,
) -> S:
    """Join settings, later ones first: ``given``, the ``file``, the preset ``name``, those of a ``run`` to resume.

    ``presets``: those of this kind of run.

    A None in ``given``, for a setting in the kind's ``TAKEN_BACK``, is the setting's default.

    Raises:
        ConfigError: what `preset`, `read_settings` and the configuration raise; something in ``given`` does nothing.

    """
    settings = {k: v for k, v in (run or {}).items() if k not in ("resolved", "versions")}
    of_preset = preset(name, presets or {}) if name is not None else {}
    of_file = read_settings(file, kind) if file is not None else {}
    settings |= {**of_preset, **of_file}
    back = {n for n in kind.TAKEN_BACK if n in given and given[n] is None}
    settings, given = ({k: v for k, v in source.items() if k not in back} for source in (settings, given))
    try:
        wanted = kind.from_dict({**settings, **given})
    except ConfigError as error:
        message = str(error)
        untyped = [setting for setting in settings if setting not in given and _speaks_of(message, setting)]
        of_them = {setting: of_file[setting] for setting in untyped if setting in of_file}
        said = _of_file(file, of_them) if of_them else ""
        for setting in untyped:
            if setting in of_preset and setting not in of_file:
                said += _of_preset(kind, setting, of_preset[setting], str(name))
        raise ConfigError(message + said) from error
    refuse_idle(given, wanted.to_dict())
    wanted.check_given({name: value for name, value in given.items() if value not in (None, False, [])})
    return wanted


def _speaks_of(message: str, setting: str) -> bool:
    """Whether a refusal of `Settings` speaks of a setting."""
    return re.search(rf"^{setting}\b|^no {setting} is called|\b{setting}=", message) is not None


def _of_file(file: Path | None, settings: Mapping[str, Any]) -> str:
    """That a file has what nobody typed."""
    return (
        f" {str(file)!r} says {' and '.join(repr(f'{name}: {value}') for name, value in settings.items())}."
    )


def _of_preset(kind: type[Settings], setting: str, value: Any, name: str) -> str:
    """That a preset sets what nobody typed, and how it is taken back."""
    free = {item.name for item in kind.items() if "None" in str(item.type)} | {*kind.TAKEN_BACK}
    back = f": {setting}=None takes it back." if setting in free else "."
    return f" The preset {name!r} sets {setting}={value!r}{back}"
