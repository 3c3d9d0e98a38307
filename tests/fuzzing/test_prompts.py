"""Expressions and prompts of any letters: refused, or a prompt with the right number of placeholders and [SEG]."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import tiny_llava, tiny_qwen2_5_vl
from tests.support.families import LLAVA, QWEN2_5_VL, picture
from tests.support.fuzzing import examples, json_values, quick, texts
from tests.support.tiny_unipixel import unipixel_tokenizer


PICTURE = picture(40, 30)
expressions = st.one_of(texts, texts, st.lists(texts, min_size=1, max_size=3), json_values)


def unipixel():
    processor = tiny_qwen2_5_vl.tiny_processor()
    processor.tokenizer, processor.mask_image_size = unipixel_tokenizer(), 32
    return processor


PROCESSORS = {"llava": tiny_llava.tiny_processor(), "unipixel": unipixel()}
FAMILIES = {"llava": LLAVA, "unipixel": QWEN2_5_VL}
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
@examples(250)
def test_expressions(name, expressions):
    processor = PROCESSORS[name]
    features = prepared(f"expressions of {name}", processor.segmentation_inputs, PICTURE, expressions)
    if features is None:
        return
    number = 1 if isinstance(expressions, str) else len(expressions)
    ids, dialogues = features["input_ids"], len(features["input_ids"])
    [grid] = processor.visual_token_grids(features)
    token = processor.image_token if name == "llava" else processor.video_token
    assert count(processor, token, ids) == math.prod(grid) * dialogues
    assert count(processor, processor.seg_token, ids) == number and dialogues == (1 if name == "llava" else number)
    mask = features["guidance_attention_mask"]
    assert mask.shape == features["guidance_input_ids"].shape and mask.any(-1).all()


@example("<image> x <image>", "x")
@example("<image>" * 1000, "x")
@example("\udcff <image>", None)
@NAMES
@given(st.one_of(texts, json_values), st.one_of(st.none(), texts, json_values))
@examples(250)
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
@examples(150)
def test_templates(name, question, answer):
    """Templates are the caller's: they may have any tokens, but what comes out fits the picture."""
    processor = PROCESSORS[name]
    features = prepared(
        f"templates of {name}",
        processor.segmentation_inputs,
        PICTURE,
        "a dog",
        question_template=question,
        answer_template=answer,
    )
    assert features is None or features["input_ids"].shape == features["attention_mask"].shape
