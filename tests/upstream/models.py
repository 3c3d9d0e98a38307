"""Upstream's common tests of models, for a class of ours and for the stock class that it subclasses."""

from __future__ import annotations

import copy
import unittest
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import (
    InternVLForConditionalGeneration,
    InternVLModel,
    LlavaForConditionalGeneration,
    LlavaModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen3_5Model,
    Qwen3_5MoeModel,
    Qwen3VLModel,
    Qwen3VLMoeModel,
    Sam2VideoConfig,
)

from tests.support import tiny_internvl, tiny_llava, tiny_qwen2_5_vl
from tests.support.families import INTERNVL, LLAVA, QWEN2_5_VL, QWEN3_5, QWEN3_5_MOE, QWEN3_VL, QWEN3_VL_MOE, Family
from tests.support.tiny_unipixel import sam2_config
from tests.upstream.mixins import ModelTesterMixin
from transformers_litelvlm import (
    InternVLLiteForConditionalGeneration,
    InternVLLiteModel,
    LlavaLiteForConditionalGeneration,
    LlavaLiteForReferringSegmentation,
    LlavaLiteModel,
    Qwen2_5_VLLiteForConditionalGeneration,
    Qwen2_5_VLLiteForReferringSegmentation,
    Qwen2_5_VLLiteModel,
    Qwen3_VLLiteForReferringSegmentation,
)
from transformers_litelvlm.conversion.recipes.sa2va import mask_parts


BATCH = 3
# Below the 16 visual tokens of each image.
BUDGET = 5
# These look up by the name of a class what it is: base model or head.
TESTS_BY_NAME = (
    "test_causal_lm_loss_honors_shift_labels",
    "test_model_forward_default_config_values",
    "test_model_rope",
    "test_training",
    "test_vision_axial_rope",
)
# This one asks the source of the module of a class whether there are experts.
TEST_BY_MODULE = "test_moe_models_record_router_logits"
Inputs = dict[str, torch.Tensor]


def llava_config(with_masks: bool = False) -> Any:
    config = tiny_llava.tiny_config(with_masks)
    config.vision_config.num_hidden_layers = 2  # as many as upstream's tests allow
    return config


def llava_inputs() -> Inputs:
    ids, mask = tiny_llava.prompt(*([1, 5 + row, "image", 8, 9] for row in range(BATCH)))
    return {"pixel_values": tiny_llava.random_pixels(BATCH), "input_ids": ids, "attention_mask": mask}


def llava_guidance() -> Inputs:
    ids, mask = tiny_llava.random_guidance(BATCH)
    return {"guidance_input_ids": ids, "guidance_attention_mask": mask}


def small_sam2_config() -> Sam2VideoConfig:
    """With as few layers as there can be: upstream's tests make, save and load many models."""
    layers = {"memory_attention_num_layers": 1, "memory_fuser_num_layers": 1, "memory_fuser_intermediate_dim": 48}
    config = {**sam2_config(), **layers}
    config["vision_config"]["backbone_config"].update(blocks_per_stage=[1, 1, 1, 1], global_attention_blocks=[3])
    return Sam2VideoConfig(**config)


def qwen_config(with_masks: bool = False) -> Any:
    masks = {"mask_config": small_sam2_config(), "seg_token_id": tiny_qwen2_5_vl.VOCABULARY - 1}
    config = tiny_qwen2_5_vl.tiny_config(**(masks if with_masks else {}))
    config.vision_config.depth, config.vision_config.fullatt_block_indexes = 2, [1]
    return config


def qwen3_config(family: Family) -> Any:
    config = family.config()
    config.vision_config.depth = 2
    if hasattr(config.vision_config, "deepstack_visual_indexes"):
        config.vision_config.deepstack_visual_indexes = [0]
    return config


def sa2va_config() -> Any:
    """Qwen3-VL with masks, as in Sa2VA."""
    config = qwen3_config(QWEN3_VL)
    masks = mask_parts(small_sam2_config().to_dict(), before_norm=True, seg_token_id=tiny_qwen2_5_vl.VOCABULARY - 1)
    return type(config).from_dict({**config.to_dict(), **masks})


def internvl_config() -> Any:
    config = tiny_internvl.tiny_config()
    config.vision_config.num_hidden_layers = 2
    return config


def internvl_inputs() -> Inputs:
    rows = [[10 + row, tiny_internvl.IMAGE_START, ("image", 16), tiny_internvl.IMAGE_END, 11] for row in range(BATCH)]
    text = tiny_qwen2_5_vl.prompt(*rows)  # its id of images is that of the tiny InternVL, too
    del text["mm_token_type_ids"]
    return {"pixel_values": tiny_internvl.random_tiles(BATCH), **text}


def qwen_inputs() -> Inputs:
    start, end = tiny_qwen2_5_vl.VISION_START, tiny_qwen2_5_vl.VISION_END
    pixels, grid = tiny_qwen2_5_vl.random_media([(1, 4, 4)] * BATCH)
    rows = [[10 + row, start, ("image", 16), end, 11] for row in range(BATCH)]
    return {"pixel_values": pixels, "image_grid_thw": grid, **tiny_qwen2_5_vl.prompt(*rows)}


def qwen_guidance() -> Inputs:
    guidance = tiny_qwen2_5_vl.random_guidance(BATCH)
    # These are ids of the language model, from whose vocabulary a test of upstream takes 15.
    guidance["guidance_input_ids"].clamp_(max=tiny_qwen2_5_vl.VOCABULARY - 16)
    return guidance


@dataclass(frozen=True)
class ModelCase:
    """A class of ours, and how to make a small config and a batch of three rows, an image in each."""

    name: str
    parent: type
    ours: type
    family: Family
    config: Callable[[], Any]
    inputs: Callable[[], Inputs]
    guidance: Callable[[], Inputs]


def segmentation_config(make: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: make(with_masks=True)


LLAVA_INPUTS, QWEN_INPUTS = (llava_inputs, llava_guidance), (qwen_inputs, qwen_guidance)
LLAVA_MASKS, QWEN_MASKS = segmentation_config(llava_config), segmentation_config(qwen_config)
LLAVA_HEAD, QWEN_HEAD = LlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration
MODEL_CASES = [
    ModelCase("llava", LlavaModel, LlavaLiteModel, LLAVA, llava_config, *LLAVA_INPUTS),
    ModelCase("llava_head", LLAVA_HEAD, LlavaLiteForConditionalGeneration, LLAVA, llava_config, *LLAVA_INPUTS),
    ModelCase("llava_masks", LLAVA_HEAD, LlavaLiteForReferringSegmentation, LLAVA, LLAVA_MASKS, *LLAVA_INPUTS),
    ModelCase("qwen", Qwen2_5_VLModel, Qwen2_5_VLLiteModel, QWEN2_5_VL, qwen_config, *QWEN_INPUTS),
    ModelCase("qwen_head", QWEN_HEAD, Qwen2_5_VLLiteForConditionalGeneration, QWEN2_5_VL, qwen_config, *QWEN_INPUTS),
    ModelCase("qwen_masks", QWEN_HEAD, Qwen2_5_VLLiteForReferringSegmentation, QWEN2_5_VL, QWEN_MASKS, *QWEN_INPUTS),
]
_tiles = (INTERNVL, internvl_config, internvl_inputs, qwen_guidance)
MODEL_CASES += [
    ModelCase("internvl", InternVLModel, InternVLLiteModel, *_tiles),
    ModelCase("internvl_head", InternVLForConditionalGeneration, InternVLLiteForConditionalGeneration, *_tiles),
]
for _family, _base in (
    (QWEN3_VL, Qwen3VLModel),
    (QWEN3_VL_MOE, Qwen3VLMoeModel),
    (QWEN3_5, Qwen3_5Model),
    (QWEN3_5_MOE, Qwen3_5MoeModel),
):
    _small = (_family, partial(qwen3_config, _family), *QWEN_INPUTS)
    MODEL_CASES += [
        ModelCase(_family.name, _base, _family.base_class, *_small),
        ModelCase(f"{_family.name}_head", _family.stock_class, _family.model_class, *_small),
    ]
_sa2va = (QWEN3_VL.stock_class, Qwen3_VLLiteForReferringSegmentation, QWEN3_VL, sa2va_config)
MODEL_CASES.append(ModelCase("sa2va", *_sa2va, *QWEN_INPUTS))


class SmallModel:
    """What upstream's tests ask of a `model_tester`: a config, a batch, and the sizes that these have."""

    batch_size = BATCH
    is_training = True

    def __init__(self, case: ModelCase, is_ours: bool, is_pruned: bool) -> None:
        self.case, self.is_ours, self.is_pruned = case, is_ours, is_pruned
        text = self.get_config().text_config
        self.hidden_size, self.vocab_size = text.hidden_size, text.vocab_size
        self.num_hidden_layers, self.num_attention_heads = text.num_hidden_layers, text.num_attention_heads
        self.seq_length = case.inputs()["input_ids"].shape[1]

    def get_config(self) -> Any:
        config = self.case.config()
        if self.is_pruned:
            config.pruning_budget = BUDGET
        if self.is_ours:
            return config
        stock = self.case.family.stock_config_class
        fields = set(stock.__dataclass_fields__)
        return stock(**{name: value for name, value in config.to_dict().items() if name in fields})

    def guidance(self) -> Inputs:
        return self.case.guidance() if self.is_pruned else {}

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, Inputs]:
        return self.get_config(), {**self.case.inputs(), **self.guidance()}


def named_as_parent(case: ModelCase, module: str) -> type:
    """Our class under the name of its parent."""
    return type(case.parent.__name__, (case.ours,), {"__module__": module})


def model_tests(case: ModelCase, is_ours: bool, is_pruned: bool = False) -> type[unittest.TestCase]:
    """Upstream's tests for the class of ours, or for its parent."""

    class ModelTests(ModelTesterMixin, unittest.TestCase):
        stock_class = case.parent
        all_model_classes = (case.ours if is_ours else case.parent,)
        _is_composite = True
        # Upstream tells the age of a model from the copyright line of its file; ours have none.
        test_can_init_all_missing_weights_before_2023 = True
        # The last layer of LLaVA's vision tower, guidance and what makes masks have no part in the loss.
        test_all_params_have_gradient = False

        def setUp(self) -> None:
            self.model_tester = SmallModel(case, is_ours, is_pruned)
            if is_ours and self._testMethodName.startswith(TESTS_BY_NAME):
                self.all_model_classes = (named_as_parent(case, case.ours.__module__),)
            if is_ours and self._testMethodName == TEST_BY_MODULE:
                self.all_model_classes = (named_as_parent(case, case.parent.__module__),)

        def _prepare_for_class(self, inputs_dict: Inputs, model_class: type, return_labels: bool = False) -> Inputs:
            return super()._prepare_for_class(copy.copy(inputs_dict), case.parent, return_labels)

        def _image_features_prepare_config_and_inputs(self) -> tuple[Any, Inputs]:
            config, inputs = super()._image_features_prepare_config_and_inputs()
            return config, {**inputs, **self.model_tester.guidance()}

        def _video_features_prepare_config_and_inputs(self) -> tuple[Any, Inputs]:
            config, inputs = super()._video_features_prepare_config_and_inputs()
            return config, {**inputs, **self.model_tester.guidance()}

    return ModelTests
