"""What is done about modules that have changed since something was proved of them.

A sparse step is dense then, the plan says so, and there is a warning; where there is no other form a call raises.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass

import torch
from torch import nn

from graphaug.capture.user_code import users_level
from graphaug.errors import AssumptionViolated, SparseBackwardLost
from graphaug.sparse.kept.prefix import Kept
from graphaug.surgery.rewritten.parts import Parts, once_compiled


@dataclass(frozen=True)
class Required:
    """That modules are what they were: the graph has no other form for them.

    Attributes:
        kept: the modules as they were.
        verb: what is to be called again.
    """

    kept: Kept
    verb: str

    def check(self, model: nn.Module) -> None:
        """Raise unless they are; compiled code has asked when it was compiled.

        Raises:
            AssumptionViolated: one of them has changed.
        """
        if not torch.compiler.is_compiling() and (changed := self.kept.changed()):
            raise AssumptionViolated(
                f"{changed} since {self.verb}, and of that nothing is proved. Call {self.verb} again."
            )


def is_still_proved(parts: Parts) -> bool:
    """Whether the prefix is what it was; compiled code has asked when it was compiled."""
    return _proved_when_compiled(parts.number) if torch.compiler.is_compiling() else _still_proved(parts)


def note_changes(parts: Parts) -> str:
    """Let the plan say that modules have changed, or that they are as they were; return what has changed.

    What is put back (a hook for one step) is proved again.
    """
    kept: Kept = parts.kept
    changed = kept.changed()
    if changed and kept.plan is None and parts.plan.backward == "sparse":
        kept.plan = parts.plan
        parts.plan = dataclasses.replace(
            parts.plan,
            backward="dense",
            reason=f"{changed} since it was rewritten (before: sparse, {parts.plan.reason})",
        )
    elif not changed and kept.plan is not None:
        parts.plan, kept.plan = kept.plan, None
    return changed


def _still_proved(parts: Parts) -> bool:
    """Whether the prefix is what it was; where it is not, there is a warning the first time."""
    changed = note_changes(parts)
    if changed and parts.kept.plan is not None and not parts.kept.warned:
        parts.kept.warned = True
        warnings.warn(
            f"this model is run with a dense backward for as long as {changed} since it was rewritten: of that "
            "nothing is proved. Rewrite it again, graphaug.rewrite(graphaug.strip(aug), ...), for a sparse one.",
            SparseBackwardLost,
            stacklevel=users_level(),
        )
    return not changed


_proved_when_compiled = once_compiled(_still_proved)
