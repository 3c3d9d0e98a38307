"""What is special to the LLaVA family; what holds for every family is in tests/models/test_families.py."""

import copy

import pytest
import torch

from tests.support.random_weights import asymmetric_
from tests.support.tiny_llava import prompt, random_guidance, random_pixels, tiny_config
from transformers_litelvlm import LlavaLiteForConditionalGeneration, PruningConfig


BUDGET = 5
# Rows with two images, one image and none, of different lengths.
ROWS = ([1, 5, "image", 6, "image", 7, 8], [1, 9, "image", 10, 11, 12], [1, 13, 14])
NUM_IMAGES = 3


@pytest.fixture(scope="module")
def model():
    return asymmetric_(LlavaLiteForConditionalGeneration(tiny_config()))


@pytest.fixture(autouse=True)
def pruning_off(model):
    model.config.pruning_config = PruningConfig()


def lite_inputs():
    ids, mask = prompt(*ROWS)
    sentences, sentence_mask = random_guidance(NUM_IMAGES, 2)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": random_pixels(NUM_IMAGES),
            "guidance_input_ids": sentences, "guidance_attention_mask": sentence_mask}  # fmt: skip


def set_pruning(model, **kwargs):
    model.config.pruning_config = PruningConfig(**{"budget": BUDGET, **kwargs})


def test_the_last_layer_of_the_tower_never_runs(model):
    set_pruning(model, method_options={"context_share": 0.5})
    calls = []
    handles = [
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(model.model.vision_tower.encoder.layers)
    ]
    model(**lite_inputs())
    for handle in handles:
        handle.remove()
    assert calls == [0, 1]  # of three


def test_only_the_kept_tokens_are_projected(model):
    set_pruning(model)
    shapes = []
    hook = lambda module, args, output: shapes.append(tuple(args[0].shape))  # noqa: E731
    handle = model.model.multi_modal_projector.register_forward_hook(hook)
    model(**lite_inputs())
    handle.remove()
    assert shapes == [(NUM_IMAGES, BUDGET, 32)]


def test_gradients_reach_the_projector_but_not_the_unused_layer(model):
    trained = copy.deepcopy(model)
    set_pruning(trained)
    inputs = lite_inputs()
    trained(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in trained.model.multi_modal_projector.parameters())
    unused = trained.model.vision_tower.encoder.layers[-1]  # the last CLIP layer is not part of the model's function
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in unused.parameters())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vision_feature_layer": -1}, "`vision_feature_layer` before the last of 3 layers, got -1"),
        ({"vision_feature_layer": [-2, -3]}, "one `vision_feature_layer`"),
        ({"vision_feature_select_strategy": "full"}, "`vision_feature_select_strategy='default'`, got 'full'"),
    ],
)
def test_features_that_pruning_is_not_defined_for(model, change, message):
    set_pruning(model)
    with pytest.raises(ValueError, match=message):
        model(**lite_inputs(), **change)


def test_ratios_follow_the_grid_of_the_image(model):
    """A ratio is resolved from the pictures at hand, not from a number in the config."""
    set_pruning(model, budget=None, retention_ratio=0.5)
    pixels = torch.randn(1, 3, 64, 32)
    guidance, mask = random_guidance(1)
    output = model.get_image_features(
        pixels, guidance_input_ids=guidance, guidance_attention_mask=mask, interpolate_pos_encoding=True
    )
    assert output.retained_indices.shape == (1, 16)


@torch.no_grad()
def test_features_may_be_asked_for_states_that_pruning_does_not_keep(model):
    """As upstream's `get_image_features` may be: with the same features, whatever else is asked for."""
    set_pruning(model)
    given = {name: value for name, value in lite_inputs().items() if name not in ("input_ids", "attention_mask")}
    expected = model.get_image_features(**given)
    output = model.get_image_features(**given, output_hidden_states=True, output_attentions=True)
    assert all(torch.equal(kept, other) for kept, other in zip(output.pooler_output, expected.pooler_output))
    assert output.hidden_states is None and output.attentions is None
