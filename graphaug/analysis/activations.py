"""Reading activations: a copy of the graph with an observer at every site, so that no hook is left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.analysis.batches import rows_of
from graphaug.augment.structures import on_first
from graphaug.capture.state import evaluating
from graphaug.capture.target import Target
from graphaug.capture.values import UNKNOWN, value_of
from graphaug.errors import BatchError, SiteNotFound
from graphaug.select.model_structure import ModelStructure
from graphaug.select.resolve import At, resolve
from graphaug.sites import structure_of
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.place import fresh_names, place
from graphaug.surgery.plan import Plan
from graphaug.surgery.rewritten.parts import Parts, constants_module
from graphaug.surgery.unwrap import plain_model

Receive = Callable[[int, Tensor], None]


class Observer(nn.Module):
    """Hands what flows through it to a function, at once: what follows may change it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.receive: Callable[[Tensor], None] | None = None

    def forward(self, value: Any) -> Any:
        """Return ``value`` as it is; of a tuple or mapping, the first tensor is handed on."""
        return value if self.receive is None else on_first(value, self._hand_on)

    def _hand_on(self, h: Tensor) -> Tensor:
        assert self.receive is not None
        self.receive(h)
        return h


@dataclass(frozen=True)
class ActivationReader:
    """A model with observers, sharing everything with the user's.

    Attributes:
        module: computes what the model computes.
        names: of the sites, in the order in which the model computes them.
        targets: the same as `Target`s.
        observers: theirs, in the graph.
    """

    module: AugmentedModule
    names: tuple[str, ...]
    targets: tuple[Target, ...]
    observers: tuple[Observer, ...]

    def __call__(self, inputs: Any, receive: Receive) -> Any:
        """Run in eval mode on one batch; ``receive(i, h)`` gets the value at the i-th site as soon as it is there."""
        for i, observer in enumerate(self.observers):
            observer.receive = lambda h, i=i: receive(i, h)
        try:
            # the user's own root is no module of ours, and has a mode too
            with evaluating(self.module.original), evaluating(self.module):
                return self.module(**inputs) if isinstance(inputs, Mapping) else self.module(*inputs)
        finally:
            for observer in self.observers:
                observer.receive = None


def activation_reader(
    model: nn.Module,
    at: At,
    example_inputs: Any,
    *,
    augmentations: Mapping[Target, nn.Module] | None = None,
    tokens: bool = False,
) -> ActivationReader:
    """Put observers at every site that ``at`` selects; a module that is called several times has one for each call.

    Args:
        model: the model, plain or rewritten; it is not changed.
        at: a selector or a list. Of a pattern or a class, in a list too, sites whose value is no batch of activations
            (masks, position tables) are left out.
        example_inputs: one batch, as `graphaug.rewrite` takes it.
        augmentations: modules to call as well; where there is also an observer, before it.
        tokens: of a pattern or a class, leave out sites without a dimension of tokens too.

    Raises:
        SiteNotFound: nothing, or a named site without activations, is selected.
        CaptureError: the forward cannot be captured down to the sites.
    """
    structure = structure_of(plain_model(model), example_inputs, training=False)
    wanted = dict.fromkeys(resolve(at, structure, every_call=True))
    entries = list(at) if isinstance(at, Sequence) and not isinstance(at, str) else [at]
    spelled_out = [entry for entry in entries if not _is_pattern(entry)]
    named = set(resolve(spelled_out, structure, every_call=True)) if spelled_out else set()
    acting = dict(augmentations or {})
    names = fresh_names(structure.model, [*wanted, *(t for t in acting if t not in wanted)], "observer")
    captured, graph, placed = place(structure, names, training=False)
    rows = rows_of(example_inputs)

    def fits(target: Target) -> bool:
        if target in named:
            return _holds_activations(placed[target], None, False)
        return _holds_activations(placed[target], rows, tokens)

    chosen = [t for t in placed if t in wanted and fits(t)]
    missing = [t for t in wanted if t in named and t not in chosen]
    if missing:
        raise SiteNotFound(f"'{missing[0]}' holds no batch of activations in eval mode: choose another site.")
    if not chosen:
        raise SiteNotFound(f"{at!r} selects no site with {'tokens' if tokens else 'activations'}.")
    kept = {t: name for t, name in names.items() if t in chosen or t in acting}
    if kept != names:
        names = kept
        captured, graph, placed = place(structure, names, training=False)
    order = {node: i for i, node in enumerate(graph.nodes)}
    chosen.sort(key=lambda t: order[placed[t]])
    for node in graph.nodes:
        node.meta.pop(
            "value", None
        )  # every activation of the example, which would stay as long as the observers
    observers = {t: Observer() for t in chosen}
    added: dict[str, nn.Module] = {names[t]: observer for t, observer in observers.items()}
    for target, module in acting.items():
        added[names[target]] = nn.Sequential(module, observers[target]) if target in observers else module
    added |= constants_module(captured.constants)
    plan = Plan(type(structure.model).__name__, (), len(graph.nodes), (), False, "dense", "no augmentation")
    with evaluating(structure.model):  # its modules keep their modes
        signature = structure.signature.forget_examples()
        module = AugmentedModule(Parts(structure.model, graph, None, added, signature, plan))
    return ActivationReader(module, _spelled(structure, chosen), tuple(chosen), tuple(observers.values()))


def _spelled(structure: ModelStructure, targets: Sequence[Target]) -> tuple[str, ...]:
    """How to name the sites: with the call only where the module is called more than once."""
    calls = structure.calls([t.path for t in targets if t.path])
    once = [t if calls.get(t.path, 1) > 1 else Target(t.path, t.op, None, t.side) for t in targets]
    return tuple(map(str, once))


def _is_pattern(at: Any) -> bool:
    """Whether one selector may match more than it names."""
    return not isinstance(at, int) and not (isinstance(at, str) and "*" not in at and ":" not in at)


def _holds_activations(node: fx.Node, rows: int | None, tokens: bool) -> bool:
    """Whether a value is a floating-point batch, of so many rows if that is given, and of tokens if asked for."""
    value = first_of(value_of(node))
    if not isinstance(value, Tensor):
        return value is UNKNOWN
    shaped = value.dim() == 3 if tokens else value.dim() >= 2
    return value.is_floating_point() and shaped and rows in (None, value.shape[0])


def first_of(value: Any) -> Any:
    """The first tensor of what a module returned."""
    while isinstance(value, (tuple, list, Mapping)) and len(value):
        value = value[next(iter(value))] if isinstance(value, Mapping) else value[0]
    return value


def sample_features(h: Tensor, tokens: str, mask: Tensor | None, site: str) -> Tensor:
    """One row of features for each sample, or for each token.

    Args:
        h: (rows, features), (rows, tokens, features) or (rows, channels, height, …); more than three dimensions are
            flattened.
        tokens: of three dimensions, ``"mean"`` over the tokens that are no padding, ``"cls"`` (the first),
            ``"flatten"``, or ``"each"``: every token that is no padding is a row.
        mask: (rows, tokens), True where there is a token; one of another length is not applied.
        site: its name, for the message.

    Raises:
        BatchError: ``tokens="each"`` at a site without tokens.
    """
    if h.dim() != 3:
        if tokens == "each":
            raise BatchError(
                f"'{site}' has no tokens: its value is {'×'.join(map(str, h.shape))}. "
                "Leave it out with sites=, or take tokens='mean'."
            )
        return h.flatten(1)
    if tokens == "cls":
        return h[:, 0]
    if tokens == "flatten":
        return h.flatten(1)
    if mask is not None and mask.shape != h.shape[:2]:
        mask = None
    if tokens == "each":
        return h.flatten(0, 1) if mask is None else h[mask]
    h = in_full(h)  # a sum over many tokens would lose its last ones in half precision
    if mask is None:
        return h.mean(1)
    weight = mask.to(h.dtype).unsqueeze(-1)
    return (h * weight).sum(1) / weight.sum(1).clamp(min=1)


def in_full(h: Tensor) -> Tensor:
    """In float32, unless it is float64."""
    return h if h.dtype == torch.float64 else h.float()


def check_rows(found: int, rows: int, site: str) -> None:
    """Raise ``BatchError`` if a site's value has another number of rows than the batch."""
    if found != rows:
        raise BatchError(
            f"'{site}' has {found} rows where the other sites have {rows}: its batch size differs (tokens or windows "
            "in the batch dimension). Leave it out with sites=."
        )
