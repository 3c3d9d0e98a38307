"""The benchmark compares what it says: the stock class, the same weights, the same features."""

import json

import pytest
import torch
from transformers import LlavaModel

from tests.support.random_weights import asymmetric_
from tests.support.tiny_llava import tiny_config
from transformers_litelvlm.models.llava_lite.modeling_llava_lite import LlavaLiteModel


@pytest.fixture
def vision_tower(script):
    return script("vision_tower")


@pytest.fixture
def model():
    return asymmetric_(LlavaLiteModel(tiny_config(pruning_budget=5)))


def test_the_stock_twin_is_stock_and_shares_every_weight(vision_tower, model):
    twin = vision_tower.stock_twin(model)
    assert type(twin) is LlavaModel and not twin.training
    ours = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(parameter.data_ptr() in ours for parameter in twin.parameters())
    inputs = vision_tower.random_inputs(model.config, batch_size=2, sentences=3, sentence_tokens=6)
    assert inputs["guidance_input_ids"].shape == (2, 3, 6)
    pruned = model.get_image_features(**inputs)
    stock = twin.get_image_features(inputs["pixel_values"])
    for kept, full, indices in zip(pruned.pooler_output, stock.pooler_output, pruned.retained_indices, strict=True):
        assert kept.shape == (5, 48) and full.shape == (16, 48)
        torch.testing.assert_close(kept, full[indices])


def test_a_pair_that_disagrees_is_not_timed(vision_tower, model, monkeypatch):
    other = asymmetric_(LlavaLiteModel(tiny_config()), seed=1)
    monkeypatch.setattr(vision_tower, "stock_twin", lambda _: other)
    with pytest.raises(AssertionError, match="not close"):
        vision_tower.time_vision_tower(model, vision_tower.random_inputs(model.config), pairs=1, warmup=0)


def test_the_configs_are_vit_l_336_and_its_text_tower(vision_tower):
    config = vision_tower.LlavaLiteConfig(**vision_tower.vit_l_336_configs(budget=64))
    with torch.device("meta"):
        model = LlavaLiteModel(config)
    millions = {name: sum(p.numel() for p in part.parameters()) // 10**6 for name, part in model.named_children()}
    assert (
        millions["vision_tower"] == 303 and 123 <= millions["guidance"] <= 125
    )  # as openai/clip-vit-large-patch14-336
    assert model.num_visual_tokens("image", {"pixel_values": torch.empty(1, 3, 336, 336)}) == [576]
    assert config.pruning_config.resolve(576) == 64


@pytest.mark.parametrize("as_json", [False, True])
def test_command(vision_tower, monkeypatch, capsys, as_json):
    tiny = tiny_config()
    keywords = {
        "vision_config": tiny.vision_config,
        "text_config": tiny.text_config,
        "guidance_text_config": tiny.guidance_text_config,
        "guidance_projection_dim": 20,
    }
    monkeypatch.setattr(
        vision_tower, "vit_l_336_configs", lambda budget, hidden_size: {**keywords, "pruning_budget": budget}
    )
    arguments = ["--pairs", "2", "--budget", "4", "--sentence-tokens", "8"]
    assert vision_tower.main([*arguments, "--json"] if as_json else arguments) == 0
    printed = capsys.readouterr().out
    if as_json:
        result = json.loads(printed)
        assert (result["budget"], result["num_visual_tokens"], result["pairs"]) == (4, 16, 2)
        assert result["speedup"] == pytest.approx(result["median_ms_stock"] / result["median_ms_pruned"])
        assert result["ratio"] == pytest.approx(1 / result["speedup"])
        assert vision_tower.main([*arguments, "--check"]) in (0, 1)
    else:
        assert "4 of 16 visual tokens kept" in printed and "speed-up" in printed and "transformers 5." in printed
