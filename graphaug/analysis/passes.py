"""One forward and backward of a rewritten model, with its augmentation or without it, and all that it leaves behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.analysis.activations import ActivationReader, check_rows, first_of
from graphaug.analysis.batches import rows_of
from graphaug.augment.site import Augmentation
from graphaug.capture.inputs.signature import map_tensors
from graphaug.capture.target import Target


class RecordedAugmentation(nn.Module):
    """An augmentation that remembers its last draw."""

    def __init__(self, augmentation: Augmentation) -> None:
        super().__init__()
        self.__dict__["augmentation"] = augmentation  # not a child: its mode is the user's
        self.rows: Tensor | None = None
        self.units = self.zeros = 0
        self.active = False

    def forward(self, value: Any) -> Any:
        """Augment, while ``active``, as in training mode; otherwise return ``value`` as it is."""
        if not self.active:
            return value
        own: Augmentation = self.__dict__["augmentation"]
        draw_rows, draw_noise = own.draw_rows, getattr(own, "draw_noise", None)

        def rows(count: int, device: torch.device) -> Tensor:
            drawn = self.rows = draw_rows(count, device)
            return drawn

        def noise(h: Tensor) -> Tensor:
            assert draw_noise is not None
            drawn: Tensor = draw_noise(h)
            whole = drawn.expand_as(h)[self.rows]
            self.units, self.zeros = whole.numel(), int((whole == 0).sum())
            return drawn

        recording: dict[str, Any] = {"draw_rows": rows}
        if draw_noise is not None:  # of other transforms no units are dropped
            recording["draw_noise"] = noise
        own.__dict__.update(recording)
        training, own.training = own.training, True
        try:
            return own(value)
        finally:
            own.training = training
            for name in recording:
                del own.__dict__[name]


@dataclass(frozen=True)
class Pass:
    """What one forward and backward left behind.

    Attributes:
        values: at every site of the reader, (rows, …).
        gradients: of the loss with respect to them, of the same shapes; zeros where none arrived.
        parameters: gradients of all parameters by name; zeros where none arrived.
    """

    values: list[Tensor]
    gradients: list[Tensor]
    parameters: dict[str, Tensor]


def run_pass(
    read: ActivationReader,
    augmentations: Mapping[Target, RecordedAugmentation],
    inputs: Any,
    loss: Callable[[Any], Tensor],
    seed: int,
    *,
    augmented: bool,
) -> Pass:
    """Run a forward and a backward, in eval mode but for the augmentations.

    Args:
        read: the model and the sites to look at; ``augmentations`` are in its graph.
        augmentations: switched on if ``augmented``, else the identity.
        inputs: a batch; it is not changed.
        loss: of the model's output, a scalar.
        seed: of the augmentations' draws.
        augmented: whether they act.
    """
    held: dict[int, Tensor] = {}
    gradients: dict[int, Tensor] = {}

    def receive(i: int, h: Tensor) -> None:
        check_rows(h.shape[0], rows_of(inputs), read.names[i])
        held[i] = h.detach().clone()
        gradients[i] = torch.zeros_like(held[i])
        if h.requires_grad:
            h.register_hook(lambda g: gradients.__setitem__(i, g.detach()))

    for augmentation in augmentations.values():
        augmentation.active = augmented
    model = read.module.original
    with torch.random.fork_rng(), torch.enable_grad(), _unfrozen(model):
        torch.manual_seed(seed)
        output = read(map_tensors(torch.clone, inputs), receive)
        parameters = dict(model.named_parameters())
        found = torch.autograd.grad(loss(output), list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), found, strict=True)
    kept = {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}
    order = range(len(read.names))
    return Pass([held[i] for i in order], [gradients[i] for i in order], kept)


@contextlib.contextmanager
def _unfrozen(model: nn.Module) -> Iterator[None]:
    """Let everything have a gradient, so that frozen parts do not end the way down."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def random_direction(seed: int) -> Callable[[Any], Tensor]:
    """A loss: the mean over the rows of the output's first tensor along a fixed random direction."""

    def loss(output: Any) -> Tensor:
        leaves = torch.utils._pytree.tree_leaves(output)
        # with labels a model gives its own loss first, which has no rows
        z = next((t for t in leaves if isinstance(t, Tensor) and t.is_floating_point() and t.dim()), None)
        if z is None:
            own: Tensor = first_of(output)
            return own
        generator = torch.Generator().manual_seed(seed)
        projected: Tensor = (z * torch.randn(z.shape, generator=generator).to(z)).sum() / len(z)
        return projected

    return loss
