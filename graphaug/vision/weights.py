"""Weights of a run or of a file, loaded into a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.contrastive.runs.checkpoints import read
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.errors import CheckpointError, GraphaugError, an, did_you_mean, in_a_line
from graphaug.vision.models import classifier_path
from graphaug.vision.user_models import warn_of_other_code

ENCODER = "encoder.safetensors"

LEFT = ("at", "everywhere", "stop_grad", "rate", "rates", "data")
"""Settings of a run that whoever begins with its weights may take to come with them."""


def read_weights(source: str | os.PathLike[str], classifier: str | None = None) -> dict[str, Tensor]:
    """The state of an encoder.

    Args:
        source: a run directory, a ``.safetensors`` file, a checkpoint of a run, or a state_dict saved by torch, which
            are read with ``weights_only=True``: a file can hold no code.
        classifier: where the classifier is in the model; only a checkpoint, which has the head there, needs it.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it holds no weights.

    """
    path = Path(source)
    if path.is_dir():
        if not (path / ENCODER).is_file():
            raise CheckpointError(
                f"{str(path)!r} holds no {ENCODER}: it is no run directory of a finished run."
            )
        path = path / ENCODER
    if not path.is_file():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(f"there are no weights at {str(path)!r}.{did_you_mean(path.name, names)}")
    found = _content(path)
    if classifier is not None and isinstance(found, dict) and {"objective", "classifier"} <= found.keys():
        parts = {
            name: _state_dict(found[name], path, f" in its {name!r}") for name in ("objective", "classifier")
        }
        return _of_checkpoint(parts, classifier)
    return _state_dict(found, path)


def _content(path: Path) -> Any:
    """What a file holds, by its format."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.with_name(path.name + ".sha256").is_file():
            return read(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read: {error.strerror or in_a_line(error)}."
        ) from error
    except Exception as error:  # each format has errors of its own for what is no file of it
        # What torch says of it is about its own options, with codes for a terminal, or the name of a byte.
        if not path.stat().st_size:
            raise CheckpointError(f"{str(path)!r} cannot be read as weights: it is empty.") from error
        kind = (
            "safetensors'" if path.suffix == ".safetensors" else "torch's with tensors and plain values alone"
        )
        raise CheckpointError(f"{str(path)!r} cannot be read as weights: it is no file of {kind}.") from error


def _state_dict(found: Any, path: Path, place: str = "") -> dict[str, Tensor]:
    """What was found, if it is names with tensors."""
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{str(path)!r} holds no state_dict{place}: it is {an(found)}, and names with tensors are expected."
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{str(path)!r} holds no state_dict{place}: names with tensors are expected, and there is {an(value)} "
                f"at {name!r}."
            )
    return found


def _of_checkpoint(state: dict[str, dict[str, Tensor]], classifier: str) -> dict[str, Tensor]:
    """The whole model's state in that of a run, with the model's own classifier where the head was."""
    network = {
        n.removeprefix("network."): t for n, t in state["objective"].items() if n.startswith("network.")
    }
    kept = {name: tensor for name, tensor in network.items() if not name.startswith(classifier + ".")}
    return kept | {f"{classifier}.{name}": tensor for name, tensor in state["classifier"].items()}


def settings_of(source: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]] | None:
    """The ``config.yaml`` of the run whose directory, or whose file, a source of weights is; or None."""
    path = Path(source)
    for folder in (path,) if path.is_dir() else (path.parent, path.parent.parent):
        try:
            settings = RunDirectory.at(folder).settings()
        except (GraphaugError, OSError):
            continue
        if settings is not None:
            return folder / "config.yaml", settings
    return None


def settings_left(config: Any) -> str:
    """A line about the settings that ``init`` does not bring from its run, and that this one has not; or nothing."""
    found = settings_of(config.init) if config.init is not None else None
    if found is None:
        return ""
    file, earlier = found
    own = config.to_dict()
    other = [name for name in LEFT if name in earlier and earlier[name] != own[name]]
    if not other:
        return ""
    values = {n: v if isinstance(v, list) and v else [v] for n, v in ((n, earlier[n]) for n in other)}
    had = ", ".join(f"{name}={value!r}" for name, several in values.items() for value in several)
    return f"{config.init} had {had}: --init takes its weights alone, --config {file} its settings too."


def warn_if_edited(source: str | os.PathLike[str]) -> None:
    """Warn if a source of weights is of a run whose model's file has other code by now."""
    if (found := settings_of(source)) is not None:
        warn_of_other_code(found[1], str(found[0].parent))


def load_weights(model: nn.Module, source: str | os.PathLike[str], name: str | None = None) -> None:
    """Load weights into a whole model; a classifier of another number of classes is left as the model has it.

    Args:
        model: takes them.
        source: as for `read_weights`.
        name: of the model, where another could be named: the error says the name of the one that has the weights.

    Raises:
        CheckpointError: there are none at ``source``, or they are of another model.

    """
    path = classifier_path(model)
    warn_if_edited(source)
    state = read_weights(source, path)
    own = model.state_dict()
    prefix = path + "."
    for name, tensor in own.items():
        if name.startswith(prefix) and (name not in state or state[name].shape != tensor.shape):
            state[name] = tensor
    wrong = [f"{n} is missing" for n in own if n not in state]
    wrong += [f"{n} is not in the model" for n in state if n not in own]
    wrong += [
        f"{n} is {tuple(state[n].shape)}, not {tuple(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    if wrong:
        trained = (settings_of(source) or (None, {}))[1].get("model") if name is not None else None
        hint = f" Its run was of model={trained!r}: give that one." if trained not in (None, name) else ""
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{str(source)!r} is of another model: {'; '.join(wrong[:3])}{more}.{hint}")
    model.load_state_dict(state)
