"""A chat model that answers with boxes, and a stock SAM, behind the same address."""

import asyncio

import numpy as np
import pytest

from tests.support.box_models import answer_with, noise, save_tiny_sam
from tests.support.http_clients import alone, client_of, form, masks_of
from tests.support.tiny_qwen3_vl import QWEN3_VL
from transformers_litelvlm import Qwen3_VLLite
from transformers_litelvlm.models.auto import load_for_segmentation
from transformers_litelvlm.serving.answers import SegmentAnswer
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.segmenter import Segmenter


ANSWERS = {"Locate the dog,": '{"bbox_2d": [100, 100, 500, 600]}', "Locate the cat,": "[]", "the riddle": "Hm."}


@pytest.fixture
def boxes(tmp_path, monkeypatch):
    """Model and processor; the answers of the chat model are known."""
    QWEN3_VL.save_stock_checkpoint(tmp_path / "chat")
    answer_with(monkeypatch, Qwen3_VLLite, QWEN3_VL.tiny_processor(), ANSWERS)
    return load_for_segmentation(str(tmp_path / "chat"), mask_model=save_tiny_sam(tmp_path / "sam"))


def test_masks_boxes_and_text(boxes, start_service):
    picture, service = noise(96, 64), start_service(Segmenter(*boxes, Limits()), batch_wait_ms=20)
    asked = [
        (picture, ["the dog", "the cat", "the riddle"], {}),
        (noise(64, 96, seed=1), ["the dog"], {"budget": 4, "method": "uniform"}),
        (picture, ["the dog"], {}),
    ]

    async def ask():
        async with client_of(service) as client:
            return await asyncio.gather(*(client.post("/v1/segment", **form(p, s, **own)) for p, s, own in asked))

    answers = [answer.json() for answer in asyncio.run(ask())]
    for answer, each in zip(answers, asked, strict=True):
        assert SegmentAnswer.model_validate(answer).batch_size == 1  # they waited together, and are answered alone
        np.testing.assert_array_equal(masks_of(answer), alone(*boxes, *each).masks[0].numpy())
    dog, cat, riddle = answers[0]["masks"]
    assert (dog["boxes"], dog["says_none"], dog["answer"]) == (
        [[9.6, 6.4, 48.0, 38.4]],
        False,
        ANSWERS["Locate the dog,"],
    )
    assert dog["area"] > 0 and dog["box"] is not None
    assert (cat["boxes"], cat["says_none"], cat["area"], cat["box"]) == ([], True, 0, None)
    assert (riddle["answer"], riddle["says_none"], riddle["boxes"]) == ("Hm.", False, [])
    assert [len(kept) for kept in answers[1]["retained_indices"]] == [4]
    assert sorted(answer["cached"] for answer in answers) == [False, False, True]


def test_a_chat_model_writes_the_answers_itself(tmp_path, start_service):
    """Nothing is prepared: random weights write something, and over HTTP it is the same."""
    QWEN3_VL.save_stock_checkpoint(tmp_path / "chat")
    model, processor = load_for_segmentation(str(tmp_path / "chat"), mask_model=save_tiny_sam(tmp_path / "sam"))
    model.max_new_tokens = 12
    picture = noise(96, 64)

    async def ask():
        async with client_of(start_service(Segmenter(model, processor, Limits()))) as client:
            return (await client.post("/v1/segment", **form(picture, ["the dog"], budget=4, method="uniform"))).json()

    answer, expected = (
        asyncio.run(ask()),
        alone(model, processor, picture, ["the dog"], {"budget": 4, "method": "uniform"}),
    )
    assert answer["masks"][0]["answer"] == expected.answers[0][0].text != ""
    np.testing.assert_array_equal(masks_of(answer), expected.masks[0].numpy())
