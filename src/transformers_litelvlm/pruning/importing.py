"""Methods of your own, by the file or module that registers them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path

from transformers_litelvlm.pruning.registry import credit, explain, provided_by


def import_methods(sources: Iterable[str]) -> None:
    """Import files and modules, so that the pruning methods in them are registered. Each is imported once.

    This runs their code: pass what the user named, never what a checkpoint or another file of data says.

    Args:
        sources: paths that end with `.py`, or names of modules on `sys.path` or, if they are not there, in the
            current folder.

    Raises:
        ValueError: one cannot be imported, or registers a name that is taken; says which, and why.
    """
    for source in sources:
        provider = f"--import {source}"
        try:
            with provided_by(provider):
                module = _import_file(source) if source.endswith(".py") else _import_module(source)
        except (Exception, SystemExit) as error:
            raise ValueError(f"`{provider}`: {explain(error)}") from error
        credit(module, provider)


def _import_file(source: str) -> str:
    """Under a name of its own, so that a file called random.py is in nobody's way."""
    path = Path(source).resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    name = f"litelvlm_import_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    if name not in sys.modules:
        loader = SourceFileLoader(name, str(path))
        spec = ModuleSpec(name, loader, origin=str(path))
        spec.has_location = True
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return name


def _import_module(source: str) -> str:
    nowhere = f"there is no such module on `sys.path` or in {os.getcwd()}. A file must end with .py."
    if not all(part.isidentifier() for part in source.split(".")):
        raise ValueError(nowhere)
    root = source.partition(".")[0]
    if root not in sys.modules and importlib.util.find_spec(root) is None:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{source}.".startswith(f"{error.name}."):
            raise  # it is there, and what it imports is not
        raise ValueError(nowhere) from error
    return source
