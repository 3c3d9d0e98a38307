"""Stock Qwen3-VL checkpoints, and the shapes of the published ones."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
)

from tests.support.families import picture
from tests.support.tiny_qwen3_vl import save_stock_checkpoint, stock_twin, tiny_model
from transformers_litelvlm import Qwen3_VLLite, Qwen3_VLLiteConfig, Qwen3_VLLiteModel, Qwen3_VLLiteProcessor


@pytest.mark.parametrize("cls", [Qwen3_VLLite, Qwen3_VLLiteModel])
def test_stock_checkpoints_load_with_nothing_random(tmp_path, cls):
    save_stock_checkpoint(tmp_path)
    model, info = cls.from_pretrained(tmp_path, pruning_retention_ratio=0.25, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.pruning_retention_ratio == 0.25 and model.config.model_type == "qwen3_vl_lite"
    upstream = stock_twin(tiny_model())
    expected = upstream.state_dict() if cls is Qwen3_VLLite else upstream.model.state_dict()
    assert set(model.state_dict()) == set(expected)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())
    processor = Qwen3_VLLiteProcessor.from_pretrained(tmp_path)
    assert processor.video_processor.patch_size == processor.image_processor.patch_size == 4


def test_saved_checkpoints_load_with_the_auto_classes(tmp_path):
    save_stock_checkpoint(tmp_path / "stock")
    model = Qwen3_VLLite.from_pretrained(tmp_path / "stock", pruning_budget=3)
    model.save_pretrained(tmp_path / "ours")
    Qwen3_VLLiteProcessor.from_pretrained(tmp_path / "stock").save_pretrained(tmp_path / "ours")
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is Qwen3_VLLite and not any(info.values()), info
    assert again.config.pruning_budget == 3 and again.config.guidance == "intrinsic"
    assert type(AutoModel.from_pretrained(tmp_path / "ours")) is Qwen3_VLLiteModel
    assert type(AutoConfig.from_pretrained(tmp_path / "ours")) is Qwen3_VLLiteConfig
    processors = [
        AutoProcessor.from_pretrained(tmp_path / "ours"),
        Qwen3_VLLiteProcessor.from_pretrained(tmp_path / "stock"),
    ]
    assert type(processors[0]) is Qwen3_VLLiteProcessor
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "Where?"}]}
    ]
    found = [
        each.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt") for each in processors
    ]
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())
    assert torch.equal(again(**found[0]).logits, model(**found[1]).logits)


def test_a_mixture_of_experts_is_refused(tmp_path):
    Qwen3VLMoeConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a mixture of experts .*`Qwen3VLMoeForConditionalGeneration`"):
        Qwen3_VLLite.from_pretrained(tmp_path)


# As published: width, inner width, layers; of the vision tower too; and whether the head is the embedding table.
PUBLISHED = {
    "4B": ((2560, 9728, 36), (1024, 4096, 24), [5, 11, 17], True),
    "8B": ((4096, 12288, 36), (1152, 4304, 27), [8, 16, 24], False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_upstreams_keys(name):
    text, vision, deepstack, tied = PUBLISHED[name]
    names = ("hidden_size", "intermediate_size")
    settings = {
        "text_config": {**dict(zip(names, text)), "num_hidden_layers": text[2], "num_key_value_heads": 8},
        "vision_config": {
            **dict(zip(names, vision)),
            "depth": vision[2],
            "out_hidden_size": text[0],
            "deepstack_visual_indexes": deepstack,
        },
        "tie_word_embeddings": tied,
    }
    with torch.device("meta"):
        ours = Qwen3_VLLite(Qwen3_VLLiteConfig(**settings, pruning_budget=64))
        theirs = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**settings))
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (ours, theirs)]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 700
    assert ours.all_tied_weights_keys == theirs.all_tied_weights_keys
