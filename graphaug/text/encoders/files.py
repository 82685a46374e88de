"""Files of an encoder: the directory or the name on the hub that is meant, and what is in its JSON files."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from graphaug.errors import EncoderError, did_you_mean
from graphaug.text.encoders.encoder import first_line

RUN = "encoder"
"""The directory in a run's directory that holds its encoder, in transformers' format."""


def resolved(name: str | os.PathLike[str]) -> str:
    """The directory with the model's files, or its name on the hub."""
    name = os.path.expanduser(os.fspath(name))
    if os.path.exists(name):
        return str(_directory(Path(name)))
    if not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name):
        raise EncoderError(f"{name!r} does not exist.{_neighbours(Path(name))}")
    # a name on the hub may have one slash as well, but nobody keeps a run in a directory called like its owner
    if any(
        Path(name).parent.joinpath(file).exists() for file in ("config.yaml", "config.json") if "/" in name
    ):
        raise EncoderError(f"{name!r} does not exist.{_neighbours(Path(name))}")
    return name


def _directory(path: Path) -> Path:
    """The directory with the model's files for what was named."""
    if not path.is_dir():
        raise EncoderError(f"{str(path)!r} is a file: name the directory that holds the model's files.")
    if (path / "modules.json").exists() or (path / "config.json").exists():
        return path
    if (path / RUN / "config.json").exists():
        return path / RUN
    if (path / "encoder.safetensors").exists():
        raise EncoderError(f"{str(path)!r} holds a run on images: its encoder does not read text.")
    below = sorted(p.parent for p in path.glob("*/config.json"))
    hint = f" Did you mean {str(below[0])!r}?" if below else ""
    raise EncoderError(
        f"{str(path)!r} holds no encoder: neither modules.json (sentence-transformers), nor config.json "
        f"(transformers), nor {RUN}/config.json (a run).{hint}"
    )


def read_json(name: str, file: str, kind: type, folder: str = "") -> Any:
    """Content of a JSON file of a model, in a directory or on the hub; None where there is none or nothing in it."""
    path = Path(name, folder, file)
    if not os.path.isdir(name):
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(name, f"{folder}/{file}".lstrip("/")))
        except LocalEntryNotFoundError as error:  # no network, and the file is not in the cache
            if not isinstance(try_to_load_from_cache(name, f"{folder}/config.json".lstrip("/")), str):
                raise not_loaded(
                    name, error
                ) from error  # nor is the model: asking for more would only take time
            return None
        except (
            EntryNotFoundError,
            OSError,
            ValueError,
        ):  # whether the model is there at all is told on loading it
            return None
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EncoderError(f"{str(path)!r} is no JSON: {error}.") from error
    items = content if isinstance(content, list) else []
    if not isinstance(content, kind) or not all(isinstance(item, dict) for item in items):
        raise EncoderError(f"{str(path)!r} is not what it should be: {str(content)[:60]}.")
    return content or None


def not_loaded(name: str, error: Exception) -> EncoderError:
    """The error for a model that transformers cannot load, or that is neither here nor on the hub."""
    hub = ""
    if not os.path.isdir(name):
        near = _neighbours(Path(name))
        hub = f" It is no directory here, so it was looked for on the hub.{near}"
    return EncoderError(f"{name!r} is no model that transformers can load.{hub} {first_line(error)}")


def _neighbours(path: Path) -> str:
    parent = path.parent
    names = {p.name: str(p) for p in parent.iterdir() if p.is_dir()} if parent.is_dir() else {}
    return did_you_mean(path.name, names)
