"""osam's own `generate` and command give the masks of the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.tool_pictures import PICTURE, SENTENCES, files, masks_alone


osam = pytest.importorskip("osam")
from transformers_litelvlm.integrations.osam import register  # noqa: E402


ROOT = Path(__file__).parents[2]


@pytest.fixture
def model_type(monkeypatch):
    monkeypatch.setattr(osam.apis, "registered_model_types", [*osam.apis.registered_model_types])
    monkeypatch.setattr(osam.apis, "running_model", None)
    return register(preset="balanced")


def ask(**prompt):
    image = prompt.pop("image", np.asarray(PICTURE))
    prompt = osam.types.Prompt(**prompt)
    return osam.apis.generate(osam.types.GenerateRequest(model="litelvlm", image=image, prompt=prompt))


def full(annotation, size):
    """(H, W) of the part of a mask that an annotation has."""
    mask, box = np.zeros(size[::-1], dtype=bool), annotation.bounding_box
    mask[box.ymin : box.ymax + 1, box.xmin : box.xmax + 1] = annotation.mask
    return mask


def test_generate_gives_our_masks(model_type, bundled):
    assert osam.apis.get_model_type_by_name("litelvlm") is model_type and model_type.get_size() == 0
    answer = ask(texts=SENTENCES)
    expected = masks_alone(*bundled, files()["scene.png"], SENTENCES)
    assert [each.text for each in answer.annotations] == list(expected) == SENTENCES
    for each in answer.annotations:
        np.testing.assert_array_equal(full(each, PICTURE.size), expected[each.text])
    scores = sorted(each.score for each in answer.annotations)
    assert len(ask(texts=SENTENCES, score_threshold=scores[1]).annotations) == 2
    assert len(ask(texts=SENTENCES, max_annotations=1).annotations) == 1
    grey = ask(texts=SENTENCES, image=np.asarray(PICTURE.convert("L")))
    assert grey.model == "litelvlm:latest"


def test_what_it_does_not_know_is_refused(model_type):
    with pytest.raises(ValueError, match="no points"):
        ask(points=np.array([[1, 2]]), point_labels=np.array([1]))
    with pytest.raises(ValueError, match="`image` is needed"):
        ask(texts=SENTENCES, image=None)


def test_the_last_registration_holds(model_type):
    ask(texts=SENTENCES[:1])
    again = register(preset="fast")
    assert [each for each in osam.apis.registered_model_types if each.name == "litelvlm:latest"] == [again]
    ask(texts=SENTENCES[:1])
    assert osam.apis.running_model._segment.model.config.pruning_config.retention_ratio == 1 / 9


def test_the_command(bundled, tmp_path):
    (tmp_path / "scene.png").write_bytes(files()["scene.png"])
    words = [sys.executable, "-m", "transformers_litelvlm.integrations.osam", "--preset", "balanced"]
    words += ["run", "litelvlm", "--image", str(tmp_path / "scene.png"), "--json"]
    words += ["--prompt", json.dumps({"texts": SENTENCES[:1]})]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HOME": str(tmp_path)}
    result = subprocess.run(words, env=env, capture_output=True, text=True)
    [found] = json.loads(result.stdout)["annotations"]
    [mask] = masks_alone(*bundled, files()["scene.png"], SENTENCES[:1]).values()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = {"xmin": columns[0], "ymin": rows[0], "xmax": columns[-1], "ymax": rows[-1]}
    assert found["bounding_box"] == box and found["text"] == SENTENCES[0]
