"""Lines of text from a file: plain, gzip or xz, told by its first bytes."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphaug.errors import DataError, did_you_mean

MAGIC: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
"""What compressed files begin with. Endings are not looked at: they are often wrong."""


@dataclass(frozen=True)
class Corpus:
    """``lines``: in the file's order, without surrounding white space; ``empty``: how many more had nothing in them."""

    lines: tuple[str, ...]
    empty: int

    def __len__(self) -> int:
        return len(self.lines)


def fewer(corpus: Corpus, count: int | None) -> Corpus:
    """So many of the sentences, spread evenly from the first on; all of them if ``count`` is None.

    A text is often in the order of its sources, so that its head is of few topics.

    Raises:
        DataError: the text has fewer.

    """
    total = len(corpus)
    if count is None or count == total:
        return corpus
    if count > total:
        raise DataError(f"the text has {total} sentences, not {count}: give a longer one, or ask for fewer.")
    return Corpus(tuple(corpus.lines[i * total // count] for i in range(count)), corpus.empty)


def fingerprint(lines: Sequence[str]) -> dict[str, Any]:
    """What tells one text from another: how many lines there are, and their SHA-256."""
    content = "\n".join(lines).encode(errors="surrogateescape")
    return {"sentences": len(lines), "text_sha256": hashlib.sha256(content).hexdigest()}


def read_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Read a file with one sentence a line, UTF-8, plain or compressed with gzip or xz.

    Empty lines are dropped and counted.

    Raises:
        DataError: there is no such file, it cannot be read or decompressed, it is in another encoding, or it holds no
            text.

    """
    path = Path(path)
    lines = [line.strip() for line in decode_lines(_decompress(_read(path), path), str(path))]
    kept = tuple(line for line in lines if line)
    if not kept:
        raise DataError(f"{str(path)!r} holds no text: {len(lines)} line(s), all of them empty.")
    return Corpus(kept, len(lines) - len(kept))


def decode_lines(raw: bytes, name: str) -> list[str]:
    r"""The lines of UTF-8 text, without their ends; ``\n`` and ``\r\n`` end one, and nothing else does.

    Args:
        raw: the text, decompressed.
        name: of its file, for the error.

    Raises:
        DataError: a byte that is not UTF-8; its line, its offset in the text, and what to do.

    """
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name!r} is not UTF-8: byte 0x{raw[error.start]:02x} in line {line}, at offset {error.start} of the "
            f"text. {_remedy(raw)}"
        ) from error
    lines = text.split("\n")
    if lines[-1] == "":  # behind the last line's end, not a line
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _remedy(raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "It begins like UTF-16: convert it with 'iconv -f utf-16 -t utf-8'."
    return "Convert it, for example with 'iconv -f latin1 -t utf-8' if it is Latin-1."


def _read(path: Path) -> bytes:
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise DataError(f"text file {str(path)!r} does not exist.{did_you_mean(path.name, siblings)}")
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a directory, not a file of text: name a file in it.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"text file {str(path)!r} cannot be read: {error.strerror or error}.") from error


def _decompress(raw: bytes, path: Path) -> bytes:
    for magic, decompress in MAGIC.items():
        if raw.startswith(magic):
            try:
                return decompress(raw)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise DataError(
                    f"{str(path)!r} cannot be decompressed ({error}): the file is incomplete or damaged."
                ) from error
    return raw
