"""The report: one HTML file that needs nothing beside it, and its figures as files of their own."""

from __future__ import annotations

import base64
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import graphaug
from graphaug.analysis.report import figures
from graphaug.analysis.report.findings import IMAGES, RunAnalysis
from graphaug.analysis.report.measure_images import analyze_images
from graphaug.analysis.report.read import ImageRun, Run, TextRun, read_run
from graphaug.contrastive.runs.files import make_folder, write_text
from graphaug.errors import RunDirectoryError
from graphaug.terminal.printable import printable_lines
from graphaug.vision.data.images import ImageData

REPORT = "report.html"


def analyze(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    samples: int = 512,
    sts: str | os.PathLike[str] | None = None,
    on_run: Callable[[str], None] | None = None,
) -> Path:
    """Analyse runs and write ``report.html`` with ``figures/*.svg`` and ``figures/*.png``.

    All runs are read before any is analysed, and nothing is written before all are.

    Args:
        runs: run directories of ``graphaug pretrain``, or of ``graphaug simcse``.
        out: directory for the report.
        force: replace another report in ``out``.
        samples: test images, or sentences for CKA, to look at, at most.
        sts: of runs on text: SentEval's directory or archive; by default each run's own.
        on_run: called with a run's name when its analysis begins.

    Returns:
        The path of the HTML file.

    Raises:
        RunDirectoryError: a run is none, has no weights, or ``out`` holds a report or cannot be written; or there are
            runs on images and on text.
        DataError: the data of a run are gone.
    """
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise RunDirectoryError(f"{str(target)!r} is a file, not a directory for a report.")
    if (target / REPORT).exists() and not force:
        raise RunDirectoryError(
            f"{str(target)!r} holds another report. Choose another directory, or pass --force (force=True)."
        )
    found = _named([read_run(path) for path in runs])
    if not found:
        raise RunDirectoryError("there is no run to analyse: name one or more run directories.")
    if len({type(run) for run in found.values()}) > 1:
        raise RunDirectoryError(
            "runs on images are told in epochs and runs on text in steps: analyse the ones and the others apart."
        )
    analyses = {}
    for name, run in found.items():
        if on_run is not None:
            on_run(name)
        analyses[name] = analyze_run(run, sts=sts, samples=samples)
    make_folder(target / "figures")
    page = render(analyses, target / "figures")
    write_text(target / REPORT, page)
    return target / REPORT


def analyze_run(
    run: Run, *, data: ImageData | None = None, sts: str | os.PathLike[str] | None = None, samples: int = 512
) -> RunAnalysis:
    """Analyse a run on its own test images, or one on text on STS-B's development set.

    Args:
        run: as `read_run` gives it.
        data: of a run on images: the data, already loaded; by default what the run was trained on.
        sts: of a run on text: SentEval's directory or archive; by default the run's.
        samples: how many test images, or sentences for CKA, to look at, at most; images as many of every class.

    Raises:
        DataError: the data are gone, or too few.
        Whatever `cka` raises.
    """
    if isinstance(run, TextRun):
        from graphaug.analysis.report.measure_text import analyze_text  # needs what graphaug[text] brings

        return analyze_text(run, sts=sts, samples=samples)
    assert isinstance(run, ImageRun)
    return analyze_images(run, data=data, samples=samples)


def render(analyses: dict[str, RunAnalysis], directory: Path) -> str:
    """Draw the figures into ``directory`` and return the page, with the figures inside."""
    import yaml
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def embedded(stem: str, figure: Any) -> str:
        written = figures.save(figure, directory / stem)
        return base64.b64encode(written["svg"].read_bytes()).decode()

    measurements = {name: s.measurements for name, s in analyses.items()}
    words = next(iter(analyses.values())).words
    losses = {
        name: [
            (m.get("step", i) if words.time == "step" else i, m["loss"])
            for i, m in enumerate(s.run.metrics, 1)
        ]
        for name, s in analyses.items()
    }
    scored = min(s.samples for s in analyses.values()) if words is IMAGES else None
    shared = {
        "curves": embedded("curves", figures.curves(losses, measurements, words, scored)),
        "plane": embedded("plane", figures.plane(measurements, words)),
        "spectrum": embedded(
            "spectrum", figures.spectrum({name: s.spectrum for name, s in analyses.items()})
        ),
    }
    own = [
        {
            "cka": embedded(f"cka-{stem}", figures.heat_map(s.advice.similarity, s.advice.stretches, s.cuts)),
            "sites": embedded(f"sites-{stem}", figures.sites(s.measurements, s.cuts, words)),
        }
        for stem, s in zip(_stems(analyses), analyses.values(), strict=True)
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown)

    def picture(data: str, caption: str, panels: bool = False) -> Markup:
        figure = (
            Markup('<figure class="panels">') if panels else Markup("<figure>")
        )  # panels scroll on a phone
        return figure + Markup(
            '<img src="data:image/svg+xml;base64,{0}" alt="{1}"><figcaption>{1}</figcaption></figure>'
        ).format(data, printable_lines(caption))

    template = environment.from_string(
        files("graphaug.analysis.report").joinpath("report.html.j2").read_text("utf-8")
    )
    return template.render(
        analyses=list(analyses.values()),
        names=list(analyses),
        words=words,
        shared=shared,
        own=own,
        configurations=[
            yaml.safe_dump(s.run.resolved, sort_keys=False, allow_unicode=True) for s in analyses.values()
        ],
        version=graphaug.__version__,
        picture=picture,
        marks=_marks,
        percent=lambda value: "–" if value is None else f"{100 * value:.1f} %",
        number=lambda value, digits: "–" if value is None else f"{value:.{digits}f}",
    )


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by name, each directory once; of directories of one name, with as much of their paths as differs."""
    found = {run.path.resolve(): run for run in runs}
    named = {}
    for path, run in found.items():
        ends = (path.parts[-n:] for n in range(1, len(path.parts) + 1))
        end = next(e for e in ends if sum(other.parts[-len(e) :] == e for other in found) == 1)
        named["/".join(end)] = run
    return named


def _stems(names: Iterable[str]) -> list[str]:
    """What a run's own figures are called by: no two are one, on a disk that ignores case either."""
    seen: Counter[str] = Counter()
    stems = []
    for name in names:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
        while seen[stem.lower()]:
            seen[stem.lower()] += 1
            stem = f"{stem}-{seen[stem.lower()]}"
        seen[stem.lower()] += 1
        stems.append(stem)
    return stems


def _shown(value: Any) -> Any:
    """A value as the page has it: names of runs and sites without control characters, markup as it is."""
    return printable_lines(value) if type(value) is str else value


def _marks(analysis: RunAnalysis) -> str:
    """What the heat map says about the cut."""
    if not analysis.augmented:
        return "This run was trained without Deep Augmentation."
    if not analysis.cuts:
        return f"What was augmented, {', '.join(analysis.augmented)}, is not among the compared sites."
    return f"Dashed lines and ✂: what was augmented, {', '.join(analysis.cuts)}."
