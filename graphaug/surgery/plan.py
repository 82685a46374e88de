"""What a rewrite does and why: the value behind ``aug.plan`` and ``dry_run=True``."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from graphaug.augment.transform import Transform
from graphaug.augment.transforms.files import from_plain, to_plain
from graphaug.capture.target import Target
from graphaug.errors import InvalidOption, listed, several
from graphaug.surgery.freeze import Frozen
from graphaug.surgery.typed import checked

FORMAT = 1
"""Of the files that plans are written to."""


@dataclass(frozen=True)
class Request:
    """One site and what the augmentation does there; ``transform`` in place of a dropout with ``rate``."""

    target: Target
    rate: float
    subset: float
    stop_grad: bool
    sampling: str
    granularity: str
    pairing: str
    transform: Transform | None = None

    def __str__(self) -> str:
        stop = ", gradient of augmented rows stopped" if self.stop_grad else ""
        side = {"one-sided": ", first view only", "together": ", all views of a row or none"}.get(
            self.pairing, ""
        )
        change = self.transform or f"dropout {self.rate:g} per {self.granularity}"
        change = change if isinstance(change, str) else change.in_words()
        return f"{change} on {self.subset:.0%} of the rows ({self.sampling}){side}{stop}"

    def numbers(self) -> dict[str, float]:
        """The numbers that were asked for, by the names that `AugmentedModule.set` knows them by."""
        own = {"rate": self.rate} if self.transform is None else self.transform.numbers()
        return {**own, "subset": self.subset}

    @property
    def resizes(self) -> bool:
        """Whether what comes behind the site has other sizes than before it."""
        return self.transform is not None and self.transform.needs.new_tokens


@dataclass(frozen=True)
class Asked:
    """What was asked for of a whole model; see `graphaug.rewrite`."""

    freeze: str | None = None
    backward: str = "auto"
    allow_bypass: bool = False
    rows: int | str | None = None
    views: int = 1
    one_site: bool = False


@dataclass(frozen=True)
class PlannedSite:
    """A request as it was placed.

    Attributes:
        request: the site and its options.
        module: name of the augmentation's module in the rewritten model.
        note: what else there is to know of it ("bypassed: 'add' also receives …").
        shape: shape of the value on the example, if there was one.
        flops_before: share of the forward FLOPs up to the site, in [0, 1], if they were counted.
        rows: where the rows, which are samples, lie in the value, in words.
        entry: which entry of what the site returns is augmented, as keys from the outside in: the one that the model
            goes on with. Empty for a tensor, and where several are used (a bypass): then it is the first one.
    """

    request: Request
    module: str
    note: str
    shape: tuple[int, ...] | None = None
    flops_before: float | None = None
    rows: str = "dimension 0"
    entry: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What was done to a model and why; ``print`` it.

    It stays what was asked for: its file, and a rewrite by it, have the numbers of the rewrite. Where some were set
    later, as by `AugmentedModule.set_rate`, the text of ``aug.plan`` has the present ones beside them, and the
    names of what is trained since in a frozen region.

    Attributes:
        model: class name of the model.
        sites: where the augmentation acts, in graph order of the selectors.
        nodes: size of the captured graph.
        opened: paths of the modules that were traced through.
        two_graphs: whether training and eval mode have graphs of their own.
        backward: "dense" or "sparse".
        reason: why this backward.
        freeze: what is frozen, or None.
        assumptions: facts about the inputs that the graph relies on and checks in every call.
        notes: anything a user should know.
        asked: the options of the rewrite that are not a site's.
        purpose: "rewrite", or what else the graph was made for ("tap", "skip_rows").

    Examples:
        >>> import torch, graphaug as ga
        >>> plan = ga.rewrite(torch.nn.Sequential(torch.nn.Linear(4, 8)), at="0", dry_run=True)
        >>> plan.backward, plan.reason
        ('dense', 'stop_grad is off, so every row has a gradient')
    """

    model: str
    sites: tuple[PlannedSite, ...]
    nodes: int
    opened: tuple[str, ...]
    two_graphs: bool
    backward: str
    reason: str
    freeze: Frozen | None = None
    assumptions: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    asked: Asked = field(default_factory=Asked)
    purpose: str = "rewrite"
    _present: ClassVar[Mapping[Target, Mapping[str, float]]] = {}  # of a plan by itself nothing was set
    _trained: ClassVar[Sequence[str]] = ()

    def at_present(self, numbers: Mapping[Target, Mapping[str, float]], trained: Sequence[str] = ()) -> Plan:
        """The same plan, equal to it and the same in a file, whose text has what is otherwise now.

        Args:
            numbers: site -> the present numbers of its augmentation.
            trained: names of parameters in the frozen region that are trained.
        """
        changed = {}
        for request in (site.request for site in self.sites):
            now = numbers.get(request.target, {})
            if differ := {name: v for name, v in now.items() if v != request.numbers().get(name, v)}:
                changed[request.target] = differ
        if not changed and not trained:
            return self
        found = dataclasses.replace(self)
        object.__setattr__(found, "_present", changed)  # it is no field
        object.__setattr__(found, "_trained", trained)
        return found

    def to_json(self) -> str:
        """The plan as a text, for a file; `from_json` reads it, and ``graphaug.rewrite(model, plan)`` repeats it.

        Raises:
            InvalidOption: a transform of it is a module or a function, which a file cannot hold.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.dumps({"graphaug": FORMAT, **_to_plain(fields)}, indent=2)

    @classmethod
    def from_json(cls, text: str, transforms: Iterable[type[Transform]] = ()) -> Plan:
        """The plan that `to_json` gave a text of.

        Args:
            text: of the file.
            transforms: classes of transforms of your own that occur in it; nothing is imported by name.

        Raises:
            InvalidOption: it is no such text, or has a transform that is not known.

        Example:
            >>> plan = Plan("Net", (), 3, (), False, "dense", "asked for")
            >>> Plan.from_json(plan.to_json()) == plan
            True
        """
        try:
            plain = json.loads(text)
            if plain.pop("graphaug") != FORMAT:
                raise InvalidOption("this plan was written by another version of graphaug: make it anew.")
            sites = tuple(_site(site, transforms) for site in plain.pop("sites"))
            freeze, asked = plain.pop("freeze"), checked(Asked(**plain.pop("asked")))
            frozen = None if freeze is None else checked(Frozen(**_tuples(freeze)))
            return checked(cls(sites=sites, freeze=frozen, asked=asked, **_tuples(plain)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, InvalidOption):
                raise
            raise InvalidOption(f"this is no plan as Plan.to_json writes it ({error}).") from error

    def __str__(self) -> str:
        graphs = "two graphs, for training and eval mode" if self.two_graphs else "one graph for both modes"
        rows = [
            (
                "captured",
                f"{self.nodes} nodes, {graphs}; opened: {', '.join(self.opened) or 'the model only'}",
            )
        ]
        for site in self.sites:
            rows.append(("site", f"{site.request.target}  (as {site.module})"))
            now = self._present.get(site.request.target, {})
            since = ", ".join(f"{name} {value:g}" for name, value in now.items())
            rows.append(("", str(site.request) + (f"; now {since}" if since else "")))
            rows.append(("", site.note))
            if site.shape is not None:
                entry = "".join(f"[{key!r}]" for key in site.entry)
                of = f", entry {entry} of what it returns" if entry else ""
                rows.append(("", "value " + "×".join(map(str, site.shape)) + of))
            rows.append(("", f"rows: {site.rows}"))
        if self.asked.one_site:
            rows.append(("acts", f"one of the {len(self.sites)} sites in a forward, drawn afresh"))
        if self.asked.views > 1:
            rows.append(
                ("views", f"{self.asked.views}: the rows are repeated at the site, [z1; …] comes out")
            )
        rows.append(("backward", f"{self.backward}: {self.reason}"))
        if self.freeze is not None:
            where = "up to and including the cut" if self.freeze.side == "before" else "behind the cut"
            rows.append(("freeze", f"{several(len(self.freeze.parameters), 'parameter')} {where}"))
            if self._trained:
                rows.append(("", f"now trained there: {listed(self._trained)}"))
            if self.freeze.modules:
                rows.append(
                    ("", f"running statistics of {several(len(self.freeze.modules), 'module')} are kept")
                )
        rows += [("assumes" if i == 0 else "", text) for i, text in enumerate(_folded(self.assumptions))]
        rows += [("note", text) for text in self.notes]
        return "\n".join([f"Deep Augmentation of {self.model}", *(f"  {k:<9} {text}" for k, text in rows)])


_SIZE = re.compile(r"\.shape\[(\d+)\]")


def _folded(assumptions: Iterable[str]) -> list[str]:
    """The assumptions, where two shapes were compared size by size in one line: ``x.shape[:4] == y.shape[:4]``."""
    alike: dict[str, dict[str, int | None]] = {}
    for text in assumptions:
        dims = [int(dim) for dim in _SIZE.findall(text)]
        same = dims[0] if len(dims) == 2 and dims[0] == dims[1] else None
        alike.setdefault(text if same is None else _SIZE.sub("", text), {})[text] = same
    lines: list[str] = []
    for texts in alike.values():
        whole = len(texts) > 1 and list(texts.values()) == list(range(len(texts)))
        lines += [_SIZE.sub(f".shape[:{len(texts)}]", next(iter(texts)))] if whole else texts
    return lines


def _to_plain(value: Any) -> Any:
    if isinstance(value, Transform):
        return to_plain(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _to_plain(entry) for key, entry in value.items()}
    return [_to_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def _site(plain: dict[str, Any], transforms: Iterable[type[Transform]]) -> PlannedSite:
    request = dict(plain.pop("request"))
    target, made = checked(Target(**request.pop("target"))), request.pop("transform")
    transform = None if made is None else from_plain(made, transforms)
    asked = checked(Request(target, transform=transform, **request))
    return checked(PlannedSite(request=asked, **_tuples(plain)))


def _tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Lists are tuples in a plan."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
