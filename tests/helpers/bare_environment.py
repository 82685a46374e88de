"""Install what `make dist` built, each file into an environment of its own with nothing else in it, and try it.

torch and the other dependencies come from the environment that runs this, behind the installed package on the path:
they are large, and what is tried here is the package. Its own files can only come from the wheel or the sdist.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent


def install(package: Path, folder: Path) -> Path:
    """A fresh environment with the package in it; the path of its Python."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", package], check=True)
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    # Paths in a .pth file come last, and .pth files in those are not read: an editable install there has no effect.
    shared = sysconfig.get_path("purelib")
    Path(found.stdout.strip(), "shared.pth").write_text(shared + "\n", encoding="utf-8")
    return python


def main(dist: str) -> None:
    """Try the wheel and the sdist in a folder; raises where one fails."""
    packages = sorted(Path(dist).resolve().glob("graphaug-*"))
    if [p.suffix for p in packages] != [".whl", ".gz"] and [p.suffix for p in packages] != [".gz", ".whl"]:
        raise SystemExit(f"{dist} holds {[p.name for p in packages]}: one wheel and one sdist are expected.")
    os.environ.pop("PYTHONPATH", None)  # the sources would count as installed
    for package in packages:
        print(f"--- {package.name}", flush=True)
        with tempfile.TemporaryDirectory() as place:
            python = install(package, Path(place, "environment"))
            # Not in the project's folder, whose graphaug would be imported instead.
            subprocess.run([python, HERE / "smoke.py"], cwd=place, check=True)
            if package.suffix == ".whl":
                program = HERE.parent / "verbs" / "typed_program.py"
                # torch's own methods carry no types everywhere.
                options = ["--strict", "--untyped-calls-exclude", "torch", "--python-executable", python]
                mypy = [sys.executable, "-m", "mypy", *options, program]
                subprocess.run(mypy, cwd=place, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
