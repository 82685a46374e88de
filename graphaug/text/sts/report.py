"""The JSON file of an STS result: scores, what was scored, and with which versions."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from graphaug.contrastive.config.settings import package_versions
from graphaug.errors import DataError, EncoderError
from graphaug.text.encoders.encoder import Encoder
from graphaug.text.sts.evaluate import StsResult


def report(name: str, encoder: Encoder, result: StsResult) -> dict[str, Any]:
    """Everything about a result, as plain values; correlations in [-1, 1], not rounded."""
    return {
        "encoder": name,
        "pooler": encoder.pooler,
        "max_length": encoder.max_length,
        "truncated": encoder.truncated,
        **result.to_dict(),
        "versions": versions(),
    }


def write_report(path: Path, name: str, encoder: Encoder, result: StsResult) -> None:
    """Write ``report`` as JSON, to a temporary file that is then renamed.

    Raises:
        DataError: the file cannot be written.

    """
    text = json.dumps(report(name, encoder, result), indent=2, ensure_ascii=False) + "\n"
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as temporary:
            new = Path(temporary) / path.name
            new.write_text(text, encoding="utf-8")
            new.replace(path)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a score depends on."""
    return package_versions("torch", "transformers", "tokenizers", "sentence-transformers", "scipy", "numpy")


def quiet() -> None:
    """Keep transformers' progress bars and notes off the terminal, in a process of our own.

    Raises:
        EncoderError: transformers or SciPy is not installed.

    """
    try:
        import scipy  # noqa: F401
        from transformers.utils import logging
    except ImportError as missing:
        raise EncoderError(
            f"scoring an encoder needs {missing.name}: pip install 'graphaug[text]'"
        ) from missing
    logging.disable_progress_bar()
    logging.set_verbosity_error()
