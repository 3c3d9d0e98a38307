"""The picture of README is what the checkpoint in the package gives, small, and in the colours of its legend."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from transformers_litelvlm.visualization import mask_colour


ROOT = Path(__file__).parents[2]
NAME = "demo_unpruned_and_pruned.png"


def test_it_can_be_drawn_again(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("draw_readme_picture", ROOT / "examples" / "draw_readme_picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    image = str(ROOT / "examples" / "assets" / "demo.png")
    monkeypatch.setattr(sys, "argv", ["draw", "--image", image, "--output", str(tmp_path / NAME)])
    module.main()
    ious = [float(word) for word in capsys.readouterr().out.split("masks ")[1].split(", ")]
    assert len(ious) == 2 and min(ious) > 0.95, "the caption in README says 0.99 and 0.98"
    with Image.open(tmp_path / NAME) as again, Image.open(ROOT / "docs" / "images" / NAME) as shown:
        first, second = (np.asarray(picture.convert("RGB"), dtype=int) for picture in (again, shown))
    assert first.shape == second.shape and np.abs(first - second).mean() < 1
    legend, panels = first[-130:], first[50:-140].reshape(first[50:-140].shape[0], first.shape[1], 3)
    for index in range(2):
        assert (legend == mask_colour(index)).all(-1).sum() > 300
        columns = np.flatnonzero((panels == mask_colour(index)).all(-1).any(0)) // (first.shape[1] // 3)
        assert set(columns) == {1, 2}, "masks are in the second and third panel"
    assert all(path.stat().st_size <= 300_000 for path in (ROOT / "docs" / "images").glob("*.png"))
