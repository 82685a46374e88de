"""Score a sweep's encoders of sentences by the mean over tokens, and judge claims about that on seeds of their own.

    python -m benchmarks.pooled runs/crops --data sts.tar.xz --out benchmarks/results/crops-by-mean.json

`graphaug paper crops` scores by the first position. On its seeds 0 to 9 the encoders were looked at by the mean over
tokens as well, which made the claims below; they are judged on the seeds from ``--first`` on, which nobody had looked
at when this file was committed. Scores are kept beside the runs, so that a killed command goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from graphaug.recipes.claims import LEVEL, Claim, Member, Verdict, judge
from graphaug.text.encoders.load import load_encoder
from graphaug.text.sts.evaluate import evaluate
from graphaug.text.sts.tasks import load_tasks

POOLER, MAX_LENGTH = "mean", 16
SITES = ("site 1", "site 2")
SOURCE = "seeds 0 to 9, looked at beforehand"
CLAIMS = (
    Claim(
        "By the mean over tokens, Deep Augmentation with stop-gradient is ahead of SimCSE, at every block.",
        SOURCE,
        "every",
        tuple(Member(f"{site}, stopped", ("SimCSE",)) for site in SITES),
    ),
    Claim(
        "With stop-gradient it is ahead of without, at every block.",
        SOURCE,
        "every",
        tuple(Member(f"{site}, stopped", (site,)) for site in SITES),
    ),
    Claim(
        "Crops of 90 % are ahead of it, at every block.",
        SOURCE,
        "every",
        (Member("crops of 90%", tuple(f"{site}, stopped" for site in SITES)),),
    ),
)


def scores(sweep: Path, data: Path) -> dict[str, dict[int, float]]:
    """The STS average ×100 of every finished run, by setting and seed; what was scored before is read."""
    runs = json.loads((sweep / "results.json").read_text())["runs"]
    settings = list(dict.fromkeys(run["setting"] for run in runs))
    tasks, found = load_tasks(data), {name: dict[int, float]() for name in settings}
    for run in sorted(runs, key=lambda run: (run["seed"], settings.index(run["setting"]))):
        (directory,) = (sweep / "runs").glob(f"{settings.index(run['setting']):02}-*-seed{run['seed']}")
        kept = directory / f"sts-{POOLER}.json"
        if not kept.exists():
            encoder = load_encoder(directory, POOLER, max_length=MAX_LENGTH)
            result = evaluate(encoder.encode, tasks)
            kept.write_text(json.dumps({"average": result.average, **result.spearman}))
            print(f"{run['setting']}, seed {run['seed']}: {100 * result.average:.2f}", flush=True)
        found[run["setting"]][run["seed"]] = 100 * json.loads(kept.read_text())["average"]
    return found


def tell(verdicts: Iterable[Verdict]) -> None:
    """Print what came of claims, with every comparison."""
    for verdict in verdicts:
        print(f"{verdict.outcome:15} {verdict.claim.text} {verdict.why}")
        for t in verdict.tests:
            print(
                f"{'':15} {t.setting} to {t.against}: {t.difference:+.2f}, p {t.ahead:.4f} over {t.seeds} seeds"
            )


def main() -> None:
    """Score, judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument(
        "--data", type=Path, required=True, help="SentEval's directory, or a tar archive of it"
    )
    parser.add_argument("--first", type=int, default=10, help="the first seed that claims are judged on")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = scores(given.sweep, given.data)
    later = {name: {s: v for s, v in values.items() if s >= given.first} for name, values in found.items()}
    for name, values in found.items():
        parts = [[v for s, v in values.items() if (s >= given.first) is last] for last in (False, True)]
        print(f"{name:20}", *(f"{statistics.mean(p):6.2f}" if p else "     –" for p in parts))
    verdicts = [judge(claim, later) for claim in CLAIMS]
    tell(verdicts)
    kept = {
        "pooler": POOLER,
        "max_length": MAX_LENGTH,
        "judged_on_seeds_from": given.first,
        "level_of_a_side": LEVEL,
        "scores": {
            name: {str(s): round(v, 3) for s, v in sorted(values.items())} for name, values in found.items()
        },
        "claims": [{"text": v.claim.text, "outcome": v.outcome, "why": v.why} for v in verdicts],
    }
    given.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
