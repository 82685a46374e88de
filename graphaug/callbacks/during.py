"""What there is to do between the steps of a training, whoever runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.arguments import checked_names
from graphaug.augment.choices import check_probability
from graphaug.augment.site import Augmentation
from graphaug.errors import InvalidOption, NotRewritten, SharedAcrossCut, SiteNotFound, did_you_mean
from graphaug.surgery.module import AugmentedModule

Course = float | tuple[float, float] | Callable[[float], float] | None
"""A number for the whole training, its first and last value with a straight line between them, or a function of the
progress, from 0 to 1. None leaves what is there."""


class DuringTraining:
    """The settings of a training's steps; `before_step` has to be called in front of each.

    Args:
        rate: dropout probability at all sites, over the training.
        subset: share of the rows that is augmented, over the training. Each value of it is a compilation of its own
            for a sparse step.
        freeze: paths of modules, in the order in which they are frozen: as the training goes on, layer by layer. What
            is frozen has no gradient, and its BatchNorms keep their statistics.
        freeze_until: the progress at which the last of them is frozen, in (0, 1].

    Raises:
        InvalidOption: a value outside its domain.

    Examples:
        >>> import torch, graphaug as ga
        >>> from graphaug.callbacks.during import DuringTraining
        >>> aug = ga.rewrite(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), at="0")
        >>> during = DuringTraining(rate=(0.5, 0.1))
        >>> during.before_step(aug, progress=1.0)
        >>> aug.augmentations["0"].rate.item()
        0.1
    """

    @checked_names
    def __init__(
        self,
        rate: Course = None,
        subset: Course = None,
        freeze: Sequence[str] = (),
        freeze_until: float = 1.0,
    ) -> None:
        if isinstance(freeze, str):
            raise InvalidOption(
                f"freeze={freeze!r} is one path: give a list of them, the first to freeze first."
            )
        if not check_probability("freeze_until", freeze_until) > 0:
            raise InvalidOption("freeze_until=0 freezes everything before the first step: give more than 0.")
        for name, course in (("rate", rate), ("subset", subset)):
            for progress in (0.0, 1.0):
                course_value(name, course, progress)
        self.rate, self.subset = rate, subset
        self.freeze, self.freeze_until = tuple(freeze), freeze_until
        self.frozen: list[nn.Parameter] = []

    def check(self, model: nn.Module) -> None:
        """Refuse a model that this does nothing to, before it trains.

        Raises:
            NotRewritten: there is no Deep Augmentation in it, or it lies where no forward comes to.
            InvalidOption: no transform of it has a rate.
            GraphaugError: what `check_freezing` raises.
        """
        if not augmented(model):
            raise NotRewritten(
                f"there is no Deep Augmentation in this {type(model).__name__}: give the trainer what "
                "graphaug.rewrite returned, or a module that holds it."
            )
        _check_reachable(model)
        if self.rate is not None and not any("rate" in a.numbers() for a in augmented(model)):
            raise InvalidOption(
                "rate: no transform of this model has a rate; aug.set changes the numbers that it has."
            )
        self.check_freezing(model)

    def check_freezing(self, model: nn.Module) -> None:
        """Refuse what cannot be frozen in a model, rewritten or not, before it trains.

        Raises:
            SiteNotFound: a module to freeze is not there.
            SharedAcrossCut: a parameter to freeze is used by a module that is not to be frozen.
            InvalidOption: one of the modules has nothing to freeze when it is its turn, or nothing would be left to
                train.
        """
        modules = self._modules(model)
        inside: set[int] = set()
        for path, module in zip(self.freeze, modules, strict=True):
            left = {id(p) for p in module.parameters() if p.requires_grad} - inside
            if not left:
                raise InvalidOption(
                    f"{path!r} is to be frozen, and has nothing to freeze: no parameters, or they are frozen before. "
                    "Leave it out."
                )
            inside |= left
        frozen_modules = {id(m) for module in modules for m in module.modules()}
        for path, module in model.named_modules(remove_duplicate=False):
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in inside and id(module) not in frozen_modules:
                    raise SharedAcrossCut(
                        f"{path}.{name} is also used by what is to be frozen. Untie them, or leave it out."
                    )
        if inside and not any(p.requires_grad and id(p) not in inside for p in model.parameters()):
            raise InvalidOption(
                f"freezing {', '.join(self.freeze)} leaves nothing to train at the end: give fewer paths."
            )

    def before_step(self, model: nn.Module, progress: float) -> None:
        """Set what belongs to this progress, from 0 at the first step to 1 at the last.

        It depends on nothing else, so that a training that was resumed goes on as it would have.
        """
        progress = min(max(progress, 0.0), 1.0)
        for name, course in (("rate", self.rate), ("subset", self.subset)):
            value = course_value(name, course, progress)
            if value is not None:
                for augmentation in augmented(model):
                    if augmentation.numbers().get(name, value) != value:
                        augmentation.set(**{name: value})
        for module in self._modules(model)[: self._frozen_by(progress)]:
            self._freeze(module)

    def after_training(self) -> None:
        """Make trainable again what this has frozen; their values stay."""
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        self.frozen.clear()

    def _frozen_by(self, progress: float) -> int:
        # a rounding error must not put a layer off by a step
        return min(len(self.freeze), math.floor(len(self.freeze) * progress / self.freeze_until + 1e-9))

    def _freeze(self, module: nn.Module) -> None:
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                parameter.grad = None  # an optimizer passes over it, weight decay and moments included
                self.frozen.append(parameter)
        for part in module.modules():
            if hasattr(part, "running_mean") and part.training:
                part.eval()

    def _modules(self, model: nn.Module) -> list[nn.Module]:
        """The modules to freeze: at a path in the rewritten model, or in what the trainer was given."""
        known: dict[str, nn.Module] = {}
        for root in [*(m for m in model.modules() if isinstance(m, AugmentedModule)), model]:
            for path, module in root.named_modules(remove_duplicate=False):
                known.setdefault(path, module)
        for path in self.freeze:
            if not path or path not in known:
                raise SiteNotFound(
                    f"there is no module {path!r} to freeze.{did_you_mean(path, known)} The paths are those of the "
                    "model's modules, such as 'layer1'."
                )
        return [known[path] for path in self.freeze]


def course_value(name: str, course: Course, progress: float) -> float | None:
    """The value of a course at a progress from 0 to 1, or None if there is no course.

    Raises:
        InvalidOption: it is outside [0, 1], or no course.
    """
    if course is None:
        return None
    if callable(course):
        return check_probability(f"{name} at progress {progress:g}", course(progress))
    if isinstance(course, (tuple, list)):
        if len(course) != 2:
            raise InvalidOption(f"{name}={course!r}: give one number, the first and the last, or a function.")
        first, last = (check_probability(name, end) for end in course)
        return first * (1 - progress) + last * progress
    return check_probability(name, course)


def augmented(model: nn.Module) -> list[Augmentation]:
    """The augmentations anywhere inside a model, wrappers included."""
    found: dict[int, Augmentation] = {}
    for module in model.modules():
        if isinstance(module, AugmentedModule):
            found.update({id(a): a for a in module.augmentations.values()})
    return list(found.values())


def _check_reachable(model: nn.Module) -> None:
    """Refuse a rewritten model that was assigned to a name which gives another module.

    ``nn.Module`` takes a child also under the name of a read-only property, as ``auto_model`` of sentence-transformers'
    ``Transformer`` is since version 6; the property goes on giving the plain model, and nothing is augmented.
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, AugmentedModule) and getattr(parent, name, child) is not child:
                kept = [n for n, other in parent.named_children() if other is getattr(parent, name)]
                instead = f" Assign to .{kept[0]}." if kept else ""
                raise NotRewritten(
                    f"{type(parent).__name__}.{name} is a property that gives another module: the rewritten one that "
                    f"was assigned to it is never called.{instead}"
                )


class Counted:
    """How many rows the steps augmented, of how many: read without waiting for the device until it is asked."""

    def __init__(self) -> None:
        self.drawn: Tensor | None = None
        self.rows = 0

    def add(self, mask: Tensor) -> None:
        """Count one draw: a boolean mask of the rows."""
        if torch.compiler.is_compiling():  # compiled code would begin anew for each number of rows
            return
        self.drawn = mask.sum() if self.drawn is None else self.drawn + mask.sum()
        self.rows += mask.numel()

    def share(self) -> float | None:
        """The share since the last question, or None if nothing was counted."""
        if self.drawn is None or not self.rows:
            return None
        share = float(self.drawn) / self.rows
        self.drawn, self.rows = None, 0
        return share


@contextmanager
def counting(model: nn.Module) -> Iterator[Counted]:
    """Count the rows that are augmented inside; compiled steps are not counted."""
    counted = Counted()
    found = augmented(model)
    for augmentation in found:
        augmentation.__dict__["draw_rows"] = _watched(augmentation.draw_rows, counted)
    try:
        yield counted
    finally:
        for augmentation in found:
            augmentation.__dict__.pop("draw_rows", None)


def _watched(draw: Callable[..., Tensor], counted: Counted) -> Callable[..., Tensor]:
    def watched(*args: Any, **options: Any) -> Tensor:
        mask = draw(*args, **options)
        counted.add(mask)
        return mask

    return watched


def report(model: nn.Module, counted: Counted | None) -> dict[str, float]:
    """What to log: the rate and the subset that are set, the share of rows that was augmented since the last time."""
    found = augmented(model)
    said: dict[str, float] = {}
    for name in ("rate", "subset"):
        values = {numbers[name] for a in found if name in (numbers := a.numbers())}
        if len(values) == 1:
            said[f"deep_augment/{name}"] = values.pop()
    if counted is not None and (share := counted.share()) is not None:
        said["deep_augment/share"] = share
    said["deep_augment/frozen_parameters"] = float(
        sum(p.numel() for p in model.parameters() if not p.requires_grad)
    )
    return said
