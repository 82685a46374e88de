"""What an installed graphaug has to do: `bare_environment.py` runs this where only a wheel or an sdist was installed.

It imports nothing of the tests, and fails where the sources are what is imported.
"""

import subprocess
import sys
from importlib.metadata import requires, version
from importlib.resources import files
from pathlib import Path

import torch
from torch import nn

import graphaug as ga


def check(what: str, holds: bool) -> None:
    """Print what was looked at; end the process if it does not hold."""
    print(f"{'ok ' if holds else 'NOT'} {what}", flush=True)
    if not holds:
        raise SystemExit(1)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command as a shell runs it."""
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def main() -> None:
    """Look at the package, rewrite a model, and run the command."""
    place = Path(ga.__file__).resolve()
    check(f"imported from {place.parent}", place.is_relative_to(Path(sys.prefix).resolve()))
    check(f"version {ga.__version__} is the package's", version("graphaug") == ga.__version__)
    core = [r.partition(">")[0] for r in requires("graphaug") or () if "extra ==" not in r]
    check(f"the core needs {', '.join(core)}", sorted(core) == ["networkx", "numpy", "torch"])
    for name in ("py.typed", "analysis/report/report.html.j2"):
        check(f"{name} is there", files("graphaug").joinpath(name).is_file())

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(6, 4)
    aug = ga.rewrite(model, "1", stop_grad=True, example_inputs=x)
    check("a model is rewritten and proved", len(ga.verify(aug, x).claims) > 2)
    check("eval is the model", torch.equal(aug.eval()(x), model.eval()(x)))
    check("strip gives the model back", ga.strip(aug) is model)

    script = Path(sys.executable).with_name("graphaug")
    for words in ([str(script)], [sys.executable, "-m", "graphaug"]):
        done = command(*words, "--version")
        check(f"{' '.join(words[1:]) or 'graphaug'} --version", done.stdout == f"graphaug {ga.__version__}\n")
    done = command(sys.executable, "-m", "graphaug", "sites", "resnet18-cifar:4")
    check("the table of sites", done.returncode == 0 and "layer4" in done.stdout)


if __name__ == "__main__":
    main()
