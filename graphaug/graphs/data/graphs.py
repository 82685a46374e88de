"""Graphs with labels: from which file, of which kind, and which of them are trained on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphaug.errors import DataError
from graphaug.graphs.batch import Graph
from graphaug.graphs.config import GraphsConfig
from graphaug.graphs.data import molecules, tu


@dataclass(frozen=True)
class GraphData:
    """``graphs`` with a label each, and the places of those that are trained on, chosen by, and tested on.

    ``labels``: whole numbers of ``classes``; float64 where there are no classes; None where there are no labels, and
    then all graphs are trained on. ``skipped`` says which molecules could not be read.
    """

    name: str
    graphs: tuple[Graph, ...]
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    train: tuple[int, ...] = ()
    validation: tuple[int, ...] = ()
    test: tuple[int, ...] = ()

    def of(self, places: Sequence[int]) -> list[Graph]:
        """The graphs at these places."""
        return [self.graphs[i] for i in places]


def load(config: GraphsConfig) -> GraphData:
    """Read what ``config.data`` names, and split it by the seed.

    Raises:
        DataError: the file is missing, of no known kind or damaged, labels are missing, or too few for a split.
        ConfigError: a package that reads it is not installed.

    """
    graphs, texts, skipped = _reader(config)(config)
    if not graphs:
        raise DataError(
            f"{config.data!r} holds no graph that can be read.{''.join(f' {s}' for s in skipped[:1])}"
        )
    labels, classes = (None, ()) if texts is None else labelled(texts, config.task)
    return _split(GraphData(config.data, tuple(graphs), labels, classes, tuple(skipped)), config)


Read = tuple[list[Graph], list[str] | None, list[str]]
"""Graphs, their labels as they are written, and what could not be read."""


def _reader(config: GraphsConfig) -> Callable[[GraphsConfig], Read]:
    path = Path(config.data)
    if config.data == "digits":
        return _digits
    if path.is_dir():
        return tu.read_folder
    known = {".smi": molecules.read_smiles, ".sdf": molecules.read_sdf}
    if path.suffix.lower() not in known:
        raise DataError(
            f"{config.data!r} is neither digits, nor a file that ends in .smi or .sdf, nor a folder in TU's format."
        )
    if not path.is_file():
        raise DataError(f"there is no file {config.data!r}.")
    return known[path.suffix.lower()]


def _digits(config: GraphsConfig) -> Read:
    """scikit-learn's 1,797 handwritten digits: a node for each pixel with ink, joined to those around it.

    Features of a node: its ink, row and column, from 0 to 1.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    graphs = []
    for image in torch.tensor(digits.images / 16, dtype=torch.float32):
        places = image.nonzero()
        x = torch.cat([image[image > 0][:, None], places / 7], 1)
        near = (places[:, None] - places).abs().amax(2) == 1
        graphs.append(Graph(x, near.nonzero().T.contiguous()))
    return graphs, None if config.task == "none" else [str(label) for label in digits.target], []


def labelled(texts: Sequence[str], task: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels as numbers: values, where they are numbers of which one is not whole, or classes, with their names.

    Args:
        texts: the labels as they are written.
        task: auto, or classes or values whatever they look like.

    Raises:
        DataError: a value is no number, or all graphs are of one class.

    """
    numbers = [_number(text) for text in texts]
    wrong = [text for text, number in zip(texts, numbers, strict=True) if not math.isfinite(number)]
    if task == "values" and wrong:
        raise DataError(f"the label {wrong[0]!r} is no number, as task='values' wants it.")
    whole = all(number == int(number) for number in numbers) if not wrong else True
    if task == "values" or (task == "auto" and not whole):
        return torch.tensor(numbers, dtype=torch.float64), ()
    ordered = sorted(set(texts), key=str if wrong else _number)
    if len(ordered) < 2:
        raise DataError(
            f"all graphs have the label {ordered[0]!r}: train without labels, task='none' (--task none)."
        )
    index = {text: i for i, text in enumerate(ordered)}
    return torch.tensor([index[text] for text in texts]), tuple(ordered)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _split(data: GraphData, config: GraphsConfig) -> GraphData:
    """Draw what is tested on, then what is chosen by; of classes the same share of each."""
    from sklearn.model_selection import train_test_split

    places = np.arange(len(data.graphs))
    if data.labels is None:
        return replace(data, train=tuple(places.tolist()))

    def parted(rows: Any, share: float) -> Any:
        assert data.labels is not None
        kinds = data.labels.numpy()[rows] if data.classes else None
        seed = config.seed % 2**32  # NumPy's limit
        return train_test_split(rows, test_size=share, stratify=kinds, random_state=seed)

    try:
        rest, test = parted(places, config.test)
        train, held = parted(rest, config.validation / (1 - config.test)) if config.validation else (rest, [])
    except ValueError as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise DataError(
            f"the {len(places)} graphs of {data.name!r} cannot be split into training and test with shares of each "
            f"class: {said}. Give labels as values, task='values', other shares, or more graphs."
        ) from error
    if not data.classes and min(len(test), len(held) or 2) < 2:
        raise DataError(
            f"{len(test)} test and {len(held)} validation graphs of {data.name!r}: R² needs two values at least. "
            "Give larger shares, or more graphs."
        )
    parts = [tuple(map(int, places)) for places in (train, held, test)]
    return replace(data, train=parts[0], validation=parts[1], test=parts[2])


def fingerprint(data: GraphData) -> dict[str, Any]:
    """What tells the data from others: counts, and a hash of graphs and labels."""
    digest = hashlib.sha256()
    for graph in data.graphs:
        for part in graph:
            digest.update(repr(tuple(part.shape)).encode() + part.numpy().tobytes())
    if data.labels is not None:
        digest.update(data.labels.numpy().tobytes())
    parts = {"train_graphs": data.train, "validation_graphs": data.validation, "test_graphs": data.test}
    return {
        "graphs": len(data.graphs),
        **{name: len(places) for name, places in parts.items()},
        "classes": len(data.classes),
        "graphs_sha256": digest.hexdigest(),
    }
