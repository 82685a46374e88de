"""One table of all speed figures, and each machine's best, so that a slower change is seen.

    python -m benchmarks.leaderboard [--name cpu2]

Reads what `benchmarks.step`, `views`, `text_step` and `rewrite` wrote for a machine, prints a table with goals, floors
and spread, and keeps the best of each figure, with its commit and command, in ``benchmarks/results/leaderboard.json``,
which ``benchmarks/LEADERBOARD.md`` shows. A figure is a ratio within one run: of times, the smaller the better, or of
speeds (its name has a ×), the larger the better. Figures of the machine itself would tell of its load.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.coverage import ROOT, write

RESULTS = ROOT / "benchmarks/results"
SLOWER = 0.1
"""A figure that is worse than the best by so much is marked."""


@dataclass(frozen=True)
class Figure:
    """One ratio: what it is, its value, its spread in a run, what it should reach, and the command that made it."""

    name: str
    value: float
    spread: str
    goal: str
    command: str

    @property
    def larger_is_better(self) -> bool:
        """Speeds, not times."""
        return "×" in self.name


def steps(record: dict[str, Any]) -> Iterator[Figure]:
    """Compiled steps against the plain one, and the time to compile a sparse one against the dense one."""
    for model in record["models"]:
        command = f"python -m benchmarks.step --models {model['model']}"
        rows = [row for row in model["rows"] if row["mode"] == "compiled" and row["cut"]]
        dense = {row["cut"]: row for row in rows if row["kind"] == "dense"}
        for row in rows:
            if row["kind"] == "hook":
                continue
            what = f"{model['model']} {row['cut']} s={row['subset']:g}"
            low, high = row["ratio_quartiles"]
            goal = f"floor {row['floor']:.2f}" if "floor" in row else "1.02"
            yield Figure(
                f"step, {row['kind']} / plain: {what}",
                row["ratio"],
                f"{low:.2f} to {high:.2f}",
                goal,
                command,
            )
            if row["kind"] == "sparse" and row["cut"] in dense:
                ratio = row["first_step_seconds"] / dense[row["cut"]]["first_step_seconds"]
                yield Figure(f"compiling, sparse / dense: {what}", ratio, "one run", "1.3", command)


def views(record: dict[str, Any]) -> Iterator[Figure]:
    """Views of the best of our ways, against lightly's."""
    for size in record["sizes"]:
        rows = size["rows"]
        if "lightly" not in rows:
            continue
        theirs = rows["lightly"]["views_per_second"]
        best = max((rows[name] for name in rows if name.startswith("ours")), key=_speed)
        low, high = best["slowest"] / theirs, best["fastest"] / theirs
        yield Figure(
            f"views of {size['size']} pixels × lightly",
            best["views_per_second"] / theirs,
            f"{low:.1f} to {high:.1f}",
            "3",
            "python -m benchmarks.views",
        )


def _speed(row: dict[str, float]) -> float:
    return row["views_per_second"]


def text(record: dict[str, Any]) -> Iterator[Figure]:
    """Sentences a second against sentence-transformers."""
    for row in record["rows"]:
        if row["contender"].startswith("ours"):
            low, _, high = row["seconds_a_step_quartiles"]
            name = f"SimCSE, {row['contender'].removeprefix('ours, ')} × sentence-transformers"
            value, spread = row["times_sentence_transformers"], f"{low:.2f} to {high:.2f} s a step"
            yield Figure(name, value, spread, "1.5", "python -m benchmarks.text_step")


def rewrites(record: dict[str, Any]) -> Iterator[Figure]:
    """Processor time of a rewrite in training steps."""
    for row in record["rows"]:
        yield Figure(
            f"rewrite / step: {row['model']}", row["steps"], "one run", "2", "python -m benchmarks.rewrite"
        )


READERS: dict[str, Callable[[dict[str, Any]], Iterator[Figure]]] = {
    "step": steps,
    "views": views,
    "text-step": text,
    "rewrite": rewrites,
}


def update(best: dict[str, dict[str, Any]], found: list[Figure], commit: str) -> list[str]:
    """Keep what is better than before; returns a row of the table for each figure."""
    rows = []
    for figure in found:
        before = best.get(figure.name)
        sign = -1 if figure.larger_is_better else 1
        if before is None or sign * figure.value < sign * before["value"]:
            best[figure.name] = {**asdict(figure), "commit": commit}
        record = best[figure.name]["value"]
        worse = sign * (figure.value - record) > SLOWER * record
        cells = [figure.name, f"{figure.value:.2f}", figure.spread, figure.goal, f"{record:.2f}"]
        rows.append(f"| {' | '.join(cells)} | {'slower than before' if worse else ''} |")
    return rows


def page(boards: dict[str, dict[str, dict[str, Any]]]) -> str:
    """LEADERBOARD.md."""
    lines = [
        "# The best of each machine",
        "",
        "Written by `make bench`. Ratios within one run, medians: of times, smaller is better; with a ×, of speeds.",
    ]
    for machine, best in sorted(boards.items()):
        lines += ["", f"## {machine}", "", "| figure | best | spread | goal | commit | command |"]
        lines += ["|---|---:|---|---|---|---|"]
        for name, row in sorted(best.items()):
            cells = [
                name,
                f"{row['value']:.2f}",
                row["spread"],
                row["goal"],
                row["commit"],
                f"`{row['command']}`",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def commit_of(path: Path) -> str:
    """The commit that a result was measured at: HEAD, or the one that holds the file, if it has not changed since."""
    changed = subprocess.run(["git", "status", "--porcelain", "--", path], capture_output=True, text=True)
    scope = [] if changed.stdout.strip() else ["--", str(path)]
    log = subprocess.run(["git", "log", "-1", "--format=%h", *scope], capture_output=True, text=True)
    return log.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description="One table of all speed figures.")
    parser.add_argument(
        "--name", default=f"cpu{os.cpu_count()}", help="of the machine, as in the result files"
    )
    options = parser.parse_args()
    board = RESULTS / "leaderboard.json"
    boards = json.loads(board.read_text()) if board.exists() else {}
    table = ["| figure | now | spread | goal | best | |", "|---|---:|---|---|---:|---|"]
    for kind, read in READERS.items():
        path = RESULTS / f"{kind}-{options.name}.json"
        if not path.exists():
            print(f"{path.name} is not there: python -m benchmarks.{kind.replace('-', '_')}")
            continue
        record = json.loads(path.read_text())
        of = record["machine"]
        machine = f"{options.name}: {of['name']}, {of['cores']} cores, torch {of['torch']}"
        table += update(boards.setdefault(machine, {}), list(read(record)), commit_of(path))
    print("\n".join(table))
    write(board, json.dumps(boards, indent=1) + "\n")
    write(ROOT / "benchmarks/LEADERBOARD.md", page(boards))


if __name__ == "__main__":
    main()
