"""What is special to InternVL: images in tiles, and guidance by its own vision tower."""

import re

import pytest
import torch

from tests.support import tiny_internvl as tiny
from tests.support.families import INTERNVL, picture
from tests.support.planted_pictures import PLAIN, PLANTED, auroc
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.models.guidance.encoded import NO_SENTENCES
from transformers_litelvlm.models.guidance.frames import group_frames


PROMPT = "<|im_start|>user\n<IMG_CONTEXT>\nWhere?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model().eval()


@pytest.fixture(autouse=True)
def pruning_off(model):
    model.config.pruning_config = PruningConfig()


def planted(size, box):
    image = picture(*size).copy()
    image.paste(PLAIN, (0, 0, *size))
    image.paste(PLANTED, box)
    return image


def plain_inputs(processor, image, sentence="x"):
    return processor(images=[image], text=PROMPT, expressions=[sentence], return_tensors="pt")


@torch.no_grad()
def test_scores_find_what_is_planted_in_a_picture_of_tiles():
    """Across the border of two tiles, from pixels to kept tokens; the weights know one colour from another, no places.

    The picture has 3 x 2 tiles of 4 x 4 visual tokens, 8 pixels each, and a thumbnail.
    """
    model, processor = tiny.tiny_model().eval(), tiny.tiny_processor()
    base, layer = model.model, model.model.vision_tower.encoder.layer[-1]
    base.vision_tower.embeddings.position_embeddings.zero_()
    size, box, keys, tokens = (96, 64), (24, 16, 48, 40), [], []
    handle = layer.attention.k_proj.register_forward_hook(lambda module, args, output: keys.append(output))
    for colour_box in ((0, 0, *size), (0, 0, 0, 0)):
        inputs = plain_inputs(processor, planted(size, colour_box))
        tokens.append(base.get_image_features(inputs["pixel_values"]).pooler_output.mean((0, 1)))
    handle.remove()
    means = [each[:, 1:].mean((0, 1)) for each in keys]
    layer.attention.q_proj.weight.zero_()
    layer.attention.q_proj.bias.copy_(means[0] - means[1])
    inputs = plain_inputs(processor, planted(size, box))
    base.get_input_embeddings().weight[int(inputs["guidance_input_ids"][0, 0, 0])] = tokens[0] - tokens[1]

    grid, places = processor.grid_on_picture(inputs, size)
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[2:5, 3:6] = True  # the box in visual tokens
    of_tiles = torch.tensor(places[places >= 0])
    options = {"ranking": "forward", "context_share": 0.5}
    found = model(**inputs, pruning_config=PruningConfig(budget=20, method_options=options)).image_outputs
    for scores in (found.similarity[0][0], found.context_scores[0]):
        on_picture = torch.empty(mask.numel())
        on_picture[of_tiles] = scores[: mask.numel()]
        assert auroc(on_picture, mask) > 0.95
        assert auroc(on_picture, mask.flip(0)) < 0.9
    assert [float(part.sum()) for part in found.context_scores[0].split(16)] == pytest.approx([1] * 7, abs=1e-3)


@pytest.mark.parametrize("budget", [1, 5, 6, 20, 47])
def test_a_budget_is_spread_evenly_over_tiles(model, budget):
    """The images have 1, 3 and 2 tiles of 16 tokens."""
    kept = model(**INTERNVL.lite_inputs(), pruning_config=PruningConfig(budget=budget)).retained_indices
    for tiles, indices in zip(INTERNVL.tiles, kept, strict=True):
        counts = torch.bincount(indices // tiny.NUM_TOKENS, minlength=tiles)
        assert len(indices) == min(budget, tiles * tiny.NUM_TOKENS) == counts.sum()
        assert counts.max() - counts.min() <= 1


@torch.no_grad()
def test_without_the_number_of_tiles_each_is_an_image(model):
    """As the inputs of the stock processor are."""
    inputs = INTERNVL.inputs()
    settings = PruningConfig(method="divprune", budget=4)
    kept = model(**inputs, pruning_config=settings).retained_indices
    assert [len(indices) for indices in kept] == [4] * sum(INTERNVL.tiles)
    with_tiles = model(**inputs, num_tiles=torch.ones(6, dtype=torch.long), pruning_config=settings)
    assert [row.tolist() for row in with_tiles.retained_indices] == [row.tolist() for row in kept]


@torch.no_grad()
@pytest.mark.parametrize("method", ["litelvlm", "fastv"])
def test_features_of_tiles_that_were_encoded_before(model, method):
    """Upstream's features have an entry for each tile, and the budget is of an image all the same."""
    options = {"layer": 1} if method == "fastv" else {}
    settings, inputs = PruningConfig(method=method, method_options=options, budget=9), INTERNVL.lite_inputs()
    features = model.get_image_features(inputs["pixel_values"], num_tiles=inputs["num_tiles"])
    assert len(features.pooler_output) == 6
    given = {n: v for n, v in inputs.items() if n != "pixel_values"} | {"mm_encoder_outputs": {"image": features}}
    if method == "litelvlm":  # was not pruned when it was encoded
        assert torch.equal(model(**given).logits, model(**inputs).logits)
        return
    expected = model(**inputs, pruning_config=settings)
    output = model(**given, pruning_config=settings)
    assert [len(kept) for kept in output.retained_indices] == [9, 9, 9]
    torch.testing.assert_close(output.logits, expected.logits)
    new = model.generate(**given, pruning_config=settings, max_new_tokens=3, do_sample=False)
    assert torch.equal(new, model.generate(**inputs, pruning_config=settings, max_new_tokens=3, do_sample=False))


@torch.no_grad()
@pytest.mark.parametrize("layer", [-1, -2, -3, 1, 3])
def test_every_layer_of_the_tower(model, layer):
    """The evidence has upstream's tokens of that layer, and the states that the layer read."""
    pixels = tiny.random_tiles(2)
    encoded = model.model.encode("image", {"pixel_values": pixels, "vision_feature_layer": layer})
    stock = tiny.stock_twin(model)
    assert torch.equal(encoded.tokens, stock.get_image_features(pixels, vision_feature_layer=layer).pooler_output)
    states = stock.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    index = layer if layer >= 0 else 4 + layer
    assert (
        torch.equal(encoded._states, states[index - 1])
        and encoded._layer is model.model.vision_tower.encoder.layer[index - 1]
    )
    inputs = INTERNVL.lite_inputs()
    kept = model(**inputs, vision_feature_layer=layer, pruning_config=PruningConfig(budget=5)).retained_indices
    assert [len(indices) for indices in kept] == [5, 5, 5]


def test_numbers_of_tiles_as_a_list(model):
    inputs = {**INTERNVL.lite_inputs(), "num_tiles": list(INTERNVL.tiles)}
    assert [len(kept) for kept in model(**inputs, pruning_config=PruningConfig(budget=5)).retained_indices] == [5] * 3


@pytest.mark.parametrize("tiles", [[1, 3, 3], [6, 0], [7], [7, -1]])
def test_numbers_of_tiles_that_do_not_fit(model, tiles):
    inputs = {**INTERNVL.lite_inputs(), "num_tiles": torch.tensor(tiles)}
    with pytest.raises(ValueError, match=r"`num_tiles` is \[.*\], but `pixel_values` holds 6 tiles"):
        model(**inputs, pruning_config=PruningConfig(budget=3))


@torch.no_grad()
def test_context_is_the_attention_that_upstreams_layer_gives():
    """Without the class token, whose query and key are left out."""
    model = tiny.tiny_model().eval()
    layer, seen = model.model.vision_tower.encoder.layer[-1], {}
    for name in ("q_proj", "k_proj"):
        module = getattr(layer.attention, name)
        module.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output}))
    model.model.vision_tower(tiny.random_tiles(2))
    heads = {n: v[:, 1:].unflatten(-1, (4, 8)).transpose(1, 2) for n, v in seen.items()}
    received = ((heads["q_proj"] @ heads["k_proj"].mT) / 8**0.5).softmax(-1).mean((1, 2))  # (tiles, patches)
    expected = received.view(2, 4, 2, 4, 2).sum((2, 4)).flatten(1)  # 2 x 2 patches are a token
    encoded = model.model.encode("image", {"pixel_values": tiny.random_tiles(2), "num_tiles": torch.tensor([2])})
    [group] = group_frames(encoded.grids, [4])
    evidence = encoded.evidence(group, NO_SENTENCES)
    torch.testing.assert_close(evidence.context_scores(), expected, atol=1e-6, rtol=1e-5)
    keys = heads["k_proj"].mean(1).view(2, 4, 2, 4, 2, 8).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(evidence.attention_and_keys()[1], keys, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", ["cls_attention", "visionzip"])
def test_methods_of_a_class_token_are_refused_or_use_the_tower(model, method):
    """VisionZip reads the attention that every token receives where there is no class token."""
    inputs, settings = INTERNVL.lite_inputs(), PruningConfig(method=method, budget=4)
    if method == "visionzip":
        assert [len(kept) for kept in model(**inputs, pruning_config=settings).retained_indices] == [4] * 3
        return
    with pytest.raises(ValueError, match="is not defined for InternVL: it reads the class token"):
        model(**inputs, pruning_config=settings)


@pytest.mark.parametrize("layer", [4, [1, 2]])
def test_layers_that_there_are_not(model, layer):
    with pytest.raises(
        ValueError, match=rf"needs one `vision_feature_layer` of 3 layers, got {re.escape(str(layer))}"
    ):
        model.model.encode("image", {"pixel_values": tiny.random_tiles(1), "vision_feature_layer": layer})
