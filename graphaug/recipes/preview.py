"""What a sweep would run, and what it would be judged by, before any of it is."""

from __future__ import annotations

from graphaug.recipes.runs.job import read
from graphaug.recipes.sweep import Sweep
from graphaug.terminal.table import Column, render


def preview(sweep: Sweep, width: int | None = None) -> str:
    """One row a setting, with what it changes and how many of its runs are done, and the claims; nothing is written.

    Args:
        sweep: one that was checked.
        width: columns of the terminal.

    """
    plan = sweep.plan
    done = {s.name: 0 for s in plan.settings}
    for job in sweep.jobs:
        done[job.setting] += read(job) is not None
    configs = {s.name: s.config for s in plan.settings}
    changes = []
    for setting in plan.settings:
        base = configs[plan.baseline.get(setting.name, plan.settings[0].name)]
        found = type(base).differences(base.to_dict(), setting.config.to_dict())
        found += [f"begins with {setting.begins_with}"] if setting.begins_with else []
        found += [f"transfer to {setting.transfer}"] if setting.transfer else []
        changes.append("; ".join(found))
    total = len(sweep.jobs)
    columns = [
        Column("setting", tuple(done), cut="end"),
        Column("runs done", tuple(f"{n} of {sweep.seeds}" for n in done.values())),
        Column("what it changes", tuple(changes), cut="end"),
    ]
    claims = []
    for claim in plan.claims:
        names = ", ".join(member.setting for member in claim.members)
        tested = f"{'one of these has' if claim.kind == 'some' else 'all of these have'} to be ahead: {names}"
        claims += [f"  {claim.text}", f"    {tested} (said in: {claim.source})"]
    return "\n".join(
        [
            *render(columns, width),
            f"{total - sum(done.values())} of {total} runs to make; nothing was run, and nothing was written",
            "",
            f"claims, to be judged by the {plan.measures[plan.measure]}, paired by seed",
            *claims,
        ]
    )
