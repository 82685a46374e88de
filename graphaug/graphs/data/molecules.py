"""Molecules: SMILES with a table of labels beside them, and SDF with a tag as the label."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from graphaug.errors import DataError, did_you_mean
from graphaug.graphs.batch import Graph
from graphaug.graphs.config import GraphsConfig
from graphaug.graphs.data.files import read_lines
from graphaug.graphs.packages import chem, molecule_features

NONE = "Add them, or train without labels, task='none' (--task none)."


def read_smiles(config: GraphsConfig) -> tuple[list[Graph], list[str] | None, list[str]]:
    """A molecule a line: its SMILES and, behind a blank, its name. Labels are found by the name, else by the SMILES.

    Raises:
        DataError: with ``strict`` a molecule cannot be read; labels are missing, or two for one molecule.

    """
    path = Path(config.data)
    table = None if config.task == "none" else _table(path, config.labels)
    reader = _Reader(config)
    for number, line in enumerate(read_lines(path), 1):
        smiles, _, name = line.strip().partition("\t" if "\t" in line.strip() else " ")
        if smiles:
            label = None if table is None else table.get(name.strip(), table.get(smiles))
            reader.add(reader.chem.MolFromSmiles, smiles, f"{path} line {number}: {smiles!r}", label)
    return reader.done()


def read_sdf(config: GraphsConfig) -> tuple[list[Graph], list[str] | None, list[str]]:
    """Molecules in an SDF file, with the tag ``config.labels``, by default the only one there is.

    Raises:
        DataError: as for `read_smiles`, or there are several tags and none was named.

    """
    path = Path(config.data)
    records = list(_records(read_lines(path)))
    tag = None if config.task == "none" else _tag(path, config.labels, [tags for _, _, tags in records])
    reader = _Reader(config)
    for number, block, tags in records:
        name = block.partition("\n")[0].strip()
        label = None if tag is None else tags.get(tag)
        reader.add(reader.chem.MolFromMolBlock, block, f"{path} line {number}: {name!r}", label)
    return reader.done()


class _Reader:
    """Collects graphs, labels, what could not be read, and what has no label."""

    def __init__(self, config: GraphsConfig) -> None:
        self.config, self.chem, self.features = config, chem(), molecule_features()
        self.graphs: list[Graph] = []
        self.labels: list[str] = []
        self.skipped: list[str] = []
        self.unlabelled: list[str] = []

    def add(self, parse: Any, text: str, where: str, label: str | None) -> None:
        from rdkit.rdBase import BlockLogs

        with BlockLogs():  # what RDKit writes to stderr names no line
            molecule = parse(text)
        try:
            if molecule is None or not molecule.GetNumAtoms():
                raise DataError("RDKit cannot read it as a molecule")
            graph = self._graph(molecule)
        except DataError as error:
            if self.config.strict:
                raise DataError(f"{where}: {error}. Without strict=True it is skipped.") from None
            self.skipped.append(f"{where}: {error}")
            return
        if not label and self.config.task != "none":
            self.unlabelled.append(where)
        self.graphs.append(graph)
        self.labels.append(label or "")

    def _graph(self, molecule: Any) -> Graph:
        """Atoms with torch_geometric's nine attributes, one-hot, and bonds; the attributes of bonds are not used."""
        try:
            found = self.features.from_rdmol(molecule)
        except ValueError as error:
            raise DataError(
                f"an atom or a bond that torch_geometric has no attribute for ({error})"
            ) from error
        sizes = [len(values) for values in self.features.x_map.values()]
        columns = [
            torch.nn.functional.one_hot(column, size) for column, size in zip(found.x.T, sizes, strict=True)
        ]
        return Graph(torch.cat(columns, 1).float(), found.edge_index)

    def done(self) -> tuple[list[Graph], list[str] | None, list[str]]:
        if self.unlabelled:
            raise DataError(
                f"{len(self.unlabelled)} of {len(self.graphs)} molecules have no label, the first of them "
                f"{self.unlabelled[0]}. {NONE}"
            )
        return self.graphs, None if self.config.task == "none" else self.labels, self.skipped


def _table(path: Path, labels: str | None) -> dict[str, str]:
    """Labels, in the last column of a CSV file, by what is in the first one: names or SMILES."""
    found = [Path(labels)] if labels is not None else sorted(path.parent.glob(f"{path.stem}*.csv"))
    exact = [p for p in found if p.stem == path.stem]
    if len(exact or found) != 1:
        what = f"{len(found)} CSV files are" if found else "no CSV file with labels is"
        raise DataError(
            f"{what} beside {str(path)!r}: name one with labels= (--labels). {NONE if not found else ''}"
        )
    file = (exact or found)[0]
    table: dict[str, str] = {}
    for row in csv.reader(line for line in read_lines(file) if not line.startswith("#")):
        if len(row) < 2:
            continue
        key, label = row[0].strip(), row[-1].strip()
        if table.setdefault(key, label) != label:
            raise DataError(f"{str(file)!r} has two labels for {key!r}, {table[key]!r} and {label!r}.")
    return table


def _records(lines: list[str]) -> Iterator[tuple[int, str, dict[str, str]]]:
    """The line on which each record begins, its molecule, and its tags."""
    start = 0
    for end, line in enumerate([*lines, "$$$$"]):
        if line.strip() != "$$$$":
            continue
        record = lines[start:end]
        first = next((i for i, text in enumerate(record) if text.startswith(">")), len(record))
        if any(text.strip() for text in record):
            tags = {
                text.partition("<")[2].partition(">")[0]: value.strip()
                for text, value in zip(record[first:], record[first + 1 :], strict=False)
                if text.startswith(">")
            }
            yield start + 1, "\n".join(record[:first]) + "\n", tags
        start = end + 1


def _tag(path: Path, named: str | None, tags: list[dict[str, str]]) -> str:
    """The tag that was named, or the only one."""
    names = list(dict.fromkeys(name for each in tags for name in each))
    if named in names or (named is None and len(names) == 1):
        return named or names[0]
    there = f"has the tags {', '.join(names)}" if names else "has no tags"
    if named is not None:
        raise DataError(f"{str(path)!r} {there}, and no {named!r}.{did_you_mean(named, names)}")
    raise DataError(f"{str(path)!r} {there}: name one with labels= (--labels). {'' if names else NONE}")
