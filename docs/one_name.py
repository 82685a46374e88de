"""Of a function and the file of the same name that it stands in, the API page shows the function.

``graphaug.rewrite`` is the function, for whoever imports graphaug; read as files, it is a module first.
"""

from __future__ import annotations

from typing import Any

import griffe


class OneName(griffe.Extension):
    """Lets what a package imports from a file of the same name stand for that name."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Put the functions in the places of their files, once all is loaded."""
        for member in list(pkg.members.values()):
            if isinstance(member, griffe.Module) and member.is_subpackage:
                self.on_package(pkg=member)
            elif isinstance(member, griffe.Alias) and member.name in (pkg.exports or ()):
                member.resolve_target()  # by the path through the file, as long as that leads there
        for name, member in list(pkg.members.items()):
            inside = member.members.get(name) if isinstance(member, griffe.Module) else None
            if inside is not None and name in (pkg.exports or ()):
                pkg.members[name] = griffe.Alias(name, target=inside, parent=pkg)
