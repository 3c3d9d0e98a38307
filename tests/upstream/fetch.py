"""Fetches the tests of transformers that its source distribution ships, of the locked release, into an ignored folder.

Run as `python tests/upstream/fetch.py [arguments of pip download]`, in an environment with setuptools.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "upstream_tests"


def locked_version() -> str:
    return re.search(r"^transformers==(\S+)", (ROOT / "requirements" / "locked.txt").read_text(), re.MULTILINE).group(
        1
    )


def folder() -> Path:
    """The folder to import `upstream_tests` from."""
    return CACHE / f"transformers-{locked_version()}"


def fetch(arguments: list[str]) -> None:
    """Pip downloads from the index that it is set up for, and compares the hash that the index names."""
    name = folder().name
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        # The package is not built, but pip asks it for its metadata: the installed setuptools is enough for that.
        options = ["--no-deps", "--no-binary", "transformers", "--no-build-isolation", "--dest", scratch]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options, *arguments, name.replace("-", "==")]
        subprocess.run(command, check=True)
        with tarfile.open(Path(scratch, f"{name}.tar.gz")) as archive:
            archive.extractall(scratch, filter="data")
        package = Path(scratch, "package", "upstream_tests")
        shutil.move(Path(scratch, name, "tests"), package)
        # Upstream's `__init__.py` is not in the archive; the modules import each other as parts of a package.
        (package / "__init__.py").touch()
        package.parent.rename(folder())


if __name__ == "__main__":
    if not folder().is_dir():
        fetch(sys.argv[1:])
