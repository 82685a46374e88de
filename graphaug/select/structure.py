"""What has to be known of a model to find sites in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Structure(Protocol):
    """What has to be known of a model to find sites in it. `ops`, `calls` and `candidates` may be costly."""

    @property
    def name(self) -> str:
        """Class of the model, for messages."""

    @property
    def modules(self) -> Mapping[str, tuple[str, ...]]:
        """Path -> class names along the MRO, in definition order; ``""`` is the root."""

    @property
    def stages(self) -> Mapping[int, str]:
        """The paper's numbering -> selector string; empty where it is not known."""

    @property
    def unnumbered(self) -> str:
        """Why it is not known, where that can be said; to be asked for after `stages`."""

    @property
    def declared(self) -> Sequence[str]:
        """Paths of the stages that the model itself declares, for ``"stage[i]"``."""

    def ops(self, path: str) -> Sequence[str]:
        """Names of the operations in the forward of that module."""

    def calls(self, paths: Sequence[str]) -> Mapping[str, int]:
        """How often each of these modules is called in one forward; 0: never."""

    def instances(self, cls: type) -> Sequence[str]:
        """Paths of the modules that are instances of `cls`."""

    def paths_of(self, module: object) -> Sequence[str]:
        """Every path at which this very module is registered; ``""`` where it is the model itself."""

    def held(self, path: str, name: str) -> str:
        """What the module at a path has under a name that is no module, in words: "None", "a Parameter"; else empty."""

    def candidates(self) -> Sequence[Any]:
        """What predicates choose from: path, module, op, call, shape and ``target``, a `Target`."""


@dataclass(frozen=True)
class StaticStructure:
    """An `Structure` that is written down, for examples and tests.

    Attributes:
        operations: path -> its operations; none where a path is missing.
        called: path -> how often it is called; once where a path is missing.
        sites: the candidates for predicates.
        attributes: path of an attribute that is no module -> what it is, in words.
    """

    name: str
    modules: Mapping[str, tuple[str, ...]]
    stages: Mapping[int, str] = field(default_factory=dict)
    declared: Sequence[str] = ()
    operations: Mapping[str, Sequence[str]] = field(default_factory=dict)
    called: Mapping[str, int] = field(default_factory=dict)
    sites: Sequence[Any] = ()
    unnumbered: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)

    def ops(self, path: str) -> Sequence[str]:
        """Look up in `operations`."""
        return self.operations.get(path, ())

    def calls(self, paths: Sequence[str]) -> Mapping[str, int]:
        """Look up in `called`."""
        return {path: self.called.get(path, 1) for path in paths}

    def instances(self, cls: type) -> Sequence[str]:
        """Compare the name only: there are no objects here."""
        return [path for path, names in self.modules.items() if cls.__name__ in names]

    def paths_of(self, module: object) -> Sequence[str]:
        """None: there are no objects here."""
        return ()

    def held(self, path: str, name: str) -> str:
        """Look up in `attributes`."""
        return self.attributes.get(f"{path}.{name}".removeprefix("."), "")

    def candidates(self) -> Sequence[Any]:
        """Return `sites`."""
        return self.sites
