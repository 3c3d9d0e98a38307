"""Scripts in a process of their own, where this package is installed but not imported, or not installed at all."""

import json
from pathlib import Path

from transformers.dynamic_module_utils import get_class_from_dynamic_module

from tests.support import warm_python
from transformers_litelvlm.models.remote_code import REMOTE_CLASSES


def run_script(script: str, folder: Path, *arguments, installed: bool = True) -> None:
    """Run `script` with `arguments`; `folder` is for its files. Fails the test if it fails."""
    (folder / "run.py").write_text(script)
    path = []
    if not installed:
        blocker = folder / "blocked" / "transformers_litelvlm"
        blocker.mkdir(parents=True)
        error = "ModuleNotFoundError(\"No module named 'transformers_litelvlm'\")"  # what Python says
        (blocker / "__init__.py").write_text(f"raise {error}")
        path = [blocker.parent]
    [run] = warm_python.run([folder / "run.py", *arguments], folder=folder, path=path)
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
