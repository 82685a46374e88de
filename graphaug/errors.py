"""One base class, one class per thing that can go wrong; every message says what to do next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


class GraphaugError(Exception):
    """Base of every error that graphaug raises on purpose.

    Examples:
        >>> import torch, graphaug as ga
        >>> try:
        ...     ga.rewrite(torch.nn.Sequential(torch.nn.Linear(4, 8)), at="7")
        ... except ga.GraphaugError as error:
        ...     print(type(error).__name__)
        SiteNotFound
    """


class SelectorError(GraphaugError, ValueError):
    """A selector is malformed, or of a type that selects nothing."""


class SiteNotFound(GraphaugError, LookupError):
    """A selector matches nothing in the model."""


class AmbiguousSite(GraphaugError, LookupError):
    """A selector names a module that is called more than once."""


class SiteCountMismatch(GraphaugError, ValueError):
    """``expect=n`` was given and another number of sites matched."""


class BypassedSite(GraphaugError, ValueError):
    """A site does not separate the input from the output."""


class CaptureError(GraphaugError, RuntimeError):
    """A forward cannot be captured as a graph."""


class AssumptionViolated(GraphaugError, RuntimeError):
    """A call contradicts what the capture assumed about its inputs."""


class InvalidOption(GraphaugError, ValueError):
    """An option's value is outside its domain."""


class UnknownOption(InvalidOption, TypeError):
    """A call has an argument that there is not, lacks one, or has too many."""


class AlreadyRewritten(GraphaugError, ValueError):
    """The model already carries Deep Augmentation at this site."""


class NotRewritten(GraphaugError, TypeError):
    """An operation on a rewritten model was given another object."""


class UnsupportedModel(GraphaugError, TypeError):
    """The object is no plain model: wrapped, compiled, or no module at all."""


class SharedAcrossCut(GraphaugError, ValueError):
    """A parameter to be frozen is also used on the other side of the cut."""


class BatchError(GraphaugError, ValueError):
    """A batch has a size or shape that the augmentation is not defined for."""


class SparseBackwardError(GraphaugError, ValueError):
    """``backward="sparse"`` would not be exact for this model and cut."""


class SparseBackwardLost(UserWarning):
    """A warning: a module was changed after rewriting; the model is run with a dense backward while it is so."""


class VerificationError(GraphaugError, AssertionError):
    """``verify`` found a rewritten model that does not do what its plan says."""


class DataError(GraphaugError, ValueError):
    """Data are missing, unreadable, or not fit for the task."""


class EncoderError(GraphaugError, ValueError):
    """A text encoder cannot be loaded, does not fit its tokenizer, or gives no usable vectors."""


class RunDirectoryError(GraphaugError, FileExistsError):
    """A run directory cannot be used: there is none, it holds another run or no run, or cannot be written."""


class ConfigError(GraphaugError, ValueError):
    """A configuration holds an unknown key or a value outside its domain."""


class TrainingDiverged(GraphaugError, ArithmeticError):
    """The loss is no longer a finite number, or what a trained encoder gives is none."""


class TrainingCollapsed(GraphaugError, ArithmeticError):
    """The embeddings of different images have become the same."""


class CheckpointError(GraphaugError, RuntimeError):
    """A checkpoint is damaged, or a run cannot be resumed from it."""


class LaunchError(GraphaugError, RuntimeError):
    """The processes of a run cannot be started or reach each other."""


LIKE = 0.6
"""How like a wrong name one is that is suggested for it, by difflib; at 0.5 "lr_floor" would be, for "foo"."""


def nearest(wrong: str, known: Iterable[str], limit: int = 3, cutoff: float = LIKE) -> list[str]:
    """Return the names that are like a wrong one, whatever their case, nearest first; never the very name."""
    folded: dict[str, str] = {}
    for name in known:
        if name != wrong:
            folded.setdefault(name.lower(), name)
    return [folded[name] for name in difflib.get_close_matches(wrong.lower(), folded, n=limit, cutoff=cutoff)]


def did_you_mean(wrong: str, known: Iterable[str], limit: int = 3) -> str:
    """Return ``" Did you mean 'a', 'b'?"``, nearest first, or an empty string."""
    return meant(nearest(wrong, known, limit))


def meant(names: Iterable[str]) -> str:
    """Return ``" Did you mean 'a', 'b'?"`` of these names, or an empty string if there are none."""
    spelled = ", ".join(map(repr, names))
    return f" Did you mean {spelled}?" if spelled else ""


def in_a_line(error: Exception) -> str:
    """Return an error of somebody else's code in a line: its class, and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0] if said else ''}".rstrip(": ")


def an(value: object) -> str:
    """Return the class of a value with its article: "an int", "a ViT", "an LSTM", "a UNet"; "None" for None."""
    if value is None:
        return "None"
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    return f"{'an' if _VOWEL.match(name.lstrip('_')) else 'a'} {name}"


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Return names as text, the first few of many: "a, b, c, d, e …"."""
    return ", ".join(names[:limit]) + (" …" if len(names) > limit else "")


def several(count: int, noun: str) -> str:
    """Return a count with what is counted: "1 row", "2 rows"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# A vowel that is heard: not that of "unit"; the letters of an abbreviation are spelled.
_VOWEL = re.compile(r"(?!U[A-Z]|[Uu]ni|us|uint)[AEIOUaeiou]|[FHLMNRSX](?=[A-Z])")
