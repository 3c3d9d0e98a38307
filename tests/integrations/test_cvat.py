"""CVAT's own command and driver run the function; what they upload are the masks of the model."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.cvat_server import cvat_server
from tests.support.tool_pictures import PICTURE, SENTENCES, SIZES, files, masks_alone


cvataa = pytest.importorskip("cvat_sdk.auto_annotation")
pytest.importorskip("cvat_cli")
from cvat_sdk.masks import decode_mask  # noqa: E402

from transformers_litelvlm.integrations.cvat import create  # noqa: E402


ROOT = Path(__file__).parents[2]


class Context(cvataa.DetectionFunctionContext):
    frame_name, conf_threshold, conv_mask_to_poly = "scene.png", None, False


def context(**changes):
    return type("Changed", (Context,), changes)()


def run_cli(port, *words, home):
    """`cvat-cli task auto-annotate 1` with our module."""
    module = ["--function-module", "transformers_litelvlm.integrations.cvat"]
    server = ["--server-host", "http://127.0.0.1", "--server-port", str(port)]
    env = os.environ | {"CVAT_ACCESS_TOKEN": "token", "PYTHONPATH": str(ROOT / "src"), "XDG_CACHE_HOME": str(home)}
    command = [sys.executable, "-m", "cvat_cli", *server, "task", "auto-annotate", "1", *module, *words]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_the_command_uploads_our_masks(bundled, tmp_path):
    with cvat_server(files(), SIZES, SENTENCES[::-1]) as (port, uploaded):
        labels = ["-p", f"labels=str:{'; '.join(SENTENCES)}", "-p", "preset=str:balanced"]
        result = run_cli(port, *labels, home=tmp_path)
        assert result.returncode == 0, result.stderr
    expected = {
        (frame, 70 + SENTENCES[::-1].index(sentence)): mask
        for frame, content in enumerate(files().values())
        for sentence, mask in masks_alone(*bundled, content, SENTENCES).items()
    }
    assert {(shape["frame"], shape["label_id"]) for shape in uploaded} == expected.keys() and len(expected) > 3
    for shape in uploaded:
        width, height = SIZES[shape["frame"]]
        mask = decode_mask(shape["points"], image_width=width, image_height=height)
        assert shape["type"] == "mask" and shape["source"] == "auto"
        np.testing.assert_array_equal(mask, expected[shape["frame"], shape["label_id"]])


def test_labels_that_the_task_lacks_are_refused(tmp_path):
    with cvat_server(files(), SIZES, SENTENCES) as (port, uploaded):
        result = run_cli(port, "-p", "labels=str:the cup", home=tmp_path)
    assert result.returncode and "label 'the cup' is not in dataset" in result.stderr and not uploaded


def test_thresholds_and_settings():
    function = create(";".join(SENTENCES), budget=48)
    assert function._segment.model.config.pruning_config.budget == 48
    found = function._segment(PICTURE, SENTENCES)
    scores = sorted(each.score for each in found)
    assert len(function.detect(context(), PICTURE)) == 3
    assert len(function.detect(context(conf_threshold=scores[1]), PICTURE)) == 2
    assert function.detect(context(conf_threshold=1.0), PICTURE) == []
    with pytest.raises(cvataa.BadFunctionError, match="--conv-mask-to-poly"):
        function.detect(context(conv_mask_to_poly=True), PICTURE)


@pytest.mark.parametrize("labels", ["", "a;;b", "a; b;a"])
def test_labels_must_be_names(labels):
    with pytest.raises(ValueError, match="`labels` must be different names"):
        create(labels)
