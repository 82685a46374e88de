"""Reading activations: a model that returns the values at its sites, and runs no further than the last of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.arguments import checked_names
from graphaug.augment.choices import check_flag
from graphaug.augment.rows import Rows
from graphaug.augment.structures import on_first
from graphaug.capture.recording.tables import undisturbed
from graphaug.capture.regions import IS_GRAD_ENABLED, close
from graphaug.capture.target import Target
from graphaug.errors import InvalidOption
from graphaug.proof.equivalence import copied
from graphaug.proof.independence.samples import find_samples
from graphaug.proof.marked import mark
from graphaug.select.model_structure import ModelStructure
from graphaug.select.resolve import At, resolve
from graphaug.sites import structure_of
from graphaug.surgery.insert import copy_graph
from graphaug.surgery.module import AugmentedModule
from graphaug.surgery.unwrap import plain_model
from graphaug.torch_private import set_grad_enabled


class RowsFirst(nn.Module):
    """Brings the samples of a value to the front: (n, …), as transforms get them."""

    def __init__(self, place: Rows) -> None:
        super().__init__()
        self.place = place

    def forward(self, value: Any) -> Any:
        """Of a tuple or mapping, the first tensor is rearranged."""
        return on_first(value, self._brought)

    def _brought(self, value: Tensor) -> Tensor:
        self.place.check(value.shape)
        return self.place.samples(value)


@checked_names
def tap(
    model: nn.Module,
    at: At,
    *,
    side: str = "after",
    exclude: At | None = None,
    expect: int | None = None,
    rows: int | None = None,
    rows_first: bool = False,
    example_inputs: Any = None,
) -> AugmentedModule:
    """A model that returns what a model computes at some of its sites.

    It shares everything with the model, which is not changed: modules, parameters, modes. Values have their gradient.
    All that the model runs before the last site is run, with its draws and what it changes; nothing behind it is, in
    training mode neither: no running statistics move there.

    Args:
        model: a plain ``nn.Module``, or a rewritten one, whose augmentation is then left out.
        at: where: a selector or a list of them, as of `graphaug.rewrite`.
        side: ``"after"``: the output of what ``at`` names; ``"before"``: its input.
        exclude: sites to leave out.
        expect: how many sites must match.
        rows: the dimension of the inputs that holds the samples, for ``rows_first``.
        rows_first: bring the samples to the front wherever they lie: (n, T, D) of a sequence-first (T, n, D).
        example_inputs: what the model is called with, for forwards that look at their inputs.

    Returns:
        A module that is called as the model is and returns a dict from every site, spelled as in a plan, to its value:
        what a forward hook on that module would see, bit for bit.

    Raises:
        SiteNotFound, AmbiguousSite, SiteCountMismatch, SelectorError: ``at`` does not say where.
        CaptureError: the forward cannot be captured.
        InvalidOption: ``rows`` contradicts what is proved, or samples cannot be told for ``rows_first``; or one site
            lies inside of another that gives its tensors in a tuple or a mapping.
        UnsupportedModel: the model is wrapped, compiled, or no module.

    Example:
        >>> import torch, graphaug as ga
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> found = ga.tap(net, ["0", "1"])(torch.ones(5, 3))
        >>> {site: tuple(h.shape) for site, h in found.items()}
        {'0': (5, 4), '1': (5, 4)}
    """
    check_flag("rows_first", rows_first)
    model = plain_model(model)
    with undisturbed(model, example_inputs):
        structure = structure_of(model, example_inputs)
        targets = list(dict.fromkeys(resolve(at, structure, side=side, exclude=exclude, expect=expect)))
        return _tapped(structure, targets, rows, rows_first)


def _tapped(
    structure: ModelStructure, targets: Sequence[Target], rows: int | None, rows_first: bool
) -> AugmentedModule:
    marked = mark(structure, targets, "tap")
    for made in (marked.graph, marked.eval_graph):
        _check_whole(made, targets, marked.names)
    names = marked.names
    readers: dict[str, nn.Module] = {}
    row_dims: dict[str, list[int | None]] = {}
    if rows_first:
        cuts = [marked.placed[t] for t in targets]
        found = find_samples(
            structure.model, marked.graph, cuts, marked.examples(), marked.captured.constants, rows
        )
        readers = {names[t]: RowsFirst(p) for t, p in zip(targets, found.places, strict=True)}
        row_dims = found.by_input(marked.examples())
    spelled = {names[t]: str(t) for t in targets}
    graphs = [
        None if graph is None else _only(graph, spelled, frozenset(readers))
        for graph in (marked.graph, marked.eval_graph)
    ]
    assert graphs[0] is not None
    return marked.module(graphs[0], graphs[1], readers, marked.plan, row_dims)


def _check_whole(graph: fx.Graph | None, targets: Sequence[Target], names: Mapping[Target, str]) -> None:
    """Refuse a site of which the graph holds one tensor alone, and a hook would see a structure that it stands in."""
    placed = {n.target: n for n in (() if graph is None else graph.nodes) if n.op == "call_module"}
    for target in targets:
        node = placed.get(names[target])
        if node is not None and node.meta.get("in_structure"):
            inside = next((f", and '{t}' lies inside of it" for t in targets if _lies_in(t, target.path)), "")
            side = "returns" if target.side == "after" else "takes"
            raise InvalidOption(
                f"'{target}' {side} its tensors in a tuple or a mapping, which a tap gives as a whole only where the "
                f"module stays closed{inside}: tap '{target}' by itself, in a second call."
            )


def _lies_in(target: Target, path: str) -> bool:
    return target.path.startswith(f"{path}.") or (target.path == path and target.op is not None)


def _only(graph: fx.Graph, spelled: Mapping[str, str], readers: frozenset[str]) -> fx.Graph:
    """A graph up to the last tap, that returns the values at all of them.

    Also what no tap is computed from stays: it may switch gradients off, draw random numbers that others would draw
    then, or write what a module reads that runs later.

    Args:
        graph: with a call of a module at every tap.
        spelled: name of such a module -> how its site is spelled.
        readers: the names of those that stay.
    """
    graph, _ = copy_graph(graph)
    taps = {str(n.target): n for n in graph.nodes if n.op == "call_module" and n.target in spelled}
    (output,) = (n for n in graph.nodes if n.op == "output")
    graph.erase_node(output)
    last = max(taps.values())
    stays = {n for n in graph.nodes if n <= last or n.op == "placeholder"}
    for node in graph.nodes:  # what the forward has assigned by then is assigned behind all else
        sets = node.op == "get_attr" or node.target in (setattr, torch.Size)
        if sets and stays.issuperset(node.all_input_nodes):
            stays.add(node)
    for node in reversed(graph.nodes):
        if node not in stays or (node > last and node.op == "get_attr" and not node.users):
            graph.erase_node(node)
    found: dict[str, fx.Node] = {}
    for name, node in taps.items():
        value = node.args[0]
        assert isinstance(value, fx.Node)
        with graph.inserting_after(node):
            # what comes behind may change it in place, and a hook sees it before that
            kept = graph.call_function(copied, (value,)) if len(value.users) + len(node.users) > 1 else value
        if name in readers:
            with graph.inserting_after(kept if kept is not value else node):
                found[spelled[name]] = graph.call_module(name, (kept,))
        else:
            found[spelled[name]] = kept
        node.replace_all_uses_with(value)
        graph.erase_node(node)
    _close_grad_regions(graph)
    close(graph)
    graph.output({site: found[site] for site in spelled.values() if site in found})
    graph.lint()
    return graph


def _close_grad_regions(graph: fx.Graph) -> None:
    """Leave the grad mode as it was for the caller, where the last tap lies in a region that sets it."""
    open_at_the_end: list[fx.Node] = []  # the nodes that asked for the mode around each region
    for node in graph.nodes:
        if node.target is not set_grad_enabled:
            continue
        (mode,) = node.args
        if not isinstance(mode, fx.Node):
            open_at_the_end.append(next(n for n in _backwards(node) if n.target is IS_GRAD_ENABLED))
        elif mode in open_at_the_end:
            del open_at_the_end[open_at_the_end.index(mode) :]
    if open_at_the_end:
        graph.call_function(set_grad_enabled, (open_at_the_end[0],))


def _backwards(node: fx.Node) -> Iterator[fx.Node]:
    while node.op != "root":
        yield node
        node = node.prev
