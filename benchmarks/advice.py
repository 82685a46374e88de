"""The test of the advice on digits and on a part of CIFAR-10: `graphaug advise RUN --check`, twice.

    python -m benchmarks.advice [--cifar PATH/TO/cifar10.tar.xz] [--seeds 2] [--workers 2]

A plain SimCLR encoder is trained, its layers are compared, and short pretrainings at every site, with and without
stop-gradient, tell whether the advised sites are among the best. Results go to ``benchmarks/results/advice.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tarfile
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphaug.analysis.check import METRICS, check_advice
from graphaug.analysis.report.measure_images import advise_images
from graphaug.analysis.report.read import ImageRun, read_run
from graphaug.vision.config import PretrainConfig, versions
from graphaug.vision.pretrain import pretrain

ROOT = Path(__file__).resolve().parent.parent
DIGITS = PretrainConfig(model="resnet18-cifar:16", size=8, crop=0.5, batch_size=128, lr=0.1, epochs=12)
CIFAR = PretrainConfig(model="resnet18-cifar:16", size=16, crop=0.2, batch_size=128, lr=0.1, epochs=10)
EPOCHS = {"digits": 6, "cifar10": 4}  # of every trial


def part_of_cifar(archive: Path, target: Path, train: int = 150, test: int = 60) -> None:
    """Unpack the first images of every class."""
    taken: Counter[str] = Counter()
    with tarfile.open(archive) as tar:
        for member in tar:
            pieces = Path(member.name).parts
            split = next((p for p in pieces if p in ("train", "test")), None)
            if not member.isfile() or split is None:
                continue
            group = f"{split}/{pieces[-2]}"
            if taken[group] < (train if split == "train" else test):
                taken[group] += 1
                file = tar.extractfile(member)
                assert file is not None
                (target / group).mkdir(parents=True, exist_ok=True)
                (target / group / pieces[-1]).write_bytes(file.read())
            if len(taken) == 20 and min(taken.values()) >= min(train, test) and _full(taken, train, test):
                return


def _full(taken: Counter[str], train: int, test: int) -> bool:
    return all(n >= (train if group.startswith("train") else test) for group, n in taken.items())


def examine(name: str, config: PretrainConfig, seeds: int, workers: int, directory: Path) -> dict[str, Any]:
    """Train, advise, check; by every metric."""
    begin = time.perf_counter()
    path = directory / name
    result = pretrain(config, path).result
    run = read_run(path)
    assert isinstance(run, ImageRun)
    advice, data = advise_images(run)
    print(advice.similarity)
    print(advice)
    found: dict[str, Any] = {
        "config": {k: v for k, v in config.to_dict().items() if k != "data"},
        "trained": {m: result[m]["mean"] if isinstance(result[m], dict) else result[m] for m in METRICS},
        "sites": list(advice.similarity.rows),
        "cka": advice.similarity.values.tolist(),
        "threshold": advice.threshold,
        "advice": [dict(s) | {"score": s.score, "stretch": list(s.stretch)} for s in advice],
        "checks": {},
    }
    checks = check_advice(
        advice,
        config,
        data,
        epochs=EPOCHS[name],
        seeds=range(seeds),
        metrics=METRICS,
        workers=workers,
        on_trial=lambda done, total, line: print(f"{name} [{done}/{total}] {line}", flush=True),
    )
    for check in checks:
        print(f"\n{name}, {check.metric}\n{check}")
        found["checks"][check.metric] = check.to_dict()
    found["minutes"] = round((time.perf_counter() - begin) / 60, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Test the advice on two data sets.")
    parser.add_argument("--cifar", type=Path, default=ROOT.parent / "shared/data/cifar10.tar.xz")
    parser.add_argument("--seeds", type=int, default=2, help="of every setting on digits")
    parser.add_argument("--cifar-seeds", type=int, default=1, help="of every setting on CIFAR-10")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "seeds": {"digits": options.seeds, "cifar10": options.cifar_seeds},
    }
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        result["digits"] = examine("digits", DIGITS, options.seeds, options.workers, directory)
        if options.cifar.exists():
            part_of_cifar(options.cifar, directory / "images")
            config = replace(CIFAR, data=f"folder:{directory / 'images'}")
            result["cifar10"] = examine("cifar10", config, options.cifar_seeds, options.workers, directory)
        else:
            print(f"no {options.cifar.name}: the part on CIFAR-10 is left out")
    target = ROOT / "benchmarks/results/advice.json"
    part = target.with_suffix(".tmp")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(target)


if __name__ == "__main__":
    main()
