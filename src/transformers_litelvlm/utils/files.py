"""Writing files so that either all of them appear or none; reading one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


# In a folder that shows one run: names and digests of its files, so that the next run knows which are ours.
MANIFEST_NAME = ".litelvlm.json"
_STAGING = re.compile(r"(\.litelvlm-\w{8})(\.ready|\.lock)?")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is damaged; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text. JSON has no NaN and no infinity: both become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process holds the lock beside `path`. The system releases that of a process that was killed."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        # Before the release: later it could be the file of somebody else's lock. filelock >= 3.21 notices the removal.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def check_output(folder: str | os.PathLike, names: Sequence[str] = ()) -> None:
    """To be called before long work. Leaves nothing behind.

    Raises:
        ValueError: files of these names could not be written into `folder`; says why.
    """
    path = Path(folder).absolute()
    shown = str(folder) if len(str(folder)) <= 80 else f"{str(folder)[:77]}..."
    try:
        for part in (path, *path.parents):
            if part.is_symlink() and not part.exists():
                raise ValueError(f"{shown} cannot be written: {part} is a link to nothing.")
        existing, missing = _split(path)
        if not existing.is_dir():
            raise ValueError(f"{shown} cannot be written: {existing} is a file, not a folder.")
        if taken := [name for name in names if (path / name).is_dir()]:
            raise ValueError(f"{path / taken[0]} is a folder: it cannot be replaced by a file.")
        with _staging(existing) as probe:
            probe.joinpath(*missing).mkdir(parents=True, exist_ok=True)
            for name in names or ("x",):
                probe.joinpath(*missing, name).write_bytes(bytes(4096))
    except OSError as error:
        raise ValueError(f"{shown} cannot be written: {error.strerror or error}.") from error


@contextmanager
def write_atomically(folder: str | os.PathLike, one_run: bool = False) -> Iterator[Path]:
    """Give an empty folder to write into, and move what is in it to `folder` at the end if nothing went wrong.

    After an exception (or Ctrl-C) inside the `with` block, `folder` is what it was: no file is half-written, none is
    replaced, and a folder that did not exist still does not. Killed while several files are moved, `folder` never has
    new files beside old ones of the same names, and the next call moves the rest.

    Args:
        folder: where the files appear; made with its parents if missing. Files of the same name are replaced.
        one_run: files that an earlier call wrote, and that are not written again, are removed. Others are not touched.

    Yields:
        A temporary folder on the same file system (renaming across file systems would copy).
    """
    folder = Path(folder).absolute()
    existing, missing = _split(folder)
    finish_interrupted(existing)
    with _staging(existing) as staging:
        inside = staging.joinpath(*missing[1:])
        inside.mkdir(parents=True, exist_ok=True)
        try:
            yield inside
        except OSError as error:
            if error.errno is not None and error.filename is None:  # a full disk: no library says which
                error.filename = str(folder)
            raise
        names = sorted(path.name for path in inside.iterdir())
        for name in names:
            if (folder / name).is_dir():
                raise IsADirectoryError(f"{folder / name} is a folder: it cannot be replaced by a file.")
        if one_run:
            content = {"files": {name: _digest(inside / name) for name in names}}
            (inside / MANIFEST_NAME).write_text(to_json(content, indent=1), encoding="utf-8")
        if missing:
            try:
                os.rename(staging, existing / missing[0])
                return
            except OSError:
                if not (existing / missing[0]).is_dir():
                    raise
            folder.mkdir(parents=True, exist_ok=True)  # another process made it meanwhile
            _publish(inside, folder)
        else:
            _publish(staging.rename(f"{staging}.ready"), folder)


def finish_interrupted(folder: Path) -> None:
    """Finish what killed processes left in `folder`: files that were complete are moved, others removed."""
    for name in {match[1] for path in folder.iterdir() if (match := _STAGING.fullmatch(path.name))}:
        staging, ready = folder / name, folder / f"{name}.ready"
        # PermissionError: those of other users, in a folder that all may write into.
        with suppress(PermissionError), locked(staging) as is_left_over:
            if is_left_over and ready.is_dir():
                _publish(ready, folder)
            if is_left_over:
                shutil.rmtree(staging, ignore_errors=True)


def _split(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The nearest parent that exists, and the names below it that do not."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return existing, folder.relative_to(existing).parts


@contextmanager
def _staging(existing: Path) -> Iterator[Path]:
    staging = existing / f".litelvlm-{secrets.token_hex(4)}"
    with locked(staging):
        try:
            staging.mkdir()
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _publish(ready: Path, folder: Path) -> None:
    """Move files. Killed anywhere in it, doing it again gives the same."""
    names = sorted((path.name for path in ready.iterdir()), key=lambda name: (name == MANIFEST_NAME, name))
    if len(names) > 1:
        earlier, coming = (_listed(place) if MANIFEST_NAME in names else {} for place in (folder, ready))
        gone = [name for name in earlier if name not in coming and _is_file_of(folder / name, earlier[name])]
        for name in {*gone, *names} - {MANIFEST_NAME}:
            (folder / name).unlink(missing_ok=True)
    for name in names:
        os.replace(ready / name, folder / name)
    ready.rmdir()


def _listed(folder: Path) -> dict[str, Any]:
    """What the manifest of a folder lists; nothing if it is not one of ours."""
    try:
        files = read_json(folder / MANIFEST_NAME)["files"]
        return {name: digest for name, digest in files.items() if name == Path(name).name}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _is_file_of(path: Path, digest: Any) -> bool:
    return path.is_file() and not path.is_symlink() and _digest(path) == digest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
