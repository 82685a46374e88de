"""The packages that only graphs need, imported where they are used, with an error that says what to install."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

from graphaug.errors import ConfigError


def geometric() -> ModuleType:
    """``torch_geometric.nn``.

    Raises:
        ConfigError: torch_geometric is not installed.

    """
    with warnings.catch_warnings():
        # torch_geometric 2.8 calls torch.jit.script while it is imported, which torch 2.14 deprecates.
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is deprecated")
        try:
            import torch_geometric.nn as found
        except ImportError as missing:
            raise _missing("torch-geometric") from missing
    module: ModuleType = found
    return module


def molecule_features() -> Any:
    """``torch_geometric.utils.smiles``: which attributes an atom has, and `from_rdmol`, which reads them."""
    geometric()
    from torch_geometric.utils import smiles

    return smiles


def chem() -> Any:
    """``rdkit.Chem``, which reads molecules.

    Raises:
        ConfigError: RDKit is not installed.

    """
    try:
        from rdkit import Chem
    except ImportError as missing:
        raise _missing("rdkit") from missing
    return Chem


def _missing(package: str) -> ConfigError:
    return ConfigError(f"training on graphs needs {package}: pip install 'graphaug[train,graphs]'.")
