"""What can be targeted: the sites of a model, and what lies before each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor, fx, nn

from graphaug.arguments import checked_names
from graphaug.augment.rows import Members, Rows
from graphaug.capture.capture import Captured
from graphaug.capture.dataflow import before, parameters_of, reads_no_data
from graphaug.capture.recording.tables import undisturbed
from graphaug.capture.recording.values.used import used_entry
from graphaug.capture.target import Target
from graphaug.capture.values import value_of
from graphaug.errors import CaptureError
from graphaug.proof.independence.places import Proof
from graphaug.proof.independence.samples import check_given, proofs_of, sample_dim
from graphaug.proof.independence.told import told_index, told_place
from graphaug.proof.prefix import statistics_modules
from graphaug.proof.separation import FROM_NO_TENSOR, around, data_graph, find_bypass
from graphaug.select.model_structure import ModelStructure
from graphaug.select.nodes import target_of
from graphaug.select.opening import openable
from graphaug.select.shares import Shares
from graphaug.sparse.saving import SMALLEST_SAVING
from graphaug.surgery.unwrap import plain_model
from graphaug.terminal.printable import printable
from graphaug.terminal.table import Column, render


@dataclass(frozen=True)
class Site:
    """A place that Deep Augmentation can act on.

    Attributes:
        target: what a selector resolves to.
        path: its spelling without the call ("layer4.1.relu").
        module: the live module, of an operation the one whose forward holds it.
        kind: class of the module, or "op".
        op: name of the operation, or None for a module.
        call: which call of the module, from 0.
        calls: how often the module is called.
        separates: whether every differentiable way from what feeds it to the output leads through it.
        bypass: what leads around it, in words; empty if it separates.
        params_before: share of the parameters up to and including the site, in [0, 1].
        shape: shape of its value on the example.
        rows: where the samples lie in its value: the dimension, "0, 5 each" for five slices of each sample, "0, by
            'batch'" where that input tells the sample of every entry, and with a question mark where only its size
            tells.
        flops_before: share of the forward FLOPs up to and including the site, in [0, 1], if counted.
        stage: its number in the paper's numbering, if it has one.
        backward: what ``backward="auto"`` would choose there with ``stop_grad=True`` and ``subset=0.5``, as far as
            types and separation tell ("sparse", "dense: BatchNorm2d 'bn1' couples the rows"); rewriting knows more.

    Examples:
        >>> import torch, graphaug as ga
        >>> site = ga.sites(torch.nn.Sequential(torch.nn.Linear(4, 8)), example_inputs=torch.zeros(2, 4))[1]
        >>> site.path, site.shape
        ('0', (2, 8))
    """

    target: Target
    path: str
    module: nn.Module
    kind: str
    op: str | None
    call: int
    calls: int
    separates: bool
    bypass: str
    params_before: float
    shape: tuple[int, ...] | None = None
    flops_before: float | None = None
    stage: int | None = None
    backward: str = ""
    rows: str = ""

    def __str__(self) -> str:
        return self.path if self.calls <= 1 else f"{self.path}@{self.call}"


class Sites(Sequence[Site]):
    """The sites of a model: a sequence of `Site`, printed as a table.

    Examples:
        >>> import torch, graphaug as ga
        >>> found = ga.sites(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()))
        >>> len(found), found[1].path
        (3, '0')
    """

    def __init__(self, model: str, entries: Sequence[Site], note: str = "") -> None:
        self.model, self.entries, self.note = model, list(entries), note

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> Sites: ...
    def __getitem__(self, index: int | slice) -> Site | Sites:
        if isinstance(index, slice):
            return Sites(self.model, self.entries[index], self.note)
        return self.entries[index]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.entries)

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__

    def table(self, width: int | None = None) -> str:
        """The table; in at most ``width`` characters a line, if given: what matters least is left out, and said."""

        def column(title: str, text: Callable[[Site], str], rank: int = 0, cut: str | None = None) -> Column:
            return Column(title, tuple(printable(text(site)) for site in self), rank, cut)

        columns = [
            column("site", str, cut="start"),
            column("stage", lambda s: "" if s.stage is None else str(s.stage)),
            column("class", lambda s: s.kind, 5),
            column("separates", lambda s: "yes" if s.separates else f"no: {s.bypass}", cut="end"),
            column("params before", lambda s: f"{s.params_before:6.1%}", 1),
        ]
        if any(s.shape is not None for s in self):
            columns += [
                column(
                    "FLOPs before", lambda s: "" if s.flops_before is None else f"{s.flops_before:6.1%}", 4
                ),
                column("shape", lambda s: "" if s.shape is None else "×".join(map(str, s.shape)), 2),
            ]
            if any(s.rows not in ("", "0") for s in self):  # all along dimension 0: nothing to be said
                columns.append(column("rows", lambda s: s.rows, 2))
            columns.append(column("backward", lambda s: s.backward.removesuffix(" couples the rows"), 3))
        note = f" ({self.note})" if self.note else ""
        return "\n".join([f"{self.model}: {len(self)} sites{note}", *render(columns, width)])


@checked_names
def sites(
    model: nn.Module, example_inputs: Any = None, *, depth: int | None = None, rows: int | str | None = None
) -> Sites:
    """List what can be targeted in a model.

    Args:
        model: the model; it is not changed.
        example_inputs: a tensor, tuple or dict of inputs, for shapes and FLOPs (torch's own counter); without it
            they are those of inputs that the model declares, or that its first layers tell, and the table says which.
        depth: how many levels of modules to open; by default wrappers, and those that hold lists of blocks.
        rows: where the samples lie in the inputs, as for `graphaug.rewrite`.

    Returns:
        A sequence of `Site`; ``print`` shows it as a table.

    Raises:
        CaptureError: the model's own forward cannot be captured.
        InvalidOption: ``rows`` is no dimension or input of the example.
        UnsupportedModel: the object is no plain model.

    Examples:
        >>> import torch, graphaug as ga
        >>> found = ga.sites(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()))
        >>> [site.path for site in found]
        ['input', '0', '1']
    """
    plain = plain_model(model)
    with undisturbed(plain, example_inputs):
        structure = structure_of(plain, example_inputs, count_flops=True)
        check_given(rows, structure.signature.guessed)
        return sites_of(structure, depth=depth, everything=False, rows=rows)


def structure_of(
    model: nn.Module, example_inputs: Any = None, *, count_flops: bool = False, training: bool = True
) -> ModelStructure:
    """A model as the selection language sees it, predicates over its sites included."""
    return ModelStructure(
        model,
        example_inputs,
        count_flops=count_flops,
        training=training,
        candidates=lambda structure: sites_of(structure, depth=None, everything=True),
    )


def sites_of(
    structure: ModelStructure, *, depth: int | None, everything: bool, rows: int | str | None = None
) -> Sites:
    """The table behind `sites`, over a model that may already be captured in part."""
    captured = structure.capture_deep(openable(structure.model, depth, everything))
    stages = _stage_numbers(structure, captured)
    reach = Shares(structure.model, captured)
    flow = data_graph(captured.graph)
    places = {  # a module is what the model goes on with of its result
        target: n if target.side == "before" else used_entry(n)
        for n in captured.graph.nodes
        if (target := target_of(n)) is not None and n in flow and not reads_no_data(n)
    }
    proofs: dict[fx.Node, Proof] = {}
    lying: dict[fx.Node, tuple[Rows | None, bool]] = {}  # where the samples are, and whether that is sure
    if isinstance(rows, str):
        index, count = told_index(captured.graph, structure.signature.examples, rows)
        lying = {n: (told_place(value_of(n), index, count, rows), True) for n in places.values()}
    elif not everything:
        of, given = (structure.model, captured.graph), (structure.signature.examples, captured.constants)
        proofs = proofs_of(*of, list(places.values()), *given, sample_dim(*of, *given, rows))
        lying = {n: (p.place or p.sizes, p.place is not None) for n, p in proofs.items()}
    found = []
    for target, node in places.items():
        bypass = find_bypass(flow, node)
        value, flops = value_of(node), reach.flops(node)
        module = structure.model.get_submodule(target.path)
        calls = captured.calls.get(target.path, 1) if target.path else 1
        found.append(
            Site(
                target=target,
                path=str(Target(target.path, target.op, None, target.side)),
                module=module,
                kind="input" if target.side == "before" else "op" if target.op else type(module).__name__,
                op=target.op,
                call=target.call or 0,
                calls=calls,
                separates=bypass is None,
                bypass="" if bypass is None else around(bypass, captured),
                params_before=reach.parameters(node),
                shape=tuple(value.shape) if isinstance(value, Tensor) else None,
                flops_before=flops,
                stage=stages.get(target),
                backward="dense: samples are told by an input"
                if isinstance(rows, str)
                else _backward(structure, captured, node, bypass is None, flops, proofs.get(node)),
                rows=_rows(*lying[node]) if node in lying else "",
            )
        )
    nothing = FROM_NO_TENSOR if not found and structure.signature.examples else ""
    return Sites(structure.name, found, "; ".join(structure.notes) or nothing)


def _backward(
    structure: ModelStructure,
    captured: Captured,
    node: fx.Node,
    separates: bool,
    share: float | None,
    proof: Proof | None,
) -> str:
    """What "auto" would choose, as far as that can be told without running anything."""
    if not separates:
        return "dense: bypassed"
    ahead, model = before(node), structure.model
    owned = (p for n in ahead for p in parameters_of(n, model.get_submodule, model.get_parameter))
    if not any(p.requires_grad for p in owned):
        return "dense: nothing trained before"
    coupling = next(statistics_modules(captured.graph, node, model), None)
    if coupling is not None:
        return f"dense: {type(coupling[1]).__name__} '{coupling[0]}' couples the rows"
    if share is not None and 0.5 * share < SMALLEST_SAVING:
        return f"dense: it would save {0.5 * share:.0%} only"
    if proof is not None and proof.verdict == "coupled":
        return f"dense: rows meet: {proof.meeting}"
    if proof is not None and proof.verdict == "proved":
        return "sparse"
    return "dense: no example_inputs to try" if structure.signature.guessed else "sparse: if a trial agrees"


def _rows(place: Rows | None, sure: bool) -> str:
    """Where the samples lie, in few words."""
    if place is None:
        return "?"
    if isinstance(place, Members):
        return f"{place.dim}, by '{place.owner.name}'"
    return f"{place.dim}{f', {place.slices} each' if place.slices > 1 else ''}{'' if sure else '?'}"


def _stage_numbers(structure: ModelStructure, captured: Captured) -> dict[Target, int]:
    numbers = {Target("", None, None, "before"): -1}
    try:
        stages = structure.stages
    except CaptureError:  # the table shows what can be opened; a number may need more than that
        return numbers
    for number, text in stages.items():
        name, _, call = text.removesuffix(".input").partition("@")
        path, _, op = name.rpartition(".")
        if not text.endswith(".input"):
            for target in (Target(name, None, int(call or 0)), Target(path, op, int(call or 0))):
                numbers[target] = number
    return numbers
