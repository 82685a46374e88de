"""Models of the user's own on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from graphaug.analysis.report.read import read_run
from graphaug.vision.probes.probe import load_run
from graphaug.vision.user_models import warn_of_other_code

FILE = """
import torch
from torch import nn

from parts import block


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = block(3, 4), block(4, 8), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, ids):
        return self.layer(self.table(ids).mean(1))


def broken(width):
    return nn.Linear(width, width)


def number():
    return 3


def leaves():
    raise SystemExit("no weights here")


class Grey(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.first(x).mean((2, 3)))


ready = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
"""


@pytest.fixture
def file(tmp_path: Any) -> Any:
    (tmp_path / "my.py").write_text(FILE)
    (tmp_path / "parts.py").write_text(
        "from torch import nn\n\n\ndef block(i, o):\n    return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.ReLU())\n"
    )
    (tmp_path / "words.py").write_text(
        FILE + "\n\ndef example_inputs():\n    return torch.zeros(2, 5, dtype=torch.long)\n"
    )
    return tmp_path / "my.py"


@pytest.mark.long
def test_sites_and_draw(graphaug: Any, file: Any, tmp_path: Any) -> None:
    code, out, err = graphaug("sites", f"{file}:Net", "--size", "16")
    assert code == 0, err
    assert "second" in out
    assert "2×8×4×4" in out
    code, out, err = graphaug("sites", f"{file.parent / 'words.py'}:Words")
    assert code == 0, err
    assert "2×5×8" in out  # of its own example
    code, _, err = graphaug("draw", f"{file}:ready", "--at", "re:0", "--out", tmp_path / "x.svg")
    assert code == 0, err
    assert (tmp_path / "x.svg").stat().st_size > 1000


def test_pretrain(graphaug: Any, file: Any, tmp_path: Any) -> None:
    options = ["--size", "8", "--epochs", "1", "--batch-size", "512", "--accelerator", "cpu", "--at", "first"]
    code, _, err = graphaug("pretrain", "--model", f"{file}:Net", *options, "--out", tmp_path / "run")
    assert code == 0, err
    assert 0 < json.loads((tmp_path / "run" / "result.json").read_text())["linear"] <= 1
    assert "site      first" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my.py:Ney", "has no 'Ney'. Did you mean 'Net'"),
        ("my.py", "is a file: say which model in it, as {0}:NAME. It defines Net, "),
        ("bad.py", "is a file: say which model in it, as "),
        ("no.py:Net", "there is no file"),
        ("my.py:broken", "broken() of '{0}' fails: TypeError"),
        ("my.py:broken", "A function without arguments in that file, which returns one, will do."),
        ("my.py:number", "'number' of '{0}' is no model, but an int"),
        ("bad.py:Net", "cannot be run: SyntaxError"),
        ("exit.py:Net", "cannot be run: SystemExit: 3."),
        ("my.py:leaves", "leaves() of '{0}' fails: SystemExit: no weights here."),
    ],
)
def test_what_is_no_model_is_one_message(graphaug: Any, file: Any, name: str, message: str) -> None:
    (file.parent / "bad.py").write_text("def\n")
    (file.parent / "exit.py").write_text("raise SystemExit(3)\n")
    code, out, err = graphaug("sites", file.parent / name)
    assert (code, out) == (2, "")
    assert err.startswith("ConfigError: ")
    assert message.format(file) in err
    assert "Traceback" not in err


def test_a_model_of_grey_images_is_told_how_many_channels_it_is_given(
    graphaug: Any, file: Any, tmp_path: Any
) -> None:
    code, _, err = graphaug("pretrain", "--model", f"{file}:Grey", "--out", tmp_path / "run")
    assert code == 2
    assert "of grey images too: let its first layer take three" in err
    assert not (tmp_path / "run").exists()


def test_a_model_is_no_run(graphaug: Any, file: Any, tmp_path: Any) -> None:
    for named in (file, f"{file}:Net"):
        code, _, err = graphaug("analyze", named, "--out", tmp_path / "report")
        assert code == 2
        assert "A model is looked at by 'graphaug sites FILE.py:NAME'." in err


def test_a_model_whose_code_was_changed_since_is_told(graphaug: Any, file: Any, tmp_path: Any) -> None:
    options = ["--size", "8", "--epochs", "2", "--batch-size", "512", "--accelerator", "cpu"]
    run = tmp_path / "run"
    code, _, err = graphaug("pretrain", "--model", f"{file}:Net", *options, "--out", run)
    assert code == 0, err
    written = file.read_text()
    file.write_text("# a comment changes nothing\n" + written.replace("self.head(self", "self.head( self"))
    warn_of_other_code(yaml.safe_load((run / "config.yaml").read_text()), "run")
    file.write_text(written.replace(".mean((2, 3))", ".amax((2, 3))"))
    with pytest.warns(UserWarning, match="my.py' has other code than when"):
        load_run(run)
    with pytest.warns(UserWarning, match="my.py' has other code than when"):
        read_run(run).model()
    (run / "result.json").unlink()  # as if it had been stopped
    code, _, err = graphaug("pretrain", "--out", run, "--resume")
    assert code == 2
    assert "model_sha256" in err
    assert "and the code of the model, that it began with" in err
