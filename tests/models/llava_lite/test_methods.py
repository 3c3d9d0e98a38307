"""Every registered method in the tiny model: prompts, batches, attention kernels, and an upstream left alone."""

import copy

import pytest
import torch
from transformers import LlavaModel

from tests.support.methods import METHODS, RAGGED
from tests.support.random_weights import asymmetric_
from tests.support.second_device import DEVICE, other_device
from tests.support.tiny_llava import NUM_TOKENS, prompt, random_guidance, random_pixels, tiny_config
from transformers_litelvlm import LlavaLiteForConditionalGeneration, PruningConfig
from transformers_litelvlm.models.guidance.encoded import Guidance
from transformers_litelvlm.models.guidance.vision_tower import TowerStates
from transformers_litelvlm.pruning.base import Selection


BUDGET = 5
ROWS = ([1, 5, "image", 6, "image", 7, 8], [1, 9, "image", 10, 11, 12])
NUM_IMAGES = 3


@pytest.fixture(scope="module")
def model():
    return asymmetric_(LlavaLiteForConditionalGeneration(tiny_config()))


def inputs():
    ids, mask = prompt(*ROWS)
    guidance, guidance_mask = random_guidance(NUM_IMAGES, 2)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": random_pixels(NUM_IMAGES),
        "guidance_input_ids": guidance,
        "guidance_attention_mask": guidance_mask,
    }


def set_pruning(model, name, options, **kwargs):
    model.config.pruning_config = PruningConfig(**{"method": name, "budget": BUDGET, **kwargs}, method_options=options)


def features_of(model, places=slice(None)):
    given = {name: value[places] for name, value in inputs().items() if name.startswith(("pixel", "guidance"))}
    with torch.no_grad():
        return model.model.get_image_features(**given)


@pytest.mark.parametrize("name, options", METHODS + RAGGED)
def test_images_alone_are_the_images_of_a_batch(model, name, options):
    set_pruning(model, name, options)
    together = features_of(model)
    for image in range(NUM_IMAGES):
        alone = features_of(model, slice(image, image + 1))
        assert alone.retained_indices[0].tolist() == together.retained_indices[image].tolist()
        torch.testing.assert_close(alone.pooler_output[0], together.pooler_output[image], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name, options", METHODS + RAGGED)
def test_attention_kernels_agree(model, name, options):
    set_pruning(model, name, options)
    sdpa = features_of(model)
    model.set_attn_implementation("eager")
    try:
        eager = features_of(model)
    finally:
        model.set_attn_implementation("sdpa")
    for image in range(NUM_IMAGES):
        assert eager.retained_indices[image].tolist() == sdpa.retained_indices[image].tolist()
        torch.testing.assert_close(eager.pooler_output[image], sdpa.pooler_output[image], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name, options", METHODS + RAGGED)
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("order", ["raster", "reference"])
def test_forward_and_generate(model, name, options, positions, order):
    """Rows with two images and one, so that ragged counts are padded again."""
    set_pruning(model, name, options, position_ids=positions, token_order=order)
    given = inputs()
    with torch.no_grad():
        output = model(**given)
        new = model.generate(**given, max_new_tokens=3, do_sample=False)
    kept = [len(indices) for indices in output.retained_indices]
    rows = [kept[0] + kept[1], kept[2]]
    texts = [len(row) - row.count("image") for row in ROWS]
    assert output.logits.shape[1] == given["input_ids"].shape[1]
    real = (output.logits != 0).any(-1).sum(1).tolist()
    assert real == [row + text for row, text in zip(rows, texts)]
    assert output.logits.isfinite().all() and new.shape[1] == given["input_ids"].shape[1] + 3
    assert new[:, -3].tolist() == output.logits[:, -1].argmax(-1).tolist()
    if order == "raster":
        assert all(indices.tolist() == sorted(indices.tolist()) for indices in output.retained_indices)


@pytest.mark.parametrize("name, options", METHODS)
def test_what_is_projected(model, name, options):
    """What is projected is the selection's features, or the tower's at its indices."""
    set_pruning(model, name, options)
    output = features_of(model)
    if output.merge_weights is None:
        tokens = torch.stack(
            [states[1:][kept] for states, kept in zip(output.last_hidden_state, output.retained_indices)]
        )
        projected = model.model.multi_modal_projector(tokens)
        torch.testing.assert_close(torch.stack(output.pooler_output), projected, atol=1e-6, rtol=1e-6)
    else:
        assert output.merge_weights.shape == (NUM_IMAGES, BUDGET, NUM_TOKENS)
        assert (output.last_hidden_state is None) == (name == "tome")


@pytest.fixture
def layer_runs(model):
    """How often each layer of the vision tower ran."""
    layers = model.model.vision_tower.encoder.layers
    counts = [0] * len(layers)

    def count(index):
        def hook(*args):
            counts[index] += 1

        return hook

    # Of the MLP: a layer whose keys a method reads, or that merges, runs in its parts.
    handles = [layer.mlp.register_forward_hook(count(index)) for index, layer in enumerate(layers)]
    yield counts
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name, options", METHODS + RAGGED)
def test_no_layer_runs_for_nothing(model, layer_runs, name, options):
    """Of three layers two make the features; each runs once, the last never, and merging replaces the stock run."""
    set_pruning(model, name, options)
    features_of(model)
    assert layer_runs == [1, 1, 0]


@pytest.mark.parametrize("name", ["fastv", "sparsevlm"])
def test_methods_inside_the_language_model_run_no_layer_for_nothing(model, layer_runs, name):
    """What they read of the pictures is upstream's to the last bit, also where upstream's own call has to give it."""
    set_pruning(model, name, {"layer": 1} if name == "fastv" else {})
    pixels = random_pixels(NUM_IMAGES)
    with torch.no_grad():
        ours = model.model.get_image_features(pixels)
        assert layer_runs == [1, 1, 0]
        stock = LlavaModel.get_image_features(model.model, pixels)
        whole = model.model.get_image_features(pixels, output_hidden_states=True)
        other_layer = model.model.get_image_features(pixels, vision_feature_layer=-1)
        set_pruning(model, name, {}, budget=None)
        layer_runs[:] = [0, 0, 0]
        unpruned = model.model.get_image_features(pixels)
    assert layer_runs == [1, 1, 1] and len(whole.hidden_states) == 4
    for features in (ours, whole, unpruned):
        assert all(map(torch.equal, features.pooler_output, stock.pooler_output))
    assert torch.equal(ours.last_hidden_state, whole.hidden_states[-2])
    assert not torch.equal(other_layer.pooler_output[0], stock.pooler_output[0])


@pytest.mark.parametrize("name", ["cdpruner", "divprune"])
def test_methods_that_look_at_projected_tokens_project_once(model, name):
    set_pruning(model, name, {})
    shapes = []
    hook = lambda module, args, output: shapes.append(tuple(args[0].shape))  # noqa: E731
    handle = model.model.multi_modal_projector.register_forward_hook(hook)
    expected = features_of(model)
    assert shapes == [(NUM_IMAGES, NUM_TOKENS, 32)]
    handle.remove()
    with other_device(), torch.no_grad():
        there = copy.deepcopy(model).to(DEVICE)
        handle = there.model.multi_modal_projector.register_forward_hook(hook)
        names = [name for name in inputs() if name.startswith(("pixel", "guidance"))]
        output = there.model.get_image_features(**{name: inputs()[name].to(DEVICE) for name in names})
        handle.remove()
        assert len(shapes) == 2 and output.retained_indices.tolist() == expected.retained_indices.tolist()
        for ours, theirs in zip(output.pooler_output, expected.pooler_output):
            torch.testing.assert_close(ours.cpu(), theirs)


def test_wrong_indices_of_projected_tokens_become_nan_elsewhere():
    class Evidence:
        known_projection = torch.ones(3, 6, 4)

    with other_device():
        evidence = Evidence()
        evidence.known_projection = Evidence.known_projection.to(DEVICE)
        indices = torch.tensor([[0, 2], [3, 3]]).to(DEVICE)
        checked = Selection(indices).checked(evidence, (2, 6), "careless", 2, slice(1, 3))
        assert checked.features is None and checked.indices.tolist() == [[0, 2], [0, 1]]
        assert evidence.known_projection.cpu().isnan().flatten(1).all(1).tolist() == [False, False, True]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_layer_in_its_parts_is_upstreams_layer(model, attention):
    tower = model.model.vision_tower
    model.set_attn_implementation(attention)
    try:
        with torch.no_grad():
            parts, whole = (TowerStates.of(tower, random_pixels(NUM_IMAGES), 2) for _ in range(2))
            query, keys = parts.class_query_and_keys(1)
            upstream = tower(random_pixels(NUM_IMAGES), output_hidden_states=True).hidden_states[2]
            assert torch.equal(parts.known_features, upstream) and torch.equal(whole.features, upstream)
            again = whole.class_query_and_keys(1)
            assert torch.equal(again[0], query) and torch.equal(again[1], keys)
            part = TowerStates.of(tower, random_pixels(NUM_IMAGES), 2).rows([2, 0, 0])
            assert torch.equal(part.class_query_and_keys(1)[1], keys[[2, 0, 0]])
    finally:
        model.set_attn_implementation("sdpa")
    with torch.enable_grad():
        trained = TowerStates.of(tower, random_pixels(1), 2)
        trained.class_query_and_keys(1)
        assert trained.known_features is None


def test_a_sweep_over_methods_runs_each_layer_once(model, layer_runs):
    """Whichever method comes first: `random` reads the features before `visionzip` asks what the last layer read."""
    given = inputs()
    guidance = Guidance.of(given)
    with torch.no_grad():
        encoded = model.model.encode("image", {"pixel_values": given["pixel_values"]})
        for name, options in sorted(METHODS, key=lambda method: method[0] != "random"):
            set_pruning(model, name, options)
            swept = model.model.select(encoded, guidance)
            assert len(swept.pooler_output) == NUM_IMAGES
    runs = 1 + sum(name == "tome" for name, _ in METHODS)  # it changes what the layers read
    assert layer_runs == [runs, runs, 0]


def test_running_layers_with_nothing_between_is_the_tower(model):
    tower = model.model.vision_tower
    states = TowerStates.of(tower, random_pixels(2), 2)
    calls = []

    def between(states, keys):
        calls.append(keys.shape)
        return states, None

    with torch.no_grad():
        expected = tower(random_pixels(2), output_hidden_states=True).hidden_states
        torch.testing.assert_close(states.run_layers(between), expected[2], atol=1e-5, rtol=1e-5)
        assert calls == [(2, 4, 1 + NUM_TOKENS, 8)] * 2
        for layer in range(3):
            torch.testing.assert_close(states.after(layer), expected[layer], atol=1e-6, rtol=1e-6)
        # A part of the images is computed with the whole, in whatever order it is asked for.
        whole = TowerStates.of(tower, random_pixels(2), 2)
        part = whole.rows([1, 1, 0])
        torch.testing.assert_close(part.features, expected[2][[1, 1, 0]], atol=1e-6, rtol=1e-6)
        assert whole.known_features is not None


def test_a_grid_that_is_not_square(model):
    """64 x 32 pixels, 8 x 4 tokens."""
    guidance, mask = random_guidance(1)
    for name, options in METHODS:
        set_pruning(model, name, options, budget=9)
        with torch.no_grad():
            output = model.model.get_image_features(
                torch.randn(1, 3, 64, 32, generator=torch.Generator().manual_seed(0)),
                guidance_input_ids=guidance,
                guidance_attention_mask=mask,
                interpolate_pos_encoding=True,
            )
        kept = output.retained_indices[0].tolist()
        assert len(set(kept)) == 9 and 0 <= min(kept) and max(kept) < 32


def test_a_budget_that_two_layers_cannot_reach(model):
    set_pruning(model, "tome", {}, budget=3)
    with pytest.raises(ValueError, match="`budget` 3 of 16 .* 4 to 16 are"):
        features_of(model)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_gaps_in_positions_are_not_packed_sequences(model, positions):
    """One row without padding, so that no attention mask, with or without a cache, means the same as one of ones."""
    set_pruning(model, "uniform", {}, position_ids=positions)
    ids, mask = prompt([1, 5, "image", 7, 8])
    expected = model(input_ids=ids, attention_mask=mask, pixel_values=random_pixels(1), use_cache=False).logits
    for use_cache in (True, False):
        actual = model(input_ids=ids, pixel_values=random_pixels(1), use_cache=use_cache).logits
        torch.testing.assert_close(actual, expected)
