"""Running a script where this package cannot be imported, as on a machine that only has a checkpoint with its code."""

import os
import subprocess
import sys
from pathlib import Path

import torch


def run_without_package(script: str, folder: Path, *arguments) -> None:
    """Run `script` with `arguments` in a process of its own; `folder` is for its files. Fails the test if it fails."""
    (folder / "run.py").write_text(script)
    site = [path for path in sys.path if path.endswith("site-packages")]
    blocker = folder / "blocked" / "transformers_litelvlm"
    blocker.mkdir(parents=True)
    (blocker / "__init__.py").write_text("raise ImportError('absent')")
    # The same number of threads, so that sums are made in the same order.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join([str(blocker.parent), *site])}
    run = subprocess.run(
        [sys.executable, folder / "run.py", *arguments], env=environment, capture_output=True, text=True, cwd=folder
    )
    assert run.returncode == 0, run.stderr[-3000:]
