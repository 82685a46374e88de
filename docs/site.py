"""What the documentation's site has beside the pages of this folder: a hook of mkdocs.

The README is its first page, CONTRIBUTING and CHANGELOG are pages too, and files of the repository that a page links to
(results, benchmarks, tests) are handed out as they are.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r'(\]\(|src=")([^)\s"#]+)(#[^)\s"]*)?(?=[)"])')


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside of the folder, and what any page links to."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_moved(text, ".", page)))
    for target in _linked_files():
        if (ROOT / target).is_dir():
            files.append(
                File.generated(config, f"files/{target}/index.html", content=_listing(ROOT / target))
            )
        for file in sorted((ROOT / target).rglob("*")) or [ROOT / target]:
            if file.is_file():
                name = file.relative_to(ROOT).as_posix()
                files.append(File.generated(config, f"files/{name}", abs_src_path=str(file)))
    return files


def _listing(folder: Path) -> str:
    """A page for a link to a folder: what is in it."""
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    entries = "".join(f'<li><a href="{name}">{name}</a></li>' for name in names)
    return f"<!doctype html><title>{folder.name}</title><h1>{folder.name}</h1><ul>{entries}</ul>"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that lead out of the folder lead to where their files are on the site."""
    name = page.file.src_uri
    return markdown if name in PAGES.values() else _moved(markdown, posixpath.join("docs", name), name)


def _moved(text: str, source: str, page: str) -> str:
    """The text with its links, relative to its source in the repository, relative to its page on the site."""
    here = posixpath.dirname(source) if source != "." else ""

    def link(match: re.Match[str]) -> str:
        before, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target:
            return match[0]
        place = _on_site(posixpath.normpath(posixpath.join(here, target)))
        return f"{before}{posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor}"

    return LINK.sub(link, text)


def _on_site(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}/index.html" if (ROOT / path).is_dir() else f"files/{path}"


def _linked_files() -> set[str]:
    """Files outside of the folder that its pages, or those of `PAGES`, link to."""
    found = set()
    sources = [*(ROOT / name for name in PAGES), *(ROOT / "docs").rglob("*.md")]
    for source in sources:
        for match in LINK.finditer(source.read_text(encoding="utf-8")):
            path = posixpath.normpath(posixpath.join(source.parent.relative_to(ROOT).as_posix(), match[2]))
            if "://" not in match[2] and not path.startswith("docs/") and path not in PAGES:
                found.add(path)
    return found
