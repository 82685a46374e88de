"""Graphs from files: molecules against what chemistry says of them, TU's format by hand, and what is refused."""

from dataclasses import replace

import pytest
import torch

from graphaug.errors import DataError
from graphaug.graphs.config import GraphsConfig
from graphaug.graphs.data.graphs import fingerprint, labelled, load
from graphaug.graphs.packages import molecule_features

SMILES = [
    "CCO ethanol",
    "c1ccccc1 benzene",
    "CC(=O)O acid",
    "C methane",
    "CCN amine",
    "O water",
    "CCCC butane",
    "N ammonia",
]
VALUES = [20.2, 0.0, 37.3, 0.0, 26.0, 31.5, 0.0, 35.0]


@pytest.fixture
def molecules(tmp_path):
    (tmp_path / "m.smi").write_text("\n".join(SMILES) + "\n")
    rows = [f"{line.split()[1]},{value}" for line, value in zip(SMILES, VALUES, strict=True)]
    (tmp_path / "m_tpsa.csv").write_text("# a comment\nName,TPSA\n" + "\n".join(rows) + "\n")
    return tmp_path / "m.smi"


def config(path, **options):
    return GraphsConfig(data=str(path), test=0.25, **options)


def test_atoms_and_bonds_of_smiles_and_labels_by_name(molecules):
    data = load(config(molecules))
    assert [len(g.x) for g in data.graphs] == [3, 6, 4, 1, 3, 1, 4, 1]
    assert [g.edge_index.shape[1] for g in data.graphs] == [4, 12, 6, 0, 4, 0, 6, 0]
    assert data.labels.tolist() == VALUES
    assert data.classes == ()
    assert sorted(data.train + data.test) == list(range(8))
    assert len(data.test) == 2
    assert set(data.graphs[0].x.flatten().tolist()) == {0.0, 1.0}
    assert data.graphs[0].x.argmax(1).tolist() == [6, 6, 8]  # the atomic numbers come first
    assert data.graphs[0].x.sum(1).tolist() == [len(molecule_features().x_map)] * 3


def test_labels_by_the_smiles_and_the_seed_decides_the_split(molecules):
    rows = [f"{line.split()[0]},{'odd' if i % 2 else 'even'}" for i, line in enumerate(SMILES)]
    (molecules.parent / "m.csv").write_text("\n".join(rows))  # the exact name comes before m_tpsa.csv
    one, again, other = (load(config(molecules, seed=seed)) for seed in (0, 0, 1))
    assert one.classes == ("even", "odd")
    assert one.labels.tolist() == [0, 1] * 4
    assert sorted(one.labels[list(one.test)].tolist()) == [0, 1]  # stratified
    assert one.test == again.test
    assert one.test != other.test
    assert fingerprint(one) == fingerprint(again)
    (molecules.parent / "m.csv").unlink()  # values, of m_tpsa.csv
    with pytest.raises(DataError, match="2 test and 1 validation graphs"):
        load(config(molecules, validation=0.1))
    held = load(config(molecules, seed=0, validation=0.25))
    assert len(held.validation) == 2
    assert sorted(held.train + held.validation + held.test) == list(range(8))


def test_unreadable_molecules_are_named_by_their_line(molecules):
    molecules.write_text(molecules.read_text().replace("CCN amine", "C1CC broken"))
    data = load(config(molecules))
    assert len(data.graphs) == 7
    assert len(data.labels) == 7
    (skipped,) = data.skipped
    assert "m.smi line 5: 'C1CC'" in skipped
    with pytest.raises(DataError, match=r"line 5: 'C1CC'.*strict"):
        load(config(molecules, strict=True))


def test_molecules_without_labels_are_refused_or_meant(molecules):
    file = molecules.parent / "m_tpsa.csv"
    file.write_text(file.read_text().replace("water,", "wasser,"))
    with pytest.raises(DataError, match=r"1 of 8 molecules have no label, the first of them .*line 6: 'O'"):
        load(config(molecules))
    data = load(config(molecules, task="none"))
    assert (data.labels, data.test, len(data.train)) == (None, (), 8)
    file.write_text("ethanol,1\nethanol,2\n")
    with pytest.raises(DataError, match="two labels for 'ethanol', '1' and '2'"):
        load(config(molecules))
    file.unlink()
    with pytest.raises(DataError, match="no CSV file with labels is beside"):
        load(config(molecules))


def sdf(path, tags):
    from rdkit import Chem

    blocks = []
    for line, value in zip(SMILES, VALUES, strict=True):
        molecule = Chem.MolFromSmiles(line.split()[0])
        molecule.SetProp("_Name", line.split()[1])
        text = "".join(f">  <{tag}>  (1)\n{value}\n\n" for tag in tags)
        blocks.append(f"{Chem.MolToMolBlock(molecule)}{text}$$$$\n")
    path.write_text("".join(blocks))
    return blocks


def test_an_sdf_file_is_the_same_molecules(molecules, tmp_path):
    blocks = sdf(tmp_path / "m.sdf", ["TPSA"])
    one, other = load(config(molecules)), load(config(tmp_path / "m.sdf"))
    assert all(
        torch.equal(a, b)
        for g, h in zip(one.graphs, other.graphs, strict=True)
        for a, b in zip(g, h, strict=True)
    )
    assert torch.equal(one.labels, other.labels)
    (tmp_path / "m.sdf").write_text(blocks[0] + "broken\n$$$$\n" + "".join(blocks[1:]))
    line = blocks[0].count("\n") + 1
    assert f"m.sdf line {line}: 'broken'" in load(config(tmp_path / "m.sdf")).skipped[0]


def test_the_tag_has_to_be_told_where_there_are_several(tmp_path):
    sdf(tmp_path / "m.sdf", ["ACTIVITY", "TPSA"])
    with pytest.raises(DataError, match="has the tags ACTIVITY, TPSA: name one"):
        load(config(tmp_path / "m.sdf"))
    with pytest.raises(DataError, match=r"no 'TPS'\. Did you mean 'TPSA'"):
        load(config(tmp_path / "m.sdf", labels="TPS"))
    assert load(config(tmp_path / "m.sdf", labels="TPSA")).labels.tolist() == VALUES


TU = {
    "A": "1, 2\n2, 1\n2, 3\n3, 2\n4, 5\n5, 4\n",
    "graph_indicator": "1\n1\n1\n2\n2\n3\n3\n4\n",
    "graph_labels": "1\n-1\n1\n-1\n",
    "node_labels": "0\n1\n0\n2\n1\n0\n0\n1\n",
}


def folder(path, **changes):
    path.mkdir(exist_ok=True)
    for name, text in {**TU, **changes}.items():
        (path / f"T_{name}.txt").unlink(missing_ok=True)
        if text is not None:
            (path / f"T_{name}.txt").write_text(text)
    return GraphsConfig(data=str(path), test=0.5)


def test_a_folder_in_tus_format(tmp_path):
    data = load(folder(tmp_path / "T"))
    assert [g.x.tolist() for g in data.graphs] == [
        [[1, 0, 0], [0, 1, 0], [1, 0, 0]], [[0, 0, 1], [0, 1, 0]], [[1, 0, 0], [1, 0, 0]], [[0, 1, 0]],
    ]  # fmt: skip
    assert [g.edge_index.tolist() for g in data.graphs] == [
        [[0, 1, 1, 2], [1, 0, 2, 1]],
        [[0, 1], [1, 0]],
        [[], []],
        [[], []],
    ]
    assert data.classes == ("-1", "1")
    assert data.labels.tolist() == [1, 0, 1, 0]
    degrees = load(folder(tmp_path / "T", node_labels=None))
    assert degrees.graphs[0].x.argmax(1).tolist() == [1, 2, 1]
    attributes = load(folder(tmp_path / "T", node_labels=None, node_attributes="0.5, 1\n" * 8))
    assert attributes.graphs[3].x.tolist() == [[0.5, 1.0]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"A": "1, 4\n"}, "T_A.txt line 1: an edge joins two graphs"),
        ({"A": "1, 9\n"}, "pairs of nodes from 1 to 8"),
        ({"graph_indicator": "1\n2\n1\n2\n2\n3\n3\n4\n"}, "node by node, in order"),
        ({"graph_labels": "1\n-1\n"}, "has 2 labels for 4 graphs"),
        ({"graph_labels": None}, "no file .*T_graph_labels.txt"),
        ({"node_labels": "0\n1\n"}, "8 nodes, and 2 lines"),
        ({"graph_indicator": None}, "T_graph_indicator.txt' cannot be read"),
        ({"A": None}, "it needs one file NAME_A.txt, and has 0"),
        ({"graph_labels": "1\n-1\n1\n2\n"}, "cannot be split into training and test"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused(tmp_path, changes, said):
    with pytest.raises(DataError, match=said):
        load(folder(tmp_path / "T", **changes))


def test_digits_are_pixels_with_ink():
    from sklearn.datasets import load_digits

    data, digits = load(GraphsConfig()), load_digits()
    assert len(data.graphs) == 1797
    assert data.labels.tolist() == digits.target.tolist()
    image, graph = digits.images[7], data.graphs[7]
    pixels = [(i, j) for i in range(8) for j in range(8) if image[i, j]]
    assert graph.x.mul(torch.tensor([16, 7, 7])).round().int().tolist() == [
        [int(image[p]), *p] for p in pixels
    ]
    near = {(a, b) for a, p in enumerate(pixels) for b, q in enumerate(pixels)
            if a != b and abs(p[0] - q[0]) <= 1 and abs(p[1] - q[1]) <= 1}  # fmt: skip
    assert set(map(tuple, graph.edge_index.T.tolist())) == near


def test_whole_numbers_are_classes_unless_they_are_values():
    assert labelled(["2", "10", "2"], "auto")[1] == ("2", "10")
    assert labelled(["2", "10", "2.5"], "auto")[0].tolist() == [2, 10, 2.5]
    assert labelled(["2", "10"], "values")[1] == ()
    with pytest.raises(DataError, match="'nan' is no number"):
        labelled(["1", "nan"], "values")
    with pytest.raises(DataError, match="all graphs have the label 'a'"):
        labelled(["a", "a"], "auto")


def test_unknown_and_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="nor a folder in TU's format"):
        load(GraphsConfig(data="molecules.xyz"))
    with pytest.raises(DataError, match="there is no file"):
        load(GraphsConfig(data=str(tmp_path / "none.smi")))
    (tmp_path / "e.smi").write_text("\n")
    with pytest.raises(DataError, match="holds no graph"):
        load(replace(GraphsConfig(), data=str(tmp_path / "e.smi"), task="none"))
