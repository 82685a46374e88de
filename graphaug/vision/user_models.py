"""Models of the user's own: ``my.py:Net`` on the command line is ``Net`` in the file ``my.py``."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from graphaug.capture.user_code import users_level
from graphaug.errors import ConfigError, GraphaugError, an, did_you_mean

EXAMPLE = "example_inputs"
"""What the file may hold beside the model: a batch, or a function that makes one."""


def is_own(name: str) -> bool:
    """Whether a name says a file and something in it."""
    file, colon, what = name.rpartition(":")
    return bool(colon and what) and file.endswith(".py")


def refuse_file_alone(name: str) -> None:
    """Refuse ``my.py`` without a name in it.

    Raises:
        ConfigError: names the classes and functions that the file defines.
    """
    file = Path(name)
    if file.suffix != ".py" or not file.is_file():
        return
    found = []
    with contextlib.suppress(
        SyntaxError, ValueError
    ):  # with a name in it, whoever runs it says what is wrong
        kinds = (ast.ClassDef, ast.FunctionDef)
        found = [node.name for node in ast.parse(file.read_bytes()).body if isinstance(node, kinds)]
    there = f" It defines {', '.join(found)}." if found else ""
    raise ConfigError(f"{name!r} is a file: say which model in it, as {name}:NAME.{there}")


def split_name(name: str) -> tuple[Path, str]:
    """``my.py:Net`` as the file and what is in it."""
    file, _, what = name.rpartition(":")
    return Path(file), what


def own(name: str, is_one: Callable[[Any], bool], error: type[GraphaugError] = ConfigError) -> Any:
    """What a name says: something in a file, or what it returns if it is a class or function, without arguments.

    Args:
        name: as ``my.py:Net``.
        is_one: whether a value is what is looked for, and need not be called.
        error: what is raised.

    Raises:
        ConfigError: there is no such file, or it cannot be run.
        GraphaugError: of the type ``error``: there is no such name in the file, or the call fails.
    """
    file, what = split_name(name)
    module = imported(file)
    if not hasattr(module, what):
        known = [n for n, value in vars(module).items() if callable(value) or is_one(value)]
        raise error(f"{str(file)!r} has no {what!r}.{did_you_mean(what, known)}")
    found: Any = getattr(module, what)
    if callable(found) and (isinstance(found, type) or not is_one(found)):
        try:
            found = found()
        except (Exception, SystemExit) as raised:  # whatever a user's own code raises
            way = (
                " A function without arguments in that file, which returns one, will do."
                if _lacks(found)
                else ""
            )
            raise error(
                f"{what}() of {str(file)!r} fails: {type(raised).__name__}: {raised}.{way}"
            ) from raised
    return found


def _lacks(function: Callable[..., Any]) -> bool:
    """Whether it needs arguments that nobody gives."""
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):  # or has no signature that can be read
        return True
    return False


def own_model(name: str) -> nn.Module:
    """Build the model that a name says: a class or function that is called without arguments, or a module.

    The file is run, as Python would run it on import.

    Raises:
        ConfigError: there is no such file or name, the file or the call fails, or what comes out is no module.
    """
    found = own(name, lambda value: isinstance(value, nn.Module))
    if not isinstance(found, nn.Module):
        file, what = split_name(name)
        raise ConfigError(f"{what!r} of {str(file)!r} is no model, but {an(found)}.")
    return found


def own_example(name: str) -> Any:
    """The `EXAMPLE` in the file of a model, or None if it has none."""
    found = getattr(imported(split_name(name)[0]), EXAMPLE, None)
    return found() if callable(found) else found


def code_of(name: str) -> dict[str, str]:
    """A hash of the code in the file of a model that `is_own`, without its comments and layout; of others nothing.

    What the file imports is not in it.
    """
    if not is_own(name):
        return {}
    try:
        code = ast.unparse(ast.parse(split_name(name)[0].read_bytes()))
    except (OSError, SyntaxError, ValueError):  # whoever builds the model says what is wrong
        return {}
    return {"model_sha256": hashlib.sha256(code.encode(errors="surrogateescape")).hexdigest()}


def warn_of_other_code(settings: Mapping[str, Any], run: str) -> None:
    """Warn if the file of a run's model has other code than when it was trained: its weights may fit all the same.

    Args:
        settings: the run's ``config.yaml``.
        run: what the warning calls it.
    """
    resolved = settings.get("resolved")
    trained = resolved.get("model_sha256") if isinstance(resolved, Mapping) else None
    name = str(settings.get("model", ""))
    if trained is not None and code_of(name).get("model_sha256", trained) != trained:
        warnings.warn(
            f"{str(split_name(name)[0])!r} has other code than when {run!r} was trained with {name!r}: what is "
            "computed with its weights may be something else. Keep a model's file as it is while its runs are used.",
            UserWarning,
            stacklevel=users_level(),
        )


def imported(file: Path) -> ModuleType:
    """The file as a module, run once in a process; its neighbours can be imported from it, as from a script.

    Raises:
        ConfigError: there is no such file, or it cannot be run.
    """
    path = file.resolve()
    name = f"graphaug_user_{abs(hash(str(path)))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"there is no file {str(file)!r}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its classes can be pickled
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's own code raises
        del sys.modules[name]
        raise ConfigError(f"{str(file)!r} cannot be run: {type(error).__name__}: {error}.") from error
    finally:
        sys.path.remove(str(path.parent))
    return module
