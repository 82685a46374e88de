"""The core stays light: importing it brings torch, networkx and numpy, and nothing else heavy."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ["torchvision", "transformers", "sklearn", "typer", "matplotlib", "timm", "pandas", "rich", "yaml"]

SCRIPT = f"""
import sys, time
import torch
start = time.perf_counter()
import graphaug
print("seconds over torch:", round(time.perf_counter() - start, 3))
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print("heavy:", heavy)
public = [name for name in graphaug.__all__ if not hasattr(graphaug, name)]
print("missing:", public)
"""


def test_importing_the_core_imports_none_of_the_extras() -> None:
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    print(found.stdout)
    assert "heavy: []" in found.stdout
    assert "missing: []" in found.stdout
