"""Views from moved weights: the same model, its weights perturbed in every forward, with no second copy of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.arguments import checked_names
from graphaug.augment.transform import Domain
from graphaug.capture.dataflow import before, parameters_of
from graphaug.capture.recording.tables import undisturbed
from graphaug.errors import AssumptionViolated, InvalidOption, listed
from graphaug.proof.marked import mark
from graphaug.select.resolve import At, resolve
from graphaug.sites import structure_of
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.unwrap import plain_model

_ETA = Domain(low=0)


class PerturbedWeights(nn.Module):
    """A model that moves its weights in every forward in training mode; made by `perturb_weights`.

    It owns nothing: parameters, buffers and mode are the model's, and so are the gradients.

    Attributes:
        names: of the parameters that are moved.

    Example:
        >>> import torch, graphaug as ga
        >>> moved = ga.perturb_weights(torch.nn.Linear(4, 2), eta=0.1)
        >>> moved
        PerturbedWeights(eta=0.1, 2 parameters)
        >>> moved.set(eta=0.0)
    """

    def __init__(self, model: nn.Module, names: Sequence[str], eta: float) -> None:
        super().__init__()
        self.__dict__["model"] = model  # no child: nothing is registered twice
        self.names = tuple(names)
        self.eta = torch.tensor([_ETA.check("eta", eta)], dtype=torch.float64)

    def set(self, eta: float) -> None:
        """Change the size of the noise in place; nothing is recompiled.

        Raises:
            InvalidOption: below 0.
        """
        self.eta.fill_(_ETA.check("eta", eta))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, with moved weights if it is in training mode.

        Raises:
            AssumptionViolated: a parameter that is to be moved is no longer there.
        """
        model: nn.Module = self.__dict__["model"]
        if not model.training:
            return model(*args, **kwargs)
        own = dict(model.named_parameters())
        if gone := [name for name in self.names if name not in own]:
            raise AssumptionViolated(
                f"{listed(gone)}, to be moved by graphaug.perturb_weights, {'are' if len(gone) > 1 else 'is'} no "
                "parameter of the model any more: exchanged, parametrized or removed since. Call "
                "graphaug.perturb_weights again, on the model as it is now."
            )
        moved = {name: own[name] + self._noise(own[name]) for name in self.names}
        return torch.func.functional_call(model, moved, args, kwargs)

    def _noise(self, weight: Tensor) -> Tensor:
        """Noise of eta times the standard deviation of the weight; none of a single number, which has no spread."""
        if weight.numel() < 2:
            return torch.zeros_like(weight)
        held = weight.detach()
        return torch.randn_like(held) * held.std() * self.eta.to(device=held.device, dtype=held.dtype)

    def extra_repr(self) -> str:
        """Show what is moved, and how far."""
        return f"eta={float(self.eta):g}, {len(self.names)} parameters"


@checked_names
def perturb_weights(
    model: nn.Module, at: At | None = None, eta: float = 1.0, *, example_inputs: Any = None
) -> PerturbedWeights:
    """The same model with weights that are moved afresh in every forward, for one of two views (SimGRACE).

    ``w + eta * std(w) * N(0, 1)`` for each parameter w up to and including a site (Xia et al. 2022, eq. 5); the
    gradient passes to w as it is. Nothing is copied but what is moved, for the time of a forward and its backward. In
    eval mode, which is the model's own, nothing is moved.

    Args:
        model: the model, plain or rewritten; it is not changed.
        at: the site up to which weights are moved, by the selection language; None: all of them.
        eta: the noise in units of each parameter's standard deviation, at least 0.
        example_inputs: what the model is called with, for forwards that look at their inputs.

    Returns:
        A module that is called as the model is; ``set(eta=…)`` changes the noise.

    Raises:
        SiteNotFound, AmbiguousSite, SelectorError: ``at`` does not say where.
        CaptureError: the forward cannot be captured.
        UnsupportedModel: the model is no module, or with ``at`` it is wrapped or compiled.
        InvalidOption: eta is below 0, or there are no parameters up to the site.

    Example:
        >>> import torch, graphaug as ga
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> moved = ga.perturb_weights(model, at="1", eta=0.1)
        >>> x = torch.ones(3, 4)
        >>> torch.equal(moved(x), model(x)), moved.names
        (False, ('0.weight', '0.bias'))
    """
    _ETA.check("eta", eta)
    given: Any = model
    if not isinstance(given, nn.Module):
        plain_model(given)  # says what it is
    if at is None:
        names = [name for name, p in model.named_parameters() if p.is_floating_point()]
    else:
        names = _names_before(model, at, example_inputs)
    if not names:
        raise InvalidOption(f"there are no parameters up to {at!r}, so no weights to move.")
    return PerturbedWeights(model, names, eta)


def _names_before(model: nn.Module, at: At, example_inputs: Any) -> list[str]:
    """The names of the parameters that a site's value is computed with."""
    plain = plain_model(model)
    with undisturbed(plain, example_inputs):
        structure = structure_of(plain, example_inputs)
        marked = mark(structure, resolve(at, structure), "perturb_weights")
    used: set[int] = set()
    for cut in marked.placed.values():
        for node in before(cut) - {cut}:
            used |= {id(p) for p in parameters_of(node, plain.get_submodule, plain.get_parameter)}
    owner = model if isinstance(model, AugmentedModule) else plain
    return [name for name, p in owner.named_parameters() if id(p) in used and p.is_floating_point()]
