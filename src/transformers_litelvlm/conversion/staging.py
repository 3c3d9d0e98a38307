"""A new folder that appears complete or not at all, whatever happens meanwhile: errors, Ctrl-C, `kill -9`."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.utils.files import locked


@contextmanager
def new_folder(target: str | os.PathLike) -> Iterator[Path]:
    """Give an empty folder beside `target`, and rename it to `target` at the end if nothing went wrong.

    The folder `.NAME.converting` and its lock are removed in the end. After `kill -9` they remain, and the next run
    for the same target replaces them: the operating system releases the lock of a process that is gone.

    Raises:
        ConversionError: if `target` is anything else than an empty folder, or another process is making it.
    """
    target = Path(target).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.converting")
    with locked(staging) as is_mine:
        if not is_mine:
            raise ConversionError(f"{target} is being written by another conversion: wait for it, or stop it")
        try:
            check_target(target)
            if staging.exists():
                shutil.rmtree(staging)
            staging.mkdir()
            yield staging
            sync_folder(staging)
            os.rename(staging, target)
            sync(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # nor does it sync what is only read
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot do this for folders.
        if not (path.is_dir() and error.errno == errno.EINVAL):
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def check_target(target: str | os.PathLike) -> None:
    """Raise a [`ConversionError`] if `target` is neither free nor an empty folder that can be replaced."""
    target = Path(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConversionError(f"{target} exists already: remove it, or give another target")
    if target.exists() and (os.path.ismount(target) or target.samefile(os.curdir)):
        what = "the current folder" if target.samefile(os.curdir) else "a mount point"
        raise ConversionError(f"{target} is {what}, which cannot be replaced: give a folder in it as the target")
