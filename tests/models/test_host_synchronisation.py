"""From the vision tower to the first decoder layer, nothing waits for the device."""

import copy
from contextlib import contextmanager

import pytest
import torch

from tests.models.llava_lite.tiny import IMAGE_TOKEN, asymmetric_, prompt, random_guidance, random_pixels, tiny_config
from tests.other_device import DEVICE, other_device
from transformers_litelvlm import LlavaLiteForConditionalGeneration
from transformers_litelvlm.pruning import get_pruner, list_pruners


# Nothing is pruned before the decoder: inside it, the length of the question decides shapes.
METHODS = [name for name in list_pruners() if name != "none" and not get_pruner(name).is_inside_language_model]


@contextmanager
def from_tower_to_decoder(model, begin, end):
    """Calls `begin` before the vision tower, and `end` before the first decoder layer."""
    base = model.model
    handles = [
        base.vision_tower.embeddings.register_forward_pre_hook(lambda *args: begin()),
        base.language_model.layers[0].register_forward_pre_hook(lambda *args: end()),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(model, inputs, call):
    """What the host waits for, by a copy of `model` on another device. `call` gives what to call, for a model."""
    with other_device() as waits, torch.no_grad():
        model = copy.deepcopy(model).to(DEVICE)
        inputs = {name: value.to(DEVICE) for name, value in inputs.items()}
        marks = []
        with from_tower_to_decoder(model, *[lambda: marks.append(len(waits))] * 2):
            call(model)(**inputs)
        begin, end = marks
        return waits[begin:end]


@pytest.fixture(scope="module")
def model():
    return asymmetric_(LlavaLiteForConditionalGeneration(tiny_config()))


def inputs_of(num_expressions=2, **kwargs):
    ids, mask = prompt([1, 5, "image", 6, 7, 8], [1, 9, "image", 10, 11], **kwargs)
    guidance_ids, guidance_mask = random_guidance(2, num_expressions)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": random_pixels(2),
        "guidance_input_ids": guidance_ids,
        "guidance_attention_mask": guidance_mask,
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("policy", [("reference", "compact"), ("raster", "original")])
@pytest.mark.parametrize("num_expressions", [1, 3])
def test_litelvlm(model, policy, side, attention, num_expressions):
    model.set_attn_implementation({"text_config": attention, "vision_config": attention})
    order, positions = policy
    model.config.pruning_config = model.config.pruning_config.replace(
        method="litelvlm", budget=5, token_order=order, position_ids=positions
    )
    inputs = inputs_of(num_expressions, padding_side=side)
    assert run(model, inputs, lambda model: model.model) == []
    assert run(model, inputs, lambda model: model) == []


@pytest.mark.parametrize("method", METHODS)
def test_every_method_before_the_decoder(model, method):
    model.set_attn_implementation("sdpa")
    model.config.pruning_config = model.config.pruning_config.replace(method=method, budget=5)
    assert run(model, inputs_of(), lambda model: model) == []


def test_upstreams_own_route_is_caught(model):
    """The check can fail: upstream compares numbers of placeholders, and looks whether the mask is needed."""
    model.config.pruning_config = model.config.pruning_config.replace(method="litelvlm", budget=5)

    def upstream(model):
        def call(pixel_values, guidance_input_ids, guidance_attention_mask, input_ids, attention_mask):
            guidance = {
                "guidance_input_ids": guidance_input_ids,
                "guidance_attention_mask": guidance_attention_mask,
            }
            features = model.get_image_features(pixel_values, **guidance)
            plain = type(features).__mro__[1](pooler_output=features.pooler_output)
            model.model(input_ids=input_ids, attention_mask=attention_mask, mm_encoder_outputs={"image": plain})

        return call

    ids, mask = prompt([1, 5, *[IMAGE_TOKEN] * 5, 6], [1, 9, *[IMAGE_TOKEN] * 5, 10])
    waits = run(model, {**inputs_of(), "input_ids": ids, "attention_mask": mask}, upstream)
    assert len(waits) >= 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("method", METHODS)
def test_cuda_itself_agrees(method):
    model = asymmetric_(LlavaLiteForConditionalGeneration(tiny_config())).cuda()
    model.config.pruning_config = model.config.pruning_config.replace(method=method, budget=5)
    inputs = {name: value.cuda() for name, value in inputs_of().items()}
    with torch.no_grad():
        model(**inputs)  # the first call loads kernels and libraries
        with from_tower_to_decoder(
            model, lambda: torch.cuda.set_sync_debug_mode("error"), lambda: torch.cuda.set_sync_debug_mode("default")
        ):
            try:
                model(**inputs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
