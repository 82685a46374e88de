"""Keep the numbers of a finished sweep of `graphaug paper`, and put its table into docs/results.md.

    python -m benchmarks.paper runs/fig4 fig4-fashion-mnist
    python -m benchmarks.paper

The first copies all runs' numbers to benchmarks/results/paper/fig4-fashion-mnist.json, without the paths of the
machine, and writes the table and the verdicts between the page's marks of that name. The second judges the comparisons
of all kept sweeps again, and writes their tables anew.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from graphaug.errors import DataError
from graphaug.recipes.claims import Tested, outcome_of
from graphaug.recipes.report import shown

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/paper"
PAGE = ROOT / "docs/results.md"


def kept(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a sweep, with data named by the last part of their path.

    Raises:
        DataError: a run did not come to its end.

    """
    failed = [f"{r['setting']}, seed {r['seed']}" for r in results["runs"] if r["failed"]]
    if failed:
        raise DataError(f"not finished: {'; '.join(failed)}. Go on with the sweep first.")
    text = json.dumps(results)
    for path in sorted(_paths(results["settings"]), key=len, reverse=True):
        kind, name = _split(path)
        text = text.replace(json.dumps(path)[1:-1], json.dumps(kind + Path(name).name)[1:-1])
    found: dict[str, Any] = json.loads(text)
    return found


def _paths(value: Any) -> set[str]:
    """The settings that name a file or a folder, whatever they are called."""
    if isinstance(value, dict):
        return set[str]().union(*map(_paths, value.values()))
    if isinstance(value, list):
        return set[str]().union(*map(_paths, value))
    name = _split(value)[1] if isinstance(value, str) else ""
    placed = name.startswith(("/", "./", "../", "~"))
    return {value} if placed or ("/" in name and Path(name).exists()) else set()


def _split(setting: str) -> tuple[str, str]:
    """``idx:folder`` as its kind and its path."""
    kind, path = re.fullmatch(r"((?:[\w-]+:)?)(.*)", setting, re.DOTALL).groups()  # type: ignore[union-attr]
    return kind, path


def table(results: dict[str, Any]) -> str:
    """One row a setting, measures in % as mean ± half the 95 % interval over seeds; a choice; a verdict a claim."""
    runs, measures, baseline = results["runs"], results["measures"], results["baseline"]
    first = next(iter(measures))
    value = {(run["setting"], run["seed"]): run[first] for run in runs}
    bases = set(baseline.values())
    against = f"{measures[first]}, to {bases.pop() if len(bases) == 1 else 'its baseline'} by seed"
    lines = [
        f"| setting | runs | {' | '.join(measures.values())} | {against} |",
        "|---" * (3 + len(measures)) + "|",
    ]
    for name in dict.fromkeys(run["setting"] for run in runs):
        mine = [run for run in runs if run["setting"] == name]
        whole = [run for run in mine if not run["diverged"]]
        cells = [shown([run[m] for run in whole]) for m in measures]
        pairs = [(run[first], value.get((baseline.get(name), run["seed"]))) for run in mine]
        known = all(a is not None and b is not None for a, b in pairs)
        gain = shown([a - b for a, b in pairs], "+") if known else ""
        count = f"{len(whole)} of {len(mine)}" if len(whole) < len(mine) else str(len(mine))
        lines.append(f"| {name} | {count} | {' | '.join(cells)} | {gain} |")
    if results["choices"]:
        lines += ["", f"| choice | {measures[first]} | to | | p |", "|---|---|---|---|---|"]
    for choice in results["choices"]:
        reached, gain = (list(choice[key].values()) for key in ("accuracy", "difference"))
        p = "" if choice["p_ahead"] is None else f"{choice['p_ahead']:.3f}"
        lines.append(
            f"| {choice['choice']} | {shown(reached)} | {choice['baseline']} | {shown(gain, '+')} | {p} |"
        )
    lines += ["", "| claim | said in | verdict | |", "|---|---|---|---|"]
    lines += [
        f"| {c['claim']} | {c['source']} | **{c['verdict']}** | {c['why']} |" for c in results["claims"]
    ]
    return "\n".join(lines)


def again(results: dict[str, Any]) -> dict[str, Any]:
    """The same numbers, with every claim judged by the rules as they are now."""
    for claim in results["claims"]:
        tests = [Tested(**member) for member in claim["members"]]
        claim["verdict"], claim["why"] = outcome_of(claim["of"], tests)
    return results


def keep(name: str, results: dict[str, Any]) -> None:
    """Write the numbers of a sweep, and its table into the page.

    Raises:
        SystemExit: the page has no place for it.

    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = PAGE.read_text(encoding="utf-8")
    if begin not in page or end not in page:
        raise SystemExit(f"{PAGE.name} has no place for it: write {begin} and {end} there.")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    before, rest = page.split(begin)
    PAGE.write_text(
        before + begin + "\n" + table(results) + "\n" + end + rest.split(end)[1], encoding="utf-8"
    )
    print(f"written: {name}.json and its table in {PAGE.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, nargs="?", help="the directory of `graphaug paper`")
    parser.add_argument("name", nargs="?", help="of the file, and of the marks in docs/results.md")
    options = parser.parse_args()
    if options.sweep is None:
        for file in sorted(RESULTS.glob("*.json")):
            keep(file.stem, again(json.loads(file.read_text(encoding="utf-8"))))
        return
    if options.name is None:
        parser.error("give the name of the file, too")
    keep(options.name, kept(json.loads((options.sweep / "results.json").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
