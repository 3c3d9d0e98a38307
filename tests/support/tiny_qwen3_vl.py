"""Tiny random models of the Qwen3-VL family, with the vocabulary and the media of the tiny Qwen2.5-VL."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import (
    CLIPImageProcessorPil,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.support.random_weights import asymmetric_
from tests.support.tiny_llava import tiny_guidance_tokenizer
from tests.support.tiny_qwen2_5_vl import (
    CHAT_TEMPLATE,
    END,
    IMAGE,
    MERGE,
    PAD,
    PATCH,
    TEMPORAL,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCABULARY,
    tiny_tokenizer,
)
from transformers_litelvlm import (
    Qwen3_VLLite,
    Qwen3_VLLiteConfig,
    Qwen3_VLLiteProcessor,
    Qwen3_VLLiteVideoProcessor,
)


def tiny_config(**kwargs) -> Qwen3_VLLiteConfig:
    """Three vision blocks, of which two are read by DeepStack; two decoder layers, whose heads are normalised."""
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
        "out_hidden_size": 48,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 2, 2],
            "mrope_interleaved": True,
        },
        "pad_token_id": PAD,
        "bos_token_id": PAD,
        "eos_token_id": END,
    }
    ids = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
    }
    return Qwen3_VLLiteConfig(vision_config=vision, text_config=text, **ids, **kwargs)


def stock_config(config: Qwen3_VLLiteConfig) -> Qwen3VLConfig:
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return Qwen3VLConfig(**{name: config.to_dict()[name] for name in ("vision_config", "text_config", *ids)})


def tiny_model(**kwargs) -> Qwen3_VLLite:
    return asymmetric_(Qwen3_VLLite(tiny_config(**kwargs)))


def stock_twin(model: Qwen3_VLLite) -> Qwen3VLForConditionalGeneration:
    """The stock class with the same weights."""
    upstream = Qwen3VLForConditionalGeneration(stock_config(model.config)).eval()
    upstream.load_state_dict({n: v for n, v in model.state_dict().items() if ".guidance." not in n})
    return upstream


def tiny_processor(with_clip: bool = False) -> Qwen3_VLLiteProcessor:
    settings = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": TEMPORAL}
    size = {"shortest_edge": 64, "longest_edge": 64 * 400}
    side = {"height": 32, "width": 32}
    return Qwen3_VLLiteProcessor(
        image_processor=Qwen2VLImageProcessorPil(**settings, size=size),
        tokenizer=tiny_tokenizer(),
        video_processor=Qwen3_VLLiteVideoProcessor(**settings, size=size),
        chat_template=CHAT_TEMPLATE,
        guidance_tokenizer=tiny_guidance_tokenizer() if with_clip else None,
        guidance_image_processor=CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)
        if with_clip
        else None,
    )


def save_stock_checkpoint(folder: Path) -> None:
    """A stock checkpoint in `folder`, as on the Hub: a file for each processor, with the classes for torchvision."""
    stock_twin(tiny_model()).save_pretrained(folder)
    tiny = tiny_processor()
    tiny.tokenizer.chat_template = CHAT_TEMPLATE
    tiny.tokenizer.save_pretrained(folder)
    files = {
        "preprocessor_config.json": (tiny.image_processor, "image_processor_type", "Qwen2VLImageProcessor"),
        "video_preprocessor_config.json": (tiny.video_processor, "video_processor_type", "Qwen3VLVideoProcessor"),
    }
    for name, (processor, key, value) in files.items():
        (folder / name).write_text(json.dumps({**processor.to_dict(), key: value}), encoding="utf-8")
