"""A callback for the Trainer of Hugging Face transformers, and for what is built on it (sentence-transformers)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from graphaug.arguments import checked_names
from graphaug.callbacks.during import Counted, Course, DuringTraining, counting, report


class DeepAugmentCallback(TrainerCallback):
    """Schedules the augmentation of the model that a Trainer trains, and logs what was augmented.

    The progress is ``global_step / max_steps``: a training that is resumed goes on where it was. The values are added
    to the Trainer's logs as ``deep_augment/…``. Checkpoints get the configuration that ``from_pretrained`` needs.

    Args:
        rate, subset, freeze, freeze_until: as `graphaug.callbacks.during.DuringTraining` has them.

    Raises:
        InvalidOption: a value outside its domain; at the start of the training, what `DuringTraining.check` raises.

    Example:
        >>> from graphaug.callbacks.trainer import DeepAugmentCallback
        >>> callback = DeepAugmentCallback(rate=(0.5, 0.1), freeze=["encoder.layer.0", "encoder.layer.1"])
        >>> callback.during.freeze
        ('encoder.layer.0', 'encoder.layer.1')
    """

    @checked_names
    def __init__(
        self,
        rate: Course = None,
        subset: Course = None,
        freeze: Sequence[str] = (),
        freeze_until: float = 1.0,
    ) -> None:
        self.during = DuringTraining(rate, subset, freeze, freeze_until)
        self._counted: Counted | None = None
        self._open = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Check the model, and begin to count."""
        self.during.check(model)
        self._counted = self._open.enter_context(counting(model))

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Set what belongs to this step."""
        self.during.before_step(model, state.global_step / max(1, state.max_steps - 1))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any
    ) -> None:
        """Add to the log of training steps."""
        if logs is not None and "loss" in logs:
            said = report(model, self._counted)
            logs.update(said)
            if state.log_history:
                state.log_history[-1].update(said)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Write the model's configuration beside the weights of a checkpoint, so that ``from_pretrained`` reads it.

        The Trainer itself does so for transformers' own classes only.
        """
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            for part in ("config", "generation_config"):
                found: Any = getattr(model, part, None)
                if hasattr(found, "save_pretrained"):
                    found.save_pretrained(folder)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make trainable again what was frozen."""
        self._open.close()
        self.during.after_training()
