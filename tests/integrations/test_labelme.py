"""labelme's window, without a screen: the texts that are asked become shapes with the masks of the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tool_pictures import SENTENCES, files, masks_alone


pytest.importorskip("labelme")
ROOT = Path(__file__).parents[2]
# In a process of its own: a QApplication remains, and so does what the example adds to labelme.
WINDOW = """
import json, sys
import numpy as np
from PyQt5 import QtWidgets
from labelme.app import MainWindow
from labelme_with_litelvlm import add_litelvlm

file, texts, picture = sys.argv[1:]
add_litelvlm(preset="balanced")
application = QtWidgets.QApplication([])
window = MainWindow(file_or_dir=file, config_overrides={"auto_save": False})
window.resize(1100, 760)
window.show()
for _ in range(30):
    application.processEvents()
window._switch_canvas_mode(edit=False, create_mode="ai_box_to_shape")
window._ai_annotation._output_format_combo.setCurrentIndex(1)  # masks
window._ai_text._text_input.setText(texts)
window._submit_ai_prompt(False)
found = {}
for shape in window._canvas_widgets.canvas.shapes:
    x, y = int(shape.points[0].x()), int(shape.points[0].y())
    rows, columns = np.nonzero(shape.mask)
    found[shape.label] = [(rows + y).tolist(), (columns + x).tolist()]
for _ in range(30):
    application.processEvents()
window.grab().save(picture)
print("FOUND", json.dumps(found))
sys.stdout.flush()
import os; os._exit(0)  # without asking whether to save
"""


def test_the_window_has_our_masks(bundled, tmp_path):
    (tmp_path / "scene.png").write_bytes(files()["scene.png"])
    env = os.environ | {"QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path)}
    env["PYTHONPATH"] = f"{ROOT / 'src'}:{ROOT / 'examples'}"
    shown = os.environ.get("LABELME_PICTURE", str(tmp_path / "window.png"))
    words = [sys.executable, "-c", WINDOW, str(tmp_path / "scene.png"), ",".join(SENTENCES), shown]
    result = subprocess.run(words, env=env, capture_output=True, text=True, cwd=tmp_path)
    [line] = [line for line in result.stdout.splitlines() if line.startswith("FOUND ")] or [result.stderr]
    expected = masks_alone(*bundled, files()["scene.png"], SENTENCES)
    found = json.loads(line.removeprefix("FOUND "))
    assert found.keys() == expected.keys() and len(found) == 3
    for sentence, (rows, columns) in found.items():
        inside = set(zip(rows, columns, strict=True))
        assert inside == set(zip(*map(list, expected[sentence].nonzero()), strict=True))
