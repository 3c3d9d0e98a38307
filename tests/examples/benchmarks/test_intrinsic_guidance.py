"""The benchmark measures what it says: the selection of the real model, and its whole unpruned prefill."""

import json

import pytest
import torch

from tests.support.tiny_qwen2_5_vl import tiny_config
from transformers_litelvlm import Qwen2_5_VLLite


@pytest.fixture
def intrinsic_guidance(script):
    return script("intrinsic_guidance")


def test_the_shape_is_that_of_the_3b_model(intrinsic_guidance):
    config = intrinsic_guidance.qwen2_5_vl_3b()
    with torch.device("meta"):
        model = Qwen2_5_VLLite(config)
    # Qwen/Qwen2.5-VL-3B-Instruct has 3,754,622,976 parameters, its output layer tied to the embeddings.
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_754_622_976


@pytest.fixture
def tiny(intrinsic_guidance, monkeypatch):
    config = tiny_config()
    config.text_config.vocab_size, config.image_token_id = 151_936, 151_655
    monkeypatch.setattr(intrinsic_guidance, "qwen2_5_vl_3b", lambda: config)


@pytest.mark.parametrize("as_json", [False, True])
def test_command(intrinsic_guidance, tiny, capsys, as_json):
    arguments = ["--grid", "4", "6", "--pairs", "2", "--dtype", "float32"]
    assert intrinsic_guidance.main([*arguments, "--json"] if as_json else arguments) == 0
    printed = capsys.readouterr().out
    if as_json:
        result = json.loads(printed)
        assert (result["kept"], result["num_visual_tokens"], result["pairs"]) == (6, 24, 2)
        assert result["ratio"] == pytest.approx(result["median_ms_selection"] / result["median_ms_prefill"])
    else:
        assert "6 of 24 visual tokens" in printed and "unpruned prefill" in printed and "transformers 5." in printed


def test_the_limit_is_checked(intrinsic_guidance, tiny, capsys):
    # A tiny model's prefill is so short that choosing is far more than 3 % of it.
    assert intrinsic_guidance.main(["--grid", "4", "6", "--pairs", "2", "--dtype", "float32", "--check"]) == 1
