"""Stock InternVL checkpoints, and the shapes of the published ones."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
)

from tests.support import tiny_internvl as tiny
from tests.support.families import QWEN3_VL
from transformers_litelvlm import (
    InternVLLiteConfig,
    InternVLLiteForConditionalGeneration,
    InternVLLiteModel,
    InternVLLiteProcessor,
)


def with_new_names(folder):
    """As the model has them; published checkpoints (-hf), and what the stock class saves, have older ones."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    new = {
        "lm_head.weight" if "lm_head" in name else "model." + name.replace("model.model.", "model.", 1): value
        for name, value in weights.items()
    }
    assert not set(new) & set(weights)
    save_file(new, file, {"format": "pt"})


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("cls", [InternVLLiteForConditionalGeneration, InternVLLiteModel])
def test_stock_checkpoints_load_with_nothing_random(tmp_path, cls, is_old):
    tiny.save_stock_checkpoint(tmp_path)
    if not is_old:
        with_new_names(tmp_path)
    model, info = cls.from_pretrained(tmp_path, pruning_retention_ratio=0.25, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.pruning_retention_ratio == 0.25 and model.config.model_type == "internvl_lite"
    upstream = tiny.stock_twin(tiny.tiny_model())
    expected = (upstream.model if cls is InternVLLiteModel else upstream).state_dict()
    assert set(model.state_dict()) == set(expected)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())
    processor = InternVLLiteProcessor.from_pretrained(tmp_path)
    assert type(processor.image_processor).__name__ == "GotOcr2ImageProcessorPil"
    assert processor.image_seq_length == tiny.NUM_TOKENS


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_checkpoints_of_another_family_are_refused(tmp_path, kind):
    other = QWEN3_VL.stock_config_class if kind == "stock" else QWEN3_VL.config_class
    other().save_pretrained(tmp_path)
    for cls in (InternVLLiteForConditionalGeneration, InternVLLiteConfig):
        with pytest.raises(ValueError, match=f"is a checkpoint of another family, '{other.model_type}'"):
            cls.from_pretrained(tmp_path)


# As published: of the decoder width, inner width, layers, heads and key heads; and whether the head is the table.
PUBLISHED = {
    "InternVL3-1B": ((896, 4864, 24, 14, 2), True),
    "InternVL3-8B": ((3584, 18944, 28, 28, 4), False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_upstreams_keys(name):
    text, tied = PUBLISHED[name]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    settings = {
        "text_config": {"model_type": "qwen2", "vocab_size": 151_674, **dict(zip(names, text))},
        "vision_config": {"attention_bias": True},
        "tie_word_embeddings": tied,
    }
    with torch.device("meta"):
        ours = InternVLLiteForConditionalGeneration(InternVLLiteConfig(**settings, pruning_budget=64))
        theirs = InternVLForConditionalGeneration(InternVLConfig(**settings))
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (ours, theirs)]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 600
    assert ours.all_tied_weights_keys == theirs.all_tied_weights_keys
