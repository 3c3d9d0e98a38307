"""Expressions and prompts of any letters: refused, or a prompt with the right number of placeholders and [SEG]."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import SamImageProcessorPil

from tests.support import tiny_llava, tiny_qwen2_5_vl
from tests.support.families import LLAVA, QWEN2_5_VL, QWEN3_VL, picture
from tests.support.fuzzing import examples, json_values, numbers, quick, texts
from tests.support.tiny_unipixel import unipixel_tokenizer
from transformers_litelvlm.models.processing.boxes import BoxProcessor


PICTURE = picture(40, 30)
expressions = st.one_of(texts, texts, st.lists(texts, min_size=1, max_size=3), json_values)


def unipixel():
    processor = tiny_qwen2_5_vl.tiny_processor()
    processor.tokenizer, processor.mask_image_size = unipixel_tokenizer(), 32
    return processor


# The processor of Qwen3-VL is that of Qwen3.5, too: for `segmentation_inputs`, it is that of a chat model.
QWEN3 = QWEN3_VL.tiny.tiny_processor()
PROCESSORS = {"llava": tiny_llava.tiny_processor(), "unipixel": unipixel(), "qwen3_vl": QWEN3}
SEGMENTATION = {**PROCESSORS, "qwen3_vl": BoxProcessor(QWEN3, SamImageProcessorPil(size={"longest_edge": 32}))}
FAMILIES = {"llava": LLAVA, "unipixel": QWEN2_5_VL, "qwen3_vl": QWEN3_VL}
NAMES = pytest.mark.parametrize("name", PROCESSORS)


def count(processor, token, ids) -> int:
    return int((ids == processor.tokenizer.convert_tokens_to_ids(token)).sum())


def prepared(name, prepare, *arguments, **keywords):
    with quick(name):
        try:
            return prepare(*arguments, **keywords, return_tensors="pt")
        except ValueError as error:
            assert len(str(error)) < 1000, f"{len(str(error))} letters: {error!s:.100}"
            return None


@example("\udcff")  # F22: no UTF-8
@example("the <IMAGE> sign")  # W12: lower case makes it a placeholder
@example("a dog </s>")
@example("\ufeff")
@example("\u200b \u2028")
@example("{{ 7 * 7 }} {expression}")
@example(["a", 7])
@example({"a": "dog"})
@NAMES
@given(expressions)
@examples(170)
def test_expressions(name, expressions):
    processor = SEGMENTATION[name]
    features = prepared(f"expressions of {name}", processor.segmentation_inputs, PICTURE, expressions)
    if features is None:
        return
    number = 1 if isinstance(expressions, str) else len(expressions)
    ids, dialogues = features["input_ids"], len(features["input_ids"])
    [grid] = processor.visual_token_grids(features)
    token = PROCESSORS[name].video_token if name == "unipixel" else PROCESSORS[name].image_token
    assert count(processor, token, ids) == math.prod(grid) * dialogues
    assert dialogues == (1 if name == "llava" else number)
    assert name == "qwen3_vl" or count(processor, processor.seg_token, ids) == number
    mask = features["guidance_attention_mask"]
    assert mask.shape == features["guidance_input_ids"].shape and mask.any(-1).all()


@example("<image> x <image>", "x")
@example("<image>" * 1000, "x")
@example("\udcff <image>", None)
@NAMES
@given(st.one_of(texts, json_values), st.one_of(st.none(), texts, json_values))
@examples(170)
def test_text(name, question, expressions):
    processor, family = PROCESSORS[name], FAMILIES[name]
    text = family.prompt(question) if isinstance(question, str) else question
    features = prepared(f"text of {name}", processor, images=PICTURE, text=text, expressions=expressions)
    if features is None or text is None:
        return
    [grid] = processor.visual_token_grids(features)
    assert len(features["input_ids"]) == 1 == text.count(processor.image_token)
    assert count(processor, processor.image_token, features["input_ids"]) == math.prod(grid)
    if expressions is not None:
        assert features["guidance_attention_mask"].any(-1).all()


@example([[[]]], None)
@example("no place for it", None)
@example("{expression", None)
@example("<image> {expression}", None)
@example("{expression} [SEG]", "")
@NAMES
@given(st.one_of(texts, json_values), st.one_of(st.none(), texts))
@examples(100)
def test_templates(name, question, answer):
    """Templates are the caller's: they may have any tokens, but what comes out fits the picture."""
    templates = {"question_template": question}
    if name != "qwen3_vl":  # a chat model writes its answer itself
        templates["answer_template"] = answer
    prepare = SEGMENTATION[name].segmentation_inputs
    features = prepared(f"templates of {name}", prepare, PICTURE, "a dog", **templates)
    assert features is None or features["input_ids"].shape == features["attention_mask"].shape


videos = st.lists(st.integers(0, 255), min_size=1, max_size=5)
rates = st.one_of(st.floats(0.1, 60), numbers)


@example([0], 24.0, "x", None)
@example([0, 9], 0, "x", None)  # upstream divides by it
@example([0, 9], float("nan"), "x", None)
@given(videos, rates, texts, st.one_of(st.none(), texts))
@examples(60)
def test_videos_between_timestamps(colours, rate, question, expressions):
    """A run of placeholders for each temporal patch, whatever the question and the frame rate say."""
    frames = [np.full((24, 16, 3), colour, dtype=np.uint8) for colour in colours]
    metadata = [{"total_num_frames": len(frames), "fps": rate}]
    text = QWEN3_VL.prompt(question).replace(QWEN3.image_token, QWEN3.video_token, 1)
    given = {"videos": [frames], "text": text, "expressions": expressions, "video_metadata": metadata}
    features = prepared("video of qwen3_vl", QWEN3, **given, do_sample_frames=False)
    if features is None:
        return
    [grid] = QWEN3.visual_token_grids(features)
    assert grid == ((len(frames) + 1) // 2, 3, 2)
    assert count(QWEN3, QWEN3.video_token, features["input_ids"]) == math.prod(grid)
