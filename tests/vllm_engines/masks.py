"""vLLM gives the masks that `segment` gives, pixel by pixel."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from transformers import AutoProcessor

from transformers_litelvlm import AutoModelForReferringSegmentation
from transformers_litelvlm.data import generate_scene


PRUNING = {"budget": 48, "method_options": {"context_share": 0.0}, "token_order": "raster", "position_ids": "original"}


def in_base64(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def mask_requests(count: int) -> list[tuple[np.ndarray, list[str]]]:
    """Pictures with one to three sentences; the last ones are about the first picture again."""
    scenes = [generate_scene("test", index) for index in range(count - 2)]
    asked = [(each.image, [e.sentence for e in each.expressions[: 1 + i % 3]]) for i, each in enumerate(scenes)]
    return asked + [(scenes[0].image, [scenes[0].expressions[place].sentence]) for place in (1, 2)]


def check_masks(path: str, pruning: dict, asked: list, answers: list[dict], **further: Any) -> None:
    """`further` are settings of all these requests, by the keywords of `from_pretrained`."""
    processor = AutoProcessor.from_pretrained(path)
    model = AutoModelForReferringSegmentation.from_pretrained(path, pruning_config=pruning)
    model.config.set_pruning(**further)
    for (picture, sentences), answer in zip(asked, answers, strict=True):
        inputs = processor.segmentation_inputs(images=[picture], expressions=[sentences])
        expected = model.segment(**inputs)
        assert (answer["height"], answer["width"]) == picture.shape[:2]
        found = np.stack([coco_mask.decode(each["mask"]) for each in answer["masks"]]).astype(bool)
        assert (found == expected.masks[0].numpy()).all()
        scores = [each["score"] for each in answer["masks"]]
        assert scores == pytest.approx(expected.scores[0].tolist(), abs=1e-4)


@pytest.fixture(scope="module")
def engine(checkpoint, start_engine):
    return start_engine(checkpoint("bundled"), PRUNING, runner="pooling", io_processor_plugin="litelvlm_segmentation")


def ask(engine, picture: np.ndarray, sentences: list[str]) -> dict:
    data = {"image": in_base64(picture), "sentences": sentences}
    [output] = engine.encode({"data": data}, pooling_task="plugin", use_tqdm=False)
    return output.outputs


def test_masks(engine, checkpoint):
    """In chunks of 64 tokens: a prompt with three sentences has more than 100."""
    asked = mask_requests(8)
    check_masks(checkpoint("bundled"), PRUNING, asked, [ask(engine, *each) for each in asked])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 49}, "larger budget"),
        ({"budget": None}, "larger budget"),
        ({"budget": 5, "retention_ratio": 0.5}, "exclude each other"),
        ({"method": "fastv"}, "inside the language model"),
        ({"preset": "faithful"}, "start the server with 'compact'"),
        ({"preset": 5}, "preset"),
    ],
)
def test_refused_settings(engine, settings, message):
    picture, sentences = mask_requests(3)[0]
    data = {"image": in_base64(picture), "sentences": sentences, **settings}
    with pytest.raises(ValueError, match=message):
        engine.encode({"data": data}, pooling_task="plugin", use_tqdm=False)
    assert ask(engine, picture, sentences)["masks"]


def test_pictures_are_encoded_once(engine):
    worker_model = engine.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()
    known = worker_model.pooler.poolers_by_task["plugin"].known
    scene, before = generate_scene("test", 50), known.misses
    for expression in scene.expressions[:3]:
        ask(engine, scene.image, [expression.sentence])
    assert known.misses == before + 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image": "?", "sentences": ["a"]}, "base64"),
        ({"sentences": ["a"]}, "image"),
        ({"image": "", "sentences": []}, "sentences"),
        ({"image": "", "sentence": ["a"]}, "sentences"),
        ({"image": "", "sentences": ["a"], "bugdet": 5}, "budget"),
        ("a", "object"),
    ],
)
def test_bad_requests(engine, data, message):
    with pytest.raises(ValueError, match=message):
        engine.encode({"data": data}, pooling_task="plugin", use_tqdm=False)
