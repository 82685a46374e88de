"""Judge claims that a sweep's first seeds suggested on its later seeds, which nobody had looked at.

    python -m benchmarks.later_seeds runs/pca --out benchmarks/results/pca-later-seeds.json

`graphaug paper pca` was run with five seeds on Fashion-MNIST; in its table PCA is ahead of SimCLR at all four
settings on the mean. The claims below were made of that, and committed before the seeds from ``--first`` on were run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.pooled import tell
from graphaug.recipes.claims import LEVEL, Claim, Member, judge

SOURCE = "seeds 0 to 4, looked at beforehand"
PCA = ("site 2, PCA", "site 2, stopped, PCA", "site 4, PCA", "site 4, stopped, PCA")
CLAIMS = (
    Claim(
        "PCA at site 2 with stop-gradient is ahead of SimCLR.",
        SOURCE,
        "every",
        (Member("site 2, stopped, PCA", ("SimCLR",)),),
    ),
    Claim(
        "PCA at some site is ahead of SimCLR.",
        SOURCE,
        "some",
        tuple(Member(setting, ("SimCLR",)) for setting in PCA),
    ),
    Claim(
        "PCA is ahead of dropout, at every site.",
        SOURCE,
        "every",
        tuple(Member(setting, (setting.removesuffix(", PCA"),)) for setting in PCA),
    ),
)


def main() -> None:
    """Read a finished sweep, judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--first", type=int, default=5, help="the first seed that claims are judged on")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    results = json.loads((given.sweep / "results.json").read_text())
    measure = next(iter(results["measures"]))
    scores: dict[str, dict[int, float]] = {}
    for run in results["runs"]:
        if run["seed"] >= given.first and run[measure] is not None:
            scores.setdefault(run["setting"], {})[run["seed"]] = run[measure]
    for name, values in scores.items():
        print(f"{name:24} {statistics.mean(values.values()):6.2f} over {len(values)} seeds")
    verdicts = [judge(claim, scores) for claim in CLAIMS]
    tell(verdicts)
    kept = {
        "measure": results["measures"][measure],
        "judged_on_seeds_from": given.first,
        "level_of_a_side": LEVEL,
        "scores": {name: {str(s): v for s, v in sorted(values.items())} for name, values in scores.items()},
        "claims": [
            {
                "text": v.claim.text,
                "outcome": v.outcome,
                "why": v.why,
                "tests": [[t.setting, t.against, t.difference, t.ahead] for t in v.tests],
            }
            for v in verdicts
        ],
    }
    given.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
