"""A callback for Lightning's Trainer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from graphaug.arguments import checked_names
from graphaug.callbacks.during import Counted, Course, DuringTraining, augmented, counting, report

# Two packages of one Lightning, which do not know each other's classes: the one that is in use.
if TYPE_CHECKING or "lightning.pytorch" not in sys.modules:
    from pytorch_lightning import Callback
else:
    from lightning.pytorch import Callback


class DeepAugmentCallback(Callback):
    """Schedules the augmentation inside of a LightningModule, logs it, and keeps its rate in the checkpoint.

    Rewrite the backbone that the LightningModule holds, in its ``__init__``; the module itself stays what it is.

    Args:
        rate, subset, freeze, freeze_until: as `graphaug.callbacks.during.DuringTraining` has them.

    Raises:
        InvalidOption: a value outside its domain; at the start of the training, what `DuringTraining.check` raises.

    Example:
        >>> from graphaug.callbacks.lightning import DeepAugmentCallback
        >>> callback = DeepAugmentCallback(rate=lambda progress: 0.5 * (1 - progress))
        >>> callback.during.rate(1.0)
        0.0
    """

    @checked_names
    def __init__(
        self,
        rate: Course = None,
        subset: Course = None,
        freeze: Sequence[str] = (),
        freeze_until: float = 1.0,
    ) -> None:
        super().__init__()
        self.during = DuringTraining(rate, subset, freeze, freeze_until)
        self._counted: Counted | None = None
        self._open = ExitStack()
        self._numbers: list[dict[str, float]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the module, take up a checkpoint's numbers, and begin to count."""
        self.during.check(pl_module)
        if self._numbers:
            for augmentation, numbers in zip(augmented(pl_module), self._numbers, strict=True):
                augmentation.set(**numbers)
        self._counted = self._open.enter_context(counting(pl_module))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        """Set what belongs to this step."""
        steps = trainer.estimated_stepping_batches
        last = steps - 1 if steps != float("inf") else trainer.global_step
        self.during.before_step(pl_module, trainer.global_step / max(1, last))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        """Log, where the Trainer logs."""
        self._numbers = [a.numbers() for a in augmented(pl_module)]
        if trainer.logger is not None and (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            pl_module.log_dict(report(pl_module, self._counted))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Make trainable again what was frozen."""
        self._open.close()
        self.during.after_training()

    def state_dict(self) -> dict[str, Any]:
        """The numbers of every site, rate and subset among them, for the checkpoint."""
        return {"numbers": self._numbers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the numbers of a checkpoint; they are set when the training goes on."""
        self._numbers = list(state_dict["numbers"])
