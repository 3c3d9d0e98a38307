"""Scripts in a process of their own, where this package is installed but not imported, or not installed at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from transformers_litelvlm.models.remote_code import REMOTE_CLASSES


def run_script(script: str, folder: Path, *arguments, installed: bool = True) -> None:
    """Run `script` with `arguments`; `folder` is for its files. Fails the test if it fails."""
    (folder / "run.py").write_text(script)
    path = [entry for entry in sys.path if entry]
    if not installed:
        blocker = folder / "blocked" / "transformers_litelvlm"
        blocker.mkdir(parents=True)
        error = "ModuleNotFoundError(\"No module named 'transformers_litelvlm'\")"  # what Python says
        (blocker / "__init__.py").write_text(f"raise {error}")
        path.insert(0, str(blocker.parent))
    # The same number of threads, so that sums are made in the same order.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path)}
    run = subprocess.run(
        [sys.executable, folder / "run.py", *arguments], env=environment, capture_output=True, text=True, cwd=folder
    )
    assert run.returncode == 0, run.stderr[-3000:]


def check_stub(folder: Path) -> None:
    """A checkpoint has one Python file, and by it `auto_map` names the classes that are installed."""
    folder = Path(folder)
    assert [path.name for path in folder.rglob("*.py")] == ["litelvlm_remote.py"]
    config = json.loads((folder / "config.json").read_text())
    classes = REMOTE_CLASSES[config["model_type"]]
    assert set(config["auto_map"]) == set(classes)
    for name, reference in config["auto_map"].items():
        assert get_class_from_dynamic_module(reference, str(folder)) is classes[name]
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["auto_map"] == {"AutoProcessor": config["auto_map"]["AutoProcessor"]}
