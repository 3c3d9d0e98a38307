"""Stock Qwen3.5 checkpoints, and the shapes of published ones."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.families import QWEN3_5, QWEN3_5_MOE
from transformers_litelvlm import Qwen3_VLLiteProcessor


FAMILIES = pytest.mark.parametrize("family", [QWEN3_5, QWEN3_5_MOE], ids=lambda family: family.name)


@pytest.mark.parametrize("is_base", [False, True])
@FAMILIES
def test_stock_checkpoints_load_with_nothing_random(tmp_path, family, is_base):
    """Published ones also hold layers that predict several tokens, which upstream leaves out."""
    family.tiny.save_stock_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "mtp.fc.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors", {"format": "pt"})
    cls = family.base_class if is_base else family.model_class
    model, info = cls.from_pretrained(tmp_path, pruning_retention_ratio=0.25, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.pruning_retention_ratio == 0.25
    assert model.config.model_type == family.config_class.model_type
    upstream = family.stock(family.tiny.tiny_model())
    expected = upstream.model.state_dict() if is_base else upstream.state_dict()
    assert set(model.state_dict()) == set(expected)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())
    assert type(Qwen3_VLLiteProcessor.from_pretrained(tmp_path)) is Qwen3_VLLiteProcessor


# Upstream's configs are those of these sizes; the tower ends at the width of the decoder.
PUBLISHED = {"9B": (QWEN3_5, 4096, 9.0e9, 9.9e9), "35B-A3B": (QWEN3_5_MOE, 2048, 34.5e9, 36e9)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_upstreams_keys(name):
    family, width, least, most = PUBLISHED[name]
    settings = {"vision_config": {"out_hidden_size": width}}
    with torch.device("meta"):
        ours = family.model_class(family.config_class(**settings, pruning_budget=64))
        theirs = family.stock_class(family.stock_config_class(**settings))
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (ours, theirs)]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 700
    assert ours.all_tied_weights_keys == theirs.all_tied_weights_keys
    assert least < sum(value.numel() for value in ours.parameters()) < most
