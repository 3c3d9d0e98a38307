"""A method before the language model and one inside it: merged tokens, and masks."""

import pytest
import torch
from transformers import AutoProcessor

from tests.support import tiny_llava, tiny_sa2va, tiny_unipixel
from tests.support.families import LLAVA, picture
from tests.support.family_cases import NUM_LAYERS
from transformers_litelvlm import AutoModelForReferringSegmentation, PruningConfig


FIRST, SECOND = 8, 4


@torch.no_grad()
def test_merge_weights_are_those_of_both_methods():
    model, inputs = LLAVA.model(NUM_LAYERS).eval(), LLAVA.row(0)
    first = {"method": "visionzip", "budget": FIRST}
    then = {"method": "sparsevlm", "budget": SECOND, "method_options": {"layers": [0, 1], "keep": [4, 3]}}
    features = model.model.get_image_features(inputs["pixel_values"], pruning_config=PruningConfig(**first))
    actual = model(**inputs, pruning_config=PruningConfig(**first, then=then))
    # What the first method made is merged further, or left: a kept token is made of tokens of the first.
    first_weights = features.merge_weights.mT
    share = torch.linalg.lstsq(first_weights, actual.merge_weights.mT, driver="gelsd").solution
    torch.testing.assert_close(first_weights @ share, actual.merge_weights.mT, atol=1e-5, rtol=1e-5)
    assert not torch.equal(actual.merge_weights, actual.merge_weights.round())
    assert actual.merge_weights.shape == (2, SECOND, 16)
    assert [stage.shape[1] for stage in actual.retained_stages] == [5, SECOND]


def llava_masks(folder):
    return tiny_llava.tiny_grounding_model().eval(), tiny_llava.tiny_processor()


def unipixel_masks(folder):
    target = tiny_unipixel.tiny_checkpoint(folder)
    return AutoModelForReferringSegmentation.from_pretrained(target).eval(), AutoProcessor.from_pretrained(target)


def sa2va_masks(folder):
    model, processor = tiny_sa2va.load(tiny_sa2va.convert("qwen3_vl", folder), "qwen3_vl")
    processor.image_processor.size = {"shortest_edge": 20 * 32**2, "longest_edge": 40 * 32**2}
    return model, processor


@pytest.mark.parametrize("build", [llava_masks, unipixel_masks, sa2va_masks])
def test_masks(build, tmp_path):
    model, processor = build(tmp_path)
    inputs = processor.segmentation_inputs(images=[picture()], expressions=[["the red circle", "a box"]])
    first = model.segment(**inputs, pruning_config=PruningConfig(budget=FIRST))
    then = {"method": "fastv", "budget": SECOND, "method_options": {"layer": 1}}
    both = model.segment(**inputs, pruning_config=PruningConfig(budget=FIRST, then=then))
    assert torch.equal(both.similarity[0], first.similarity[0])
    for before, after in zip(first.retained_indices, both.retained_indices, strict=True):
        assert len(after) == SECOND and set(after.tolist()) < set(before.tolist())
    assert not torch.equal(both.mask_logits[0], first.mask_logits[0])
    # A second method that drops nothing is none.
    whole = PruningConfig(budget=FIRST, then={**then, "retention_ratio": 1.0, "budget": None})
    assert torch.equal(model.segment(**inputs, pruning_config=whole).mask_logits[0], first.mask_logits[0])
