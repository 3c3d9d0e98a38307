"""From the vision tower to the first decoder layer, nothing waits for the device; where masks are made, to the end."""

import copy
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from transformers import AutoProcessor

from tests.support.families import LLAVA
from tests.support.family_cases import BUDGET, NUM_LAYERS, can_reach
from tests.support.mask_cases import DIALOGUES, PICTURES, SENTENCES, masks_case
from tests.support.matrix import matrix
from tests.support.methods import LAYER_METHODS, ONE_OF_EACH_KIND
from tests.support.second_device import DEVICE, other_device
from tests.support.tiny_llava import (
    IMAGE_TOKEN,
    prompt,
    random_guidance,
    random_pixels,
)
from tests.support.tiny_sa2va import convert
from tests.support.tiny_unipixel import tiny_checkpoint
from transformers_litelvlm import AutoModelForReferringSegmentation, PruningConfig
from transformers_litelvlm.pruning import get_pruner, list_pruners
from transformers_litelvlm.pruning.layers import LayerPruner


METHODS = [
    (name, {}) for name in list_pruners() if name != "none" and not issubclass(get_pruner(name), LayerPruner)
] + [method for method in LAYER_METHODS if can_reach(LLAVA, *method)]
METHOD = pytest.mark.parametrize("name, options", matrix(METHODS, lambda case: case[0] in ONE_OF_EACH_KIND), ids=str)


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
    return LLAVA.model(NUM_LAYERS)


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


@pytest.mark.parametrize("attention", matrix(["sdpa", "eager"], "sdpa".__eq__))
@pytest.mark.parametrize("side", matrix(["left", "right"], "left".__eq__))
@pytest.mark.parametrize("policy", [("reference", "compact"), ("raster", "original")])
@pytest.mark.parametrize("num_expressions", [1, 3])
def test_litelvlm(model, policy, side, attention, num_expressions):
    model.set_attn_implementation({"text_config": attention, "vision_config": attention})
    order, positions = policy
    model.config.pruning_config = PruningConfig(budget=5, token_order=order, position_ids=positions)
    inputs = inputs_of(num_expressions, padding_side=side)
    assert run(model, inputs, lambda model: model.model) == []
    assert run(model, inputs, lambda model: model) == []


@METHOD
def test_every_method(model, name, options):
    model.set_attn_implementation("sdpa")
    model.config.pruning_config = PruningConfig(method=name, method_options=options, budget=BUDGET)
    assert run(model, inputs_of(), lambda model: model) == []


def test_upstreams_own_route_is_caught(model):
    """The check can fail: upstream compares numbers of placeholders, and looks whether the mask is needed."""
    model.config.pruning_config = PruningConfig(budget=5)

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


MASKS = pytest.mark.parametrize(
    "pruning",
    [
        {"budget": 6},
        {"budget": 6, "method": "visionzip", "token_order": "raster", "position_ids": "original"},
        {"budget": 6, "method": "fastv", "method_options": {"layer": 1}},
    ],
    ids=str,
)


@DIALOGUES
@MASKS
def test_masks(dialogues, pruning):
    model, inputs = masks_case(dialogues, pruning)
    with other_device() as waits:
        model, inputs = model.to(DEVICE), inputs.to(DEVICE)
        waits.clear()
        begun = []
        with from_tower_to_decoder(model, lambda: begun.append(len(waits)), lambda: None):
            output = model.segment(**inputs)
        assert len(waits) == begun[0] <= 7  # shapes are asked for before the tower
        assert output.masks[0].device == DEVICE


@DIALOGUES
@pytest.mark.parametrize("overlap", [False, True])
def test_inputs_from_the_host(dialogues, overlap):
    """`segment` brings them to the device itself, without waiting for copies; what shapes follow from is asked."""
    model, inputs = masks_case(dialogues, {"budget": 6})
    given = dict(inputs)
    how = {"pin_memory": True, "overlap_masks": overlap}
    expected, here = model.segment(**inputs), model.segment(**inputs, **how)
    assert all(map(torch.equal, here.mask_logits, expected.mask_logits))
    with other_device() as waits:
        model = model.to(DEVICE)
        waits.clear()
        begun = []
        with from_tower_to_decoder(model, lambda: begun.append(len(waits)), lambda: None):
            output = model.segment(**inputs, **how)
        assert len(waits) == begun[0] <= 3
        there = model.segment(**inputs.to(DEVICE))
        for ours, theirs in zip(output.mask_logits, there.mask_logits, strict=True):
            assert ours.device == DEVICE and torch.equal(ours.cpu(), theirs.cpu())
    assert all(value.is_cpu for value in given.values())


@pytest.mark.parametrize("pruning", [{"budget": 6}, {"budget": 6, "method": "divprune"}], ids=str)
@pytest.mark.parametrize("make", [tiny_checkpoint, partial(convert, "qwen3_vl")], ids=["unipixel", "sa2va"])
def test_masks_of_qwen(tmp_path, pruning, make):
    """Its positions are upstream's, which ask for them; from the first decoder layer on, nothing waits."""
    checkpoint = make(tmp_path)
    model = AutoModelForReferringSegmentation.from_pretrained(checkpoint).eval()
    model.config.pruning_config = PruningConfig(**pruning)
    inputs = AutoProcessor.from_pretrained(checkpoint).segmentation_inputs(images=PICTURES, expressions=SENTENCES)
    with other_device() as waits:
        model, inputs = model.to(DEVICE), inputs.to(DEVICE)
        reached = []
        handle = model.model.language_model.layers[0].register_forward_pre_hook(
            lambda *args: reached.append(len(waits))
        )
        model.segment(**inputs)
        handle.remove()
        # Upstream's DeepStack looks for the visual tokens by a mask, once for each of the two layers.
        of_deepstack = [wait for wait in waits[reached[0] :] if wait.startswith(("index [(4, ", "index_put_ [(4, "))]
        assert len(of_deepstack) <= 4 and waits[reached[0] :] == of_deepstack


def needs_cuda(test):
    """A mark for `make gpu-report` too."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")(test))


@contextmanager
def waiting_is_an_error(model, until_decoder):
    def end():
        torch.cuda.set_sync_debug_mode("default")

    with from_tower_to_decoder(
        model, lambda: torch.cuda.set_sync_debug_mode("error"), end if until_decoder else lambda: None
    ):
        try:
            yield
        finally:
            end()


@needs_cuda
@METHOD
def test_cuda_itself_agrees(name, options):
    model = LLAVA.model(NUM_LAYERS).cuda()
    model.config.pruning_config = PruningConfig(method=name, method_options=options, budget=BUDGET)
    inputs = {name: value.cuda() for name, value in inputs_of().items()}
    with torch.no_grad():
        model(**inputs)  # the first call loads kernels and libraries
        with waiting_is_an_error(model, until_decoder=True):
            model(**inputs)


@needs_cuda
@DIALOGUES
@MASKS
def test_cuda_itself_agrees_on_masks(dialogues, pruning):
    model, inputs = masks_case(dialogues, pruning)
    model, inputs = model.cuda(), inputs.to("cuda")
    model.segment(**inputs)
    with waiting_is_an_error(model, until_decoder=False):
        model.segment(**inputs)


@needs_cuda
@DIALOGUES
def test_cuda_itself_agrees_on_inputs_from_the_host(dialogues):
    model, inputs = masks_case(dialogues, {"budget": 6})
    model = model.cuda()
    expected = model.segment(**inputs, pin_memory=True)
    with waiting_is_an_error(model, until_decoder=False):
        output = model.segment(**inputs, pin_memory=True)
    assert all(map(torch.equal, output.mask_logits, expected.mask_logits))
