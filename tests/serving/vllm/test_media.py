"""The parts of our models beside vLLM's language model do what they do in the whole model."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_llava import random_guidance, random_pixels, tiny_grounding_model
from tests.support.tiny_qwen2_5_vl import QWEN2_5_VL, random_media
from tests.support.tiny_qwen2_5_vl import random_guidance as qwen_guidance
from tests.support.tiny_qwen3_vl import QWEN3_VL
from transformers_litelvlm.pruning.registry import list_pruners
from transformers_litelvlm.serving.vllm.media import embed_images, lend_embeddings, media_model, renamed, stacked
from transformers_litelvlm.serving.vllm.requested import requested
from transformers_litelvlm.serving.vllm.servable import check_settings, image_grid, num_placeholders


def with_weights_of(model):
    """The parts, loaded as vLLM loads them: by the renamed weights of a checkpoint."""
    media = media_model(type(model), model.config)
    weights = {renamed(name): weight for name, weight in model.state_dict().items()}
    own = {name.removeprefix("media."): weight for name, weight in weights.items() if name.startswith("media.")}
    media.load_state_dict(own)
    lend_embeddings(media, model.get_input_embeddings())
    left = {name for name in weights if not name.startswith("media.")}
    assert left and all(name.startswith("language_model.") for name in left)
    return media


@pytest.mark.parametrize("budget", [5, None])
def test_llava(budget):
    model = tiny_grounding_model(pruning_config={"budget": budget})
    ids, mask = random_guidance(2, 2)
    inputs = {"pixel_values": random_pixels(2), "guidance_input_ids": ids, "guidance_attention_mask": mask}
    media = with_weights_of(model)
    with torch.no_grad():
        embeds, indices = embed_images(media, dict(inputs))
        expected = model.model.get_image_features(**inputs, return_dict=True)
    for rows, others in zip(embeds, expected.pooler_output, strict=True):
        torch.testing.assert_close(rows, others, rtol=0, atol=0)
    if budget is None:
        assert indices is None
    else:
        assert (indices == expected.retained_indices).all()
    names = {name.partition(".")[0] for name, _ in media.named_parameters()}
    assert names == {"model", "text_hidden_fcs", "mask_model"}
    assert not any("language_model" in name or "embed_tokens" in name for name, _ in media.named_parameters())


@pytest.mark.parametrize("family", [QWEN2_5_VL, QWEN3_VL], ids=["qwen2_5_vl", "qwen3_vl"])
def test_qwen(family):
    model = family.tiny_model(pruning_config={"retention_ratio": 0.5})
    pixels, grid_thw = random_media([(1, 4, 6), (1, 3, 3)])
    inputs = {"pixel_values": pixels, "image_grid_thw": grid_thw, **qwen_guidance(2)}
    media = with_weights_of(model)
    with torch.no_grad():
        embeds, indices = embed_images(media, dict(inputs))
        expected = model.model.get_image_features(**inputs, return_dict=True)
    width, layers = model.config.text_config.hidden_size, expected.deepstack_features or []
    for image, rows in enumerate(embeds):
        parts = [expected.pooler_output[image], *(of_layer[image] for of_layer in layers)]
        assert rows.shape == (len(parts[0]), width * (1 + media.model.num_deepstack))
        torch.testing.assert_close(rows, torch.cat(parts, dim=-1), rtol=0, atol=0)
        assert indices[image].tolist() == expected.retained_indices[image].tolist()


@pytest.mark.parametrize("is_qwen", [False, True])
def test_every_method_keeps_as_many_tokens_as_there_are_placeholders(is_qwen):
    """A request may ask for any of them, and a wrong number would end vLLM's engine, not the request alone."""
    if is_qwen:
        model = QWEN2_5_VL.tiny_model(pruning_config={"retention_ratio": 0.5})
        pixels, grid_thw = random_media([(1, 4, 6), (1, 3, 3)])
        inputs, grids = {"pixel_values": pixels, "image_grid_thw": grid_thw, **qwen_guidance(2)}, list(grid_thw)
    else:
        model = tiny_grounding_model(pruning_config={"budget": 5})
        ids, mask = random_guidance(2, 2)
        inputs = {"pixel_values": random_pixels(2), "guidance_input_ids": ids, "guidance_attention_mask": mask}
        grids = [None, None]
    media, tried = with_weights_of(model), 0
    for method in list_pruners():
        for size in ({"budget": 1}, {"budget": 8}, {"budget": 15}, {"retention_ratio": 0.3}, {"budget": 500}):
            try:
                pruning = requested(model.config, {"pruning_config": {"method": method, **size}})
            except ValueError:
                continue
            settings, tried = check_settings(model.config, pruning), tried + 1
            with torch.no_grad():
                embeds, _ = embed_images(media, {**inputs, "pruning_config": pruning})
            expected = [num_placeholders(settings, image_grid(model.config, grid)) for grid in grids]
            assert [len(rows) for rows in embeds] == expected, (method, size)
    assert tried >= 30


@pytest.mark.parametrize(
    ("name", "new"),
    [
        # Ours, and stock ones of transformers 5.
        ("model.language_model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight"),
        ("model.vision_tower.embeddings.x", "media.model.vision_tower.embeddings.x"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        # Stock ones from before.
        ("language_model.model.norm.weight", "language_model.model.norm.weight"),
        ("language_model.lm_head.weight", "language_model.lm_head.weight"),
        ("vision_tower.vision_model.embeddings.x", "media.model.vision_tower.embeddings.x"),
        ("multi_modal_projector.linear_1.weight", "media.model.multi_modal_projector.linear_1.weight"),
        ("visual.blocks.0.x", "media.model.visual.blocks.0.x"),
        ("model.layers.0.x", "language_model.model.layers.0.x"),
    ],
)
def test_names_of_weights(name, new):
    assert renamed(name) == new


def test_sentences_of_different_numbers():
    rows = [torch.tensor([[1, 2]]), torch.tensor([[3, 4, 5], [6, 7, 8]])]
    assert stacked(rows).tolist() == [[[1, 2, 0], [0, 0, 0]], [[3, 4, 5], [6, 7, 8]]]
    same = torch.zeros(2, 1, 3)
    assert stacked(same) is same
