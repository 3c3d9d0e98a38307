"""Prompts that ask for boxes: what stands in them, and what is refused."""

import pytest
import torch
from transformers import SamImageProcessorPil

from tests.support.box_models import noise
from tests.support.tiny_llava import tiny_processor as tiny_llava_processor
from tests.support.tiny_qwen3_vl import QWEN3_VL
from transformers_litelvlm.models.processing.boxes import BoxProcessor


PICTURES = [noise(96, 64), noise(40, 80)]


@pytest.fixture(scope="module")
def processor():
    square = SamImageProcessorPil(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32})
    return BoxProcessor(QWEN3_VL.tiny_processor(), square)


def test_a_dialogue_for_every_expression(processor):
    inputs = processor.segmentation_inputs(images=PICTURES, expressions=[["the dog", " a cat "], ["it"]])
    assert inputs["dialogue_images"].tolist() == [0, 0, 1] and inputs["image_grid_thw"].shape == (2, 3)
    assert inputs["mask_pixel_values"].shape == (2, 3, 32, 32)
    assert inputs["original_sizes"].tolist() == [[64, 96], [80, 40]]
    assert inputs["reshaped_input_sizes"].tolist() == [[21, 32], [32, 16]]
    assert inputs["attention_mask"][:, -1].all() and not inputs["attention_mask"].all()  # padded on the left
    assert inputs["guidance_input_ids"].shape[:2] == (3, 1)
    alone = QWEN3_VL.tiny_processor()(
        images=[PICTURES[0]],
        text=[
            processor.dialogue(
                "Locate a cat, report the bbox coordinates in JSON format. If there is no such object, answer with []."
            )
        ],
        expressions="a cat",
        return_tensors="pt",
    )
    row = inputs["attention_mask"][1].bool()
    assert torch.equal(inputs["input_ids"][1][row], alone["input_ids"][0])
    assert torch.equal(inputs["mm_token_type_ids"][1][row], alone["mm_token_type_ids"][0])
    words = inputs["guidance_attention_mask"][1, 0].bool()
    assert torch.equal(inputs["guidance_input_ids"][1, 0][words], alone["guidance_input_ids"].flatten())


def test_templates(processor):
    inputs = processor.segmentation_inputs(
        images=PICTURES[:1],
        expressions=["a cat"],
        question_template="Please find '{expression}' with bbox and points.",
    )
    assert "Please find 'a cat' with bbox and points." in processor.tokenizer.decode(inputs["input_ids"][0])
    assert processor.whole_sentence_template.startswith("{expression}")
    with pytest.raises(ValueError, match="`question_template` must contain {expression}"):
        processor.segmentation_inputs(images=PICTURES[:1], expressions=["a cat"], question_template="Where?")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"expressions": ["<|image_pad|>"]}, "must not contain the special token"),
        ({"expressions": [""]}, "must be a sentence"),
        ({"expressions": ["a"], "return_tensors": "np"}, 'must be "pt"'),
    ],
)
def test_bad_input(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor.segmentation_inputs(images=PICTURES[:1], **arguments)


def test_families_whose_boxes_are_not_known_are_refused(processor):
    with pytest.raises(ValueError, match="not known how models of LlavaLiteProcessor write boxes"):
        BoxProcessor(tiny_llava_processor(), processor.mask_image_processor)
