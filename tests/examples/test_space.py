"""examples/space: a Space of Hugging Face, as `make space` puts it together."""

import configparser
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from transformers_litelvlm.data import generate_scene


ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"


def front_matter() -> dict:
    return yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def test_the_front_matter_is_what_a_space_needs():
    found = front_matter()
    assert (found["sdk"], found["license"]) == ("gradio", "apache-2.0") and (SPACE / found["app_file"]).is_file()
    assert isinstance(found["python_version"], str) and found["python_version"] == "3.11"
    assert len(found["short_description"]) <= 60, "the Hub refuses longer ones"
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {found["colorFrom"], found["colorTo"]} <= colours
    tested = (ROOT / "requirements" / "browser.txt").read_text(encoding="utf-8")
    assert f"gradio=={found['sdk_version']}\n" in tested, "another Gradio than the one that is tested"


def test_what_is_installed_is_what_the_package_needs():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = parser["options"]["install_requires"] + "\n" + parser["options.extras_require"]["demo"]
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if not line.startswith("#")} == {
        line for line in needed.splitlines() if line and not re.match("#|gradio", line)
    }


def test_the_app(tmp_path, monkeypatch):
    """It is imported, and segments a picture once."""
    pytest.importorskip("gradio")
    from PIL import Image

    monkeypatch.delenv("LITELVLM_CHECKPOINT", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    shutil.copytree(SPACE, tmp_path / "space")
    monkeypatch.syspath_prepend(str(tmp_path / "space"))
    app = runpy.run_path(str(tmp_path / "space" / "app.py"))
    scene, path = generate_scene("test", 0), tmp_path / "scene.png"
    Image.fromarray(scene.image).save(path)
    found = app["comparer"].compare(str(path), scene.expressions[0].sentence)
    assert len(found.pruned.kept[0]) == 32 and found.unpruned.masks.any()
    assert "app" not in sys.modules and app["page"].analytics_enabled is False
