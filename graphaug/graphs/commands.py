"""The command about graphs."""

from __future__ import annotations

import sys
from typing import Any

import typer

from graphaug.contrastive.runs.options import File, Force, Out, Resume, settled, with_settings
from graphaug.graphs.config import GraphsConfig
from graphaug.terminal.help import Help
from graphaug.terminal.printable import print_names as print


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command(cls=Help)(with_settings(graphs, GraphsConfig))


def graphs(
    *,
    out: Out,
    config: File = None,
    resume: Resume = False,
    force: Force = False,
    settings: dict[str, Any],
) -> None:
    """Train an encoder of graphs with GraphCL or SimGRACE, with Deep Augmentation at --at, and probe it."""
    # Before the imports: a mistyped option should not wait for them.
    wanted = settled(
        GraphsConfig, settings, {}, out=out, preset=None, config=config, resume=resume, force=force
    )

    from graphaug.contrastive.runs.progress import EpochProgress, interruptible
    from graphaug.graphs.data.graphs import load
    from graphaug.graphs.train import train_graphs

    data = load(wanted)
    for skipped in data.skipped[:10]:
        print(f"skipped {skipped}", file=sys.stderr)
    if data.skipped:
        print(f"{len(data.skipped)} unreadable molecule(s) skipped.", file=sys.stderr)
    bar = EpochProgress(wanted.epochs, "graphs")
    with interruptible(out, "graphs"), bar:
        result = train_graphs(
            wanted, out, force=force, resume=resume, data=data, on_epoch=bar, on_step=bar.step
        ).result
    if "linear" in result:
        print(f"linear probe   {result['linear']:.1%}  ({result['test_graphs']} test graphs)")
    elif "r2" in result:
        print(
            f"ridge probe    R² {result['r2']:.3f}  mean error {result['mae']:.3g}  "
            f"({result['test_graphs']} test graphs)"
        )
    else:
        print("the graphs were trained on without labels: nothing was probed")
    print(f"written to {out}")
