"""`litelvlm segment --mask-model`: a chat model that answers with boxes, and a stock SAM."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.support.box_models import answer_with, noise, save_tiny_sam
from tests.support.tiny_qwen3_vl import QWEN3_VL
from transformers_litelvlm import Qwen3_VLLite
from transformers_litelvlm.cli.main import main


@pytest.fixture
def segment(tmp_path, monkeypatch, capsys):
    """Runs the command on a picture of 96 x 64 pixels; gives (exit code, stdout, stderr)."""
    QWEN3_VL.save_stock_checkpoint(tmp_path / "chat")
    sam = save_tiny_sam(tmp_path / "sam")
    noise(96, 64).save(tmp_path / "scene.png")
    monkeypatch.chdir(tmp_path)
    answers = {"Locate the dog,": '{"bbox_2d": [100, 100, 500, 600]}', "Locate the cat,": "[]", "the riddle": "Hm."}
    answer_with(monkeypatch, Qwen3_VLLite, QWEN3_VL.tiny_processor(), answers)

    def run(*arguments, model="chat"):
        arguments = ["segment", "scene.png", *arguments, "--mask-model", sam, *(["--model", model] if model else [])]
        code = main(list(arguments))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_masks_and_boxes(segment, tmp_path):
    code, out, err = segment("the dog", "the cat", "--budget", "4", "--method", "uniform", "--json")
    assert code == 0, err
    report = json.loads(out)
    dog, cat = report["masks"]
    assert dog["boxes"] == [[9.6, 6.4, 48.0, 38.4]] and dog["says_none"] is False
    assert (cat["boxes"], cat["says_none"], cat["answer"], cat["area"]) == ([], True, "[]", 0)
    assert report["num_kept_tokens"] == 4 and [len(kept) for kept in report["retained_indices"]] == [4, 4]
    mask = np.asarray(Image.open(tmp_path / dog["file"]))
    assert mask.shape == (64, 96) and (mask > 0).sum() == dog["area"] > 0


def test_what_is_printed(segment):
    code, out, err = segment("the dog", "the cat", "the riddle")
    assert code == 0, err
    assert "  boxes (left, top, right, bottom): [9.6, 6.4, 48.0, 38.4]" in out
    assert "  the model says that there is none: the mask is empty" in out
    assert "  no box in the answer 'Hm.': the mask is empty" in out


def test_the_bundled_checkpoint_needs_no_mask_model(segment):
    code, _, err = segment("the dog", model=None)
    assert code == 2 and "--mask-model needs --model" in err


def test_a_chat_model_without_mask_model(segment, tmp_path, capsys):
    assert main(["segment", "scene.png", "the dog", "--model", "sam"]) == 2
    capsys.readouterr()
    QWEN3_VL.tiny_model().save_pretrained("ours")
    QWEN3_VL.tiny_processor().save_pretrained("ours")
    assert main(["segment", "scene.png", "the dog", "--model", "ours"]) == 2
    assert "name a mask model" in capsys.readouterr().err
