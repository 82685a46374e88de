"""The README and docs/ tell the truth: their code runs and prints what they show, and links lead somewhere.

The ```python blocks of a page run in order in one namespace. A ```text block right behind one holds what it prints;
``…`` in it stands for anything within a line. Lines of ```sh blocks that call the project are checked, not run.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import json
import re
import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.few(4)

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of its first line, and whether it is right behind another."""

    language: str
    text: str
    line: int
    follows: bool


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    inside: list[str] | None = None
    language, start, gap = "", 0, True
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if inside is None and line.startswith("```"):
            language, start, inside = line[3:].strip(), number + 1, []
        elif inside is not None and line == "```":
            found.append(Block(language, "\n".join(inside), start, not gap))
            inside, gap = None, False
        elif inside is not None:
            inside.append(line)
        elif line.strip():
            gap = True
    assert inside is None, f"{page.name} line {start}: the block is not closed"
    return found


def run(page: Path, scope: dict[str, Any]) -> list[tuple[int, str]]:
    """Run the page's Python, and list where it prints something else than the page says."""
    wrong, printed = [], ""
    for block in blocks(page):
        if block.language == "python":
            # blank lines in front: a traceback then has the line numbers of the page
            code = compile("\n" * (block.line - 1) + block.text, page.name, "exec")
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(code, scope)
            printed = output.getvalue()
        elif block.language == "text" and block.follows and not matches(block.text, printed):
            wrong.append((block.line, printed))
    return wrong


def matches(shown: str, printed: str) -> bool:
    pattern = "[^\n]*".join(map(re.escape, lines(shown).split("…")))
    return re.fullmatch(pattern, lines(printed)) is not None


def lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=lambda p: p.name
)
def test_the_code_runs_and_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        if page.parent.name == "tutorials":  # the deprecations inside of other people's tools are theirs
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", module=r"graphaug\.")
        torch.manual_seed(0)
        wrong = run(page, {"__name__": page.stem})
    report = "\n\n".join(f"{page.name} line {line} should show:\n{printed}" for line, printed in wrong)
    assert not wrong, report


def test_shown_output_is_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\nprint(2)\n```\n\n```text\n1\n3\n```\n")
    assert run(page, {}) == [(7, "1\n2\n")]
    assert matches("took … s\n2", "took 0.3 s \n2\n")
    assert not matches("took … s", "took 0.3 s\n2 s")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", prose, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose)
    broken = []
    for target in filter(None, (a or b for a, b in targets)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert not broken, f"{page.name} links to {', '.join(broken)}"


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md")]
    assert not [page for page in pages if f"({page}" not in readme]
    assert len(readme.splitlines()) < 150


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.M)
    assert len(listed) == len(set(listed))
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/**/*.md")}
    assert set(listed) == pages | {"index.md", "changelog.md", "contributing.md"}


def test_the_comparison_is_that_of_the_committed_results() -> None:
    from benchmarks.compare import RESULTS, table

    assert table(json.loads(RESULTS.read_text(encoding="utf-8"))) in (ROOT / "README.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.long
def test_our_own_column_of_the_comparison_is_still_so() -> None:
    """The other tools' were tried where they are installed."""
    from benchmarks.compare import RESULTS, ask

    assert ask("graphaug") == json.loads(RESULTS.read_text(encoding="utf-8"))["answers"]["graphaug"]


def test_the_counts_of_architectures_are_those_of_the_coverage() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    coverage = (ROOT / "docs/coverage.md").read_text(encoding="utf-8")
    for group in ("torchvision", "timm", "transformers"):
        ok, failed = map(int, re.search(rf"^\| {group} \| (\d+) \| (\d+) ", coverage, flags=re.M).groups())  # type: ignore[union-attr]
        assert re.search(rf"^\|.*{group}.*\| {ok} of {ok + failed}\b", readme, flags=re.M), group


def test_the_paper_has_one_title_wherever_it_is_cited() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = (entry for entry in citation["references"] if "2303.14537" in entry["url"])
    title = "Deep Augmentation: Dropout as Augmentation for Self-Supervised Learning"  # of version 5 on arXiv
    assert paper["title"] == title
    cited = {page.name: " ".join(page.read_text(encoding="utf-8").split()) for page in PAGES}
    naming = {name for name, text in cited.items() if "arxiv.org/abs/2303.14537" in text}
    assert {"README.md", "deep-augmentation.md"} <= naming
    assert not [name for name in naming if f"*{title}*" not in cited[name]]


def public_names() -> list[str]:
    """What the API page shows, as dotted names."""
    return re.findall(r"^::: ([\w.]+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), flags=re.M)


def test_the_api_page_has_every_public_name() -> None:
    import graphaug
    import graphaug.analysis

    public = [f"graphaug.{name}" for name in graphaug.__all__]
    public += [f"graphaug.analysis.{name}" for name in graphaug.analysis.__all__]
    assert set(public) <= set(public_names())
    assert len(public_names()) == len(set(public_names()))


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_has_an_example_that_runs(name: str) -> None:
    if name.startswith("graphaug.callbacks."):
        pytest.importorskip(
            {"trainer": "transformers", "lightning": "pytorch_lightning"}.get(name.split(".")[2], "torch")
        )
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    tests = doctest.DocTestFinder(recurse=False).find(found, name)
    examples = [test for test in tests if test.examples]
    assert examples, f"{name} has no example"
    said = io.StringIO()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for test in examples:
            doctest.DocTestRunner().run(test, out=said.write)
    assert not said.getvalue(), said.getvalue()


def commands() -> list[Any]:
    """Every line of a ```sh block that calls the project, its continuations joined."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language in ("sh", "bash", "console"):
                for line in block.text.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    if words:
                        found.append(pytest.param(words, id=f"{page.name}-{'-'.join(words[:3])}"))
    return found


@pytest.mark.parametrize("words", commands())
def test_commands_exist(words: list[str]) -> None:
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words[1:] if "=" not in word]
        assert all(re.search(rf"^{re.escape(target)}:", makefile, flags=re.M) for target in targets)
    elif words[0] == "graphaug":
        import typer.main

        from graphaug.cli import app

        group = typer.main.get_command(app)
        name, *rest = words[1:]
        command = group.commands[name]  # type: ignore[attr-defined]
        command.make_context(name, rest)  # parses, and runs nothing


def test_the_picture_is_of_the_model_in_the_readme() -> None:
    text = (ROOT / "docs/images/resnet18-layer4.svg").read_text(encoding="utf-8")
    for label in ("layer4", "DeepAugment", "avgpool", "prefix", "cut", "suffix"):
        assert f"<!-- {label}" in text, label
