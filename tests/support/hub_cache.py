"""A cache of the Hub without the Hub."""

import shutil
from collections.abc import Iterator
from pathlib import Path


def put_into_cache(
    cache: Path, folder: Path, revisions: dict[str, str], repository: str = "org/tiny", subfolder: str = "."
) -> Iterator[Path]:
    """As `snapshot_download` leaves it; `revisions` has commits by name. Gives the folders of the copies."""
    root = cache / f"models--{repository.replace('/', '--')}"
    for name, commit in revisions.items():
        snapshot = root / "snapshots" / commit
        shutil.copytree(folder, snapshot / subfolder, dirs_exist_ok=True)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / name).write_text(commit)
        yield snapshot / subfolder
