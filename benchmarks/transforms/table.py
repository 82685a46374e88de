"""The table of the methods, from what was written down of them."""

from __future__ import annotations

from typing import Any

from benchmarks.coverage import ROOT

MARKS = ("<!-- benchmarks.transforms -->", "<!-- end -->")
PAGE, RESULTS = ROOT / "docs/methods.md", ROOT / "benchmarks/results/transforms.json"


def size(value: float) -> str:
    return "equal" if value == 0 else f"{value:.0e}"


def table(records: list[dict[str, Any]]) -> str:
    """The records as Markdown."""
    lines = [
        "| method | lines of user code | oracle | largest difference | gradients stopped | compiled | numbers set "
        "| copies, file | verified |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in records:
        plain, stopped = row["passed"], row["stopped"]
        both = [plain] if stopped is None else [plain, stopped]
        code = "<br>".join(f"`{line.replace('    ', ' ')}`" for line in row["code"].splitlines())
        same = all(all(run["copies"].values()) and run["plan_file"] != "differs" for run in both)
        file = {"equal": ", file", "refused": ", no file", "": ""}.get(plain["plan_file"], ", file differs")
        cells = [
            row["method"] + (f" ({row['source']})" if row["source"] else ""),
            code,
            row["formula"],
            size(plain["difference"]),
            "" if stopped is None else f"{stopped['backward']}, {size(stopped['difference'])}",
            size(max(run["compiled"]["difference"] for run in both)),
            ", ".join(plain["compiled"]["numbers_set"]),
            ("equal" if same else "**differ**") + file,
            " and ".join(str(len(run["claims"])) for run in both) + " claims" if plain["claims"] else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def on_page(page: str, text: str) -> str:
    """The page with the table between its markers."""
    before, _, rest = page.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}"
