"""Writing files so that either all of them appear or none; reading one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is damaged; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error


@contextmanager
def write_atomically(folder: str | os.PathLike) -> Iterator[Path]:
    """Give an empty folder to write into, and move what is in it to `folder` at the end if nothing went wrong.

    After an exception (or Ctrl-C) inside the `with` block, `folder` is what it was: no file is half-written, none is
    replaced, and a folder that did not exist still does not.

    Args:
        folder: where the files appear; made with its parents if missing. Files of the same name are replaced.

    Yields:
        A temporary folder on the same file system (renaming across file systems would copy).
    """
    folder = Path(folder).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    staging = Path(tempfile.mkdtemp(prefix=".litelvlm-", dir=existing))
    try:
        yield staging
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in staging.iterdir())
        for name in names:
            if (folder / name).is_dir():
                raise IsADirectoryError(f"{folder / name} is a folder: it cannot be replaced by a file.")
        for name in names:
            os.replace(staging / name, folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
