"""The pairs of the seven STS tasks, from SentEval's files in a directory or in an archive of it."""

from __future__ import annotations

import hashlib
import lzma
import math
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from graphaug.errors import DataError, InvalidOption, did_you_mean
from graphaug.text.corpus.sentences import decode_lines

SUBSETS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    # SMT is left out: SentEval may not distribute it.
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
"""The yearly tasks and their subsets, as SentEval takes them. They have a test split only."""

SINGLE = {
    "STS-B": {"test": "STS/STSBenchmark/sts-test.csv", "dev": "STS/STSBenchmark/sts-dev.csv"},
    "SICK-R": {"test": "SICK/SICK_test_annotated.txt", "dev": "SICK/SICK_trial.txt"},
}
"""The tasks in one file a split."""

TASKS = (*SUBSETS, *SINGLE)
"""The seven tasks, in the order of the paper's tables."""

SPLITS = ("test", "dev")

HOW_TO_GET = (
    "DIR is SentEval's data/downstream, with STS/ and SICK/ in it, or a tar archive of it. SimCSE's repository "
    "(princeton-nlp/SimCSE) has a script for it: SentEval/data/downstream/download_dataset.sh."
)

SHOWN = 3
"""How many missing files an error names; the rest are counted."""

Row = tuple[str, str, float]


@dataclass(frozen=True)
class StsTask:
    """A task's pairs: ``first[i]`` and ``second[i]`` have the similarity ``gold[i]``, from 0 to 5.

    ``skipped``: how many further pairs have no gold score.
    """

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    gold: tuple[float, ...]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.gold)


def load_tasks(
    data: str | os.PathLike[str], split: str = "test", names: Sequence[str] | None = None
) -> list[StsTask]:
    """Read the tasks.

    Words are separated by single spaces, as SentEval passes them on. Pairs without a gold score are skipped.

    Args:
        data: SentEval's directory with ``STS/`` and ``SICK/`` in it, or a tar archive of it (plain, gz, bz2 or xz).
        split: ``test``, or ``dev`` for STS-B and the trial set of SICK-R, the two tasks that have one.
        names: which of the split's tasks; by default all of them, in the order of ``TASKS``.

    Raises:
        InvalidOption: no such split, or no such task in it.
        DataError: files that are missing (all of them are named or counted), or that are not what they should be:
            file and line.

    """
    if split not in SPLITS:
        raise InvalidOption(
            f"no split is called {split!r}.{did_you_mean(split, SPLITS)} There are test and dev."
        )
    known = TASKS if split == "test" else tuple(SINGLE)
    for name in names or ():
        if name not in known:
            raise InvalidOption(
                f"no task of the {split} split is called {name!r}.{did_you_mean(name, known)} "
                f"There are {', '.join(known)}."
            )
    wanted = [name for name in known if names is None or name in names]
    files = {name: _files(name, split) for name in wanted}
    content = _read(Path(data).expanduser(), [file for group in files.values() for file in group])
    return [_task(name, files[name], content) for name in wanted]


def fingerprint(tasks: Sequence[StsTask]) -> dict[str, Any]:
    """What tells some tasks from others: how many pairs there are, and the SHA-256 of all that is in them."""
    content = repr([(t.name, t.first, t.second, t.gold, t.skipped) for t in tasks])
    return {
        "sts_pairs": sum(map(len, tasks)),
        "sts_sha256": hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest(),
    }


def _files(name: str, split: str) -> list[str]:
    if name in SINGLE:
        return [SINGLE[name][split]]
    folder = f"STS/{name}-en-test"
    return [f"{folder}/STS.{kind}.{subset}.txt" for subset in SUBSETS[name] for kind in ("input", "gs")]


def _task(name: str, files: Sequence[str], content: dict[str, bytes]) -> StsTask:
    lines = {file: decode_lines(content[file], file) for file in files}
    rows: list[Row | None] = []
    if name in SUBSETS:
        for pairs, gold in zip(files[::2], files[1::2], strict=True):
            rows += _subset(pairs, lines[pairs], gold, lines[gold])
    elif name == "STS-B":  # genre, file, year, number, score, and the two sentences; quotes mean nothing
        rows += [_row(files[0], i, line, 5, 6, 4) for i, line in enumerate(lines[files[0]], 1)]
    else:  # a header; then number, the two sentences, relatedness and entailment
        rows += [_row(files[0], i, line, 1, 2, 3) for i, line in enumerate(lines[files[0]], 1) if i > 1]
    kept = [row for row in rows if row is not None]
    if len(kept) < 2:
        raise DataError(
            f"{name}: {files[0]!r} and what belongs to it hold {len(kept)} pairs with a gold score."
        )
    first, second, scores = zip(*kept, strict=True)
    return StsTask(name, first, second, scores, len(rows) - len(kept))


def _subset(pairs: str, texts: Sequence[str], gold: str, scores: Sequence[str]) -> Iterable[Row | None]:
    if len(texts) != len(scores):
        raise DataError(
            f"{pairs!r} has {len(texts)} lines and {gold!r} has {len(scores)}: each pair needs a line in both."
        )
    for number, (text, score) in enumerate(zip(texts, scores, strict=True), 1):
        # Text first: a file with other columns is refused even where its pairs have no gold score.
        first, second = _sentences(pairs, number, text.split("\t"), 0, 1, 2)
        yield (first, second, _score(gold, number, score)) if score.strip() else None


def _row(file: str, number: int, line: str, first: int, second: int, score: int) -> Row | None:
    columns = line.split("\t")
    a, b = _sentences(file, number, columns, first, second, max(first, second, score) + 1)
    return (a, b, _score(file, number, columns[score])) if columns[score].strip() else None


def _sentences(
    file: str, number: int, columns: Sequence[str], first: int, second: int, least: int
) -> tuple[str, str]:
    if len(columns) < least:
        raise DataError(
            f"{file!r} line {number} has {len(columns)} column(s) separated by tabs; at least {least} are needed."
        )
    a, b = (" ".join(columns[column].split()) for column in (first, second))
    if not a or not b:
        raise DataError(f"{file!r} line {number} has an empty sentence.")
    return a, b


def _score(file: str, number: int, text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 5:
        raise DataError(
            f"{file!r} line {number} has the gold score {text.strip()!r}: a number from 0 to 5 is needed."
        )
    return score


def _read(data: Path, files: Sequence[str]) -> dict[str, bytes]:
    """Content of the files, in memory: nothing of an archive is unpacked."""
    if not data.exists():
        siblings = [p.name for p in data.parent.iterdir()] if data.parent.is_dir() else []
        raise DataError(
            f"STS data {str(data)!r} does not exist.{did_you_mean(data.name, siblings)} {HOW_TO_GET}"
        )
    try:
        found = _directory(data, files) if data.is_dir() else _archive(data, files)
    except (OSError, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        said = str(error).partition("\n")[0].rstrip(":.")  # tarfile tells of every compression that it tried
        raise DataError(f"STS data {str(data)!r} cannot be read: {said}.") from error
    missing = [file for file in files if file not in found]
    if len(missing) == len(files):
        raise DataError(
            f"{str(data)!r} holds no STS data: no {missing[0]!r}.{_elsewhere(data, files)} {HOW_TO_GET}"
        )
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise DataError(f"{str(data)!r} lacks {', '.join(map(repr, missing[:SHOWN]))}{more}. {HOW_TO_GET}")
    return found


def _directory(data: Path, files: Iterable[str]) -> dict[str, bytes]:
    return {file: (data / file).read_bytes() for file in files if (data / file).is_file()}


def _archive(data: Path, files: Iterable[str]) -> dict[str, bytes]:
    """By the end of their names: an archive may have the directories above too.

    Of a member that is there twice the last counts, as for tar, which appends what was changed.
    """
    wanted, found = set(files), {}
    members: dict[str, str] = {}
    with tarfile.open(data) as archive:
        for member in archive:
            parts = member.name.split("/")
            for depth in (2, 3):
                name = "/".join(parts[-depth:])
                first = members.get(name, member.name) == member.name
                if name in wanted and first and (stream := _content(archive, member)):
                    members[name] = member.name
                    found[name] = stream.read()
    return found


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes] | None:
    """A file of an archive, or what a link in it stands for; None for a directory or a device.

    Raises:
        DataError: a link to what is not in the archive, or to itself. Nothing outside of it is ever read.

    """
    try:
        return archive.extractfile(member)
    except (KeyError, RecursionError) as error:
        loops = isinstance(error, RecursionError)
        raise DataError(
            f"STS data {str(archive.name)!r}: {member.name!r} is a link to {member.linkname!r}, which "
            f"{'leads back to itself' if loops else 'is not in the archive'}. Make the archive of the files "
            "themselves, with tar's --dereference."
        ) from error


def _elsewhere(data: Path, files: Sequence[str]) -> str:
    """Where the data are, if it is near: a directory above or below the one that was named."""
    below = ("downstream", "data/downstream", "SentEval/data/downstream")
    near: Callable[[Path], bool] = lambda place: any((place / file).is_file() for file in files)  # noqa: E731
    places = [data.parent, data.parent.parent, *(data / name for name in below)]
    if data.is_dir():
        places += sorted(p for p in data.iterdir() if p.is_dir())
    return next((f" Did you mean {str(place)!r}?" for place in places if near(place)), "")
