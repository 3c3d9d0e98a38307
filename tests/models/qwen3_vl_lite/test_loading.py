"""Stock Qwen3-VL checkpoints, and the shapes of the published ones."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.families import QWEN2_5_VL, QWEN3_5, QWEN3_VL, QWEN3_VL_MOE
from transformers_litelvlm import Qwen3_VLLiteProcessor


FAMILIES = pytest.mark.parametrize("family", [QWEN3_VL, QWEN3_VL_MOE], ids=lambda family: family.name)


@pytest.mark.parametrize("is_base", [False, True])
@FAMILIES
def test_stock_checkpoints_load_with_nothing_random(tmp_path, family, is_base):
    """Published ones have the weights of experts transposed."""
    family.tiny.save_stock_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    experts = {name: value.mT.contiguous() for name, value in weights.items() if ".experts." in name}
    save_file(weights | experts, tmp_path / "model.safetensors", {"format": "pt"})
    assert {value.shape[1:] for value in experts.values()} == (set() if family is QWEN3_VL else {(48, 32), (16, 48)})
    cls = family.base_class if is_base else family.model_class
    model, info = cls.from_pretrained(tmp_path, pruning_retention_ratio=0.25, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.pruning_retention_ratio == 0.25
    assert model.config.model_type == family.config_class.model_type
    upstream = family.stock(family.tiny.tiny_model())
    expected = upstream.model.state_dict() if is_base else upstream.state_dict()
    assert set(model.state_dict()) == set(expected)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())
    processor = Qwen3_VLLiteProcessor.from_pretrained(tmp_path)
    assert processor.video_processor.patch_size == processor.image_processor.patch_size == 4


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_checkpoints_of_another_family_are_refused(tmp_path, kind):
    """Upstream warns, and what the checkpoint lacks is random."""
    pairs = (QWEN3_VL, QWEN3_VL_MOE), (QWEN3_VL_MOE, QWEN3_VL), (QWEN3_VL, QWEN2_5_VL), (QWEN3_VL, QWEN3_5)
    for family, other in pairs:
        (other.stock_config_class if kind == "stock" else other.config_class)().save_pretrained(tmp_path)
        name = (other.stock_config_class if kind == "stock" else other.config_class).model_type
        message = f"is a checkpoint of another family, '{name}': load it with `{other.model_class.__name__}`"
        for cls in (family.model_class, family.config_class):
            with pytest.raises(ValueError, match=message):
                cls.from_pretrained(tmp_path)


# As published: of the decoder width, inner width and layers; of the vision tower too; and whether the head is the
# embedding table.
PUBLISHED = {
    "4B": (QWEN3_VL, (2560, 9728, 36), (1024, 4096, 24), [5, 11, 17], {"tie_word_embeddings": True}),
    "8B": (QWEN3_VL, (4096, 12288, 36), (1152, 4304, 27), [8, 16, 24], {"tie_word_embeddings": False}),
    "30B-A3B": (QWEN3_VL_MOE, (2048, 6144, 48), (1152, 4304, 27), [8, 16, 24], {"tie_word_embeddings": False}),
}
EXPERTS = {
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_upstreams_keys(name):
    family, text, vision, deepstack, tied = PUBLISHED[name]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "depth")
    further = EXPERTS if family is QWEN3_VL_MOE else {"num_key_value_heads": 8}
    settings = {
        "text_config": {**dict(zip(names, text)), **further},
        "vision_config": {
            **dict(zip([*names[:2], "depth"], vision)),
            "out_hidden_size": text[0],
            "deepstack_visual_indexes": deepstack,
        },
        **tied,
    }
    with torch.device("meta"):
        ours = family.model_class(family.config_class(**settings, pruning_budget=64))
        theirs = family.stock_class(family.stock_config_class(**settings))
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (ours, theirs)]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 700
    assert ours.all_tied_weights_keys == theirs.all_tied_weights_keys
    if family is QWEN3_VL_MOE:
        total = sum(value.numel() for value in ours.parameters())
        assert shapes[0]["model.language_model.layers.47.mlp.experts.down_proj"] == (128, 2048, 768)
        assert 30.5e9 < total < 31.5e9
