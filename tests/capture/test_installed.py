"""What lies where packages are installed is told from what the user works on, on every system.

Debian's and Ubuntu's Python, which notebooks in the cloud use, has its packages in ``dist-packages``.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.capture.recording.relied.reach import reached_by
from graphaug.capture.user_code import is_installed_file

HELPER = """
class Scales:
    def __init__(self):
        self.by, self.functions = 2.0, [twice]

    def __call__(self, h):
        return h * self.by


def twice(h):
    return h * 2


scales = Scales()
"""


@pytest.mark.parametrize(
    "file",
    [
        "/home/me/project/.venv/lib/python3.12/site-packages/timm/layers/config.py",
        "/opt/conda/lib/python3.11/site-packages/einops/einops.py",
        "/home/me/.local/lib/python3.12/site-packages/timm/models/vit.py",
        "/usr/local/lib/python3.12/dist-packages/timm/models/vit.py",
        "/usr/lib/python3/dist-packages/yaml/__init__.py",
    ],
)
def test_folders_of_packages(file: str) -> None:
    assert is_installed_file(file)


@pytest.mark.parametrize("file", ["/home/me/project/model.py", "/content/site-packages.py", "<stdin>", ""])
def test_files_of_users(file: str) -> None:
    assert not is_installed_file(file)


class Scaled(nn.Module):
    def __init__(self, scales: Any) -> None:
        super().__init__()
        self.first, self.last, self.scales = nn.Linear(4, 4), nn.Linear(4, 4), scales

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.scales(self.first(x)))


@pytest.fixture(params=["site-packages", "dist-packages", "project"])
def scaled(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Scaled]:
    folder = tmp_path / request.param
    folder.mkdir()
    (folder / "graphaug_helper.py").write_text(HELPER)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "graphaug_helper", raising=False)
    importlib.invalidate_caches()
    return request.param, Scaled(importlib.import_module("graphaug_helper").scales)


def test_code_of_packages_stays_and_that_of_users_may_change(scaled: tuple[str, Scaled]) -> None:
    folder, model = scaled
    found = {thing.name for thing in reached_by(model, ["first", "last"]).things}
    assert ("the code of Scales.__call__" in found) == (folder == "project")
    assert ("the code of twice" in found) == (folder == "project")  # it lies in a list of an object


def test_what_objects_of_packages_hold_is_compared(scaled: tuple[str, Scaled]) -> None:
    torch.manual_seed(0)
    _, model = scaled
    x = torch.randn(6, 4)
    aug = ga.rewrite(model, "first", rate=0.0, example_inputs=x)
    assert torch.equal(aug(x), model(x))
    model.scales.by = 3.0
    with pytest.raises(ga.GraphaugError, match="by"):
        aug(x)
