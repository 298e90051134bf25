"""Packages of the extras, imported where they are used."""

import importlib
from typing import Any


class MissingExtraError(ModuleNotFoundError):
    """A package of an extra that is not installed."""


def require(module: str, extra: str, needs: str | None = None) -> Any:
    """Imports a module of an extra.

    Args:
        module: Which.
        extra: The extra that installs it.
        needs: The beginning of the error: what needs which package. None: the package is not installed.

    Raises:
        MissingExtraError: It is not installed; the message says how to.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        needs = needs or f"{error.name} is not installed"
        raise MissingExtraError(f"{needs}: pip install 'fusedstep[{extra}]'", name=error.name) from error
