"""YAML from files that anybody may have written: plain values, and no more of them than settings can need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SIZE = 2**20
"""Bytes of a file at most; the settings of a run take some four thousand."""

DEPTH = 20
"""How deep lists and mappings may lie in each other."""

NODES = 10_000
"""Values and keys at most, those that an alias stands for counted each time."""


class TooMuchYaml(yaml.YAMLError):  # type: ignore[misc]  # yaml has no types
    """A file is larger, deeper or wider than settings are."""


class _OneValueAName(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Refuses a name that stands twice in a mapping, of which YAML's own loader takes the last in silence."""

    def compose_mapping_node(self, anchor: str | None) -> Any:
        # Here and not where values are built: what ``<<`` brings in from another mapping may be said anew.
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise yaml.YAMLError(f"line {line}: {key.value!r} stands in line {lines[name]} already")
            lines[name] = line
        return node


def read_yaml(file: Path) -> Any:
    """The value in a file, of YAML's plain types.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is not UTF-8.
        YAMLError: it is no YAML, has a name twice in a mapping, or is beyond `SIZE`, `DEPTH` or `NODES`; a few bytes
            with aliases can stand for more values than there is memory, and a few thousand brackets exhaust the
            interpreter's stack.
    """
    with open(file, "rb") as opened:
        content = opened.read(SIZE + 1)
    if len(content) > SIZE:
        raise TooMuchYaml(f"it has more than {SIZE:,} bytes, which no settings have")
    text = content.decode("utf-8")
    _check(text)
    try:
        return yaml.load(text, Loader=_OneValueAName)  # safe, as what it is made of
    except UnicodeDecodeError as error:  # of !!binary
        raise yaml.YAMLError(str(error)) from error
    except (ValueError, OverflowError) as error:  # a date or a number that is none
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


def no_yaml(file: Path, error: Exception) -> str:
    """What a message says of a file that `read_yaml` could not read; the line with its caret stays as YAML drew it."""
    said = str(error).replace('in "<unicode string>", line', "in line")  # the file is named before
    return f"{str(file)!r} is no YAML: {said}"


def _check(text: str) -> None:
    """Refuse what would be too much before any of it is built.

    Raises:
        YAMLError: see `read_yaml`.
    """
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []  # the anchors of what is open, and the count where each began
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = opened.pop()
            if anchor is not None:
                sizes[anchor] = count - start
        if len(opened) > DEPTH:
            raise TooMuchYaml(
                f"line {event.start_mark.line + 1}: more than {DEPTH} lists and mappings lie in each other; settings "
                "are 'name: value', or 'name: [value, …]'"
            )
        if count > NODES:
            raise TooMuchYaml(f"line {event.start_mark.line + 1}: there are more than {NODES:,} values")
