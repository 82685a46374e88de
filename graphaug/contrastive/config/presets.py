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

    from graphaug.contrastive.config.yaml_files import read_yaml

    try:
        found = read_yaml(path)
    except OSError as error:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        own = path / "config.yaml"
        hint = meant([str(own)]) if own.is_file() else did_you_mean(path.name, names)
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}.{hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is no YAML: {' '.join(str(error).split())}") from error
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
    settings |= preset(name, presets or {}) if name is not None else {}
    settings |= read_settings(file, kind) if file is not None else {}
    back = {n for n in kind.TAKEN_BACK if n in given and given[n] is None}
    settings, given = ({k: v for k, v in source.items() if k not in back} for source in (settings, given))
    try:
        wanted = kind.from_dict({**settings, **given})
    except ConfigError as error:
        raise ConfigError(f"{error}{_of_preset(kind, str(error), settings, given, name, presets)}") from error
    refuse_idle(given, wanted.to_dict())
    wanted.check_given({name: value for name, value in given.items() if value not in (None, False, [])})
    return wanted


def _of_preset(
    kind: type[Settings],
    message: str,
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    name: str | None,
    presets: Presets | None,
) -> str:
    """The end of a refusal that speaks of settings which nobody typed: the preset set them."""
    own = preset(name, presets or {}) if name is not None else {}
    free = {item.name for item in kind.items() if "None" in str(item.type)} | {*kind.TAKEN_BACK}
    said = ""
    for setting, value in own.items():
        if setting in given or settings.get(setting) != value or not re.search(rf"\b{setting}=", message):
            continue
        said += f" The preset {name!r} sets {setting}={value!r}"
        said += f": {setting}=None takes it back." if setting in free else "."
    return said
