"""Models of real size by name: shapes of published checkpoints, and small ones for CPUs. Nothing is downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from transformers import CLIPTextConfig, CLIPVisionConfig, LlamaConfig, PreTrainedConfig, Sam2VideoConfig, SamConfig

from transformers_litelvlm.benchmark.inputs import PromptLengths
from transformers_litelvlm.benchmark.subjects import Preset
from transformers_litelvlm.conversion.recipes.sa2va import SAM2_SIDE, mask_parts
from transformers_litelvlm.conversion.recipes.sam import SAM_VIT_H
from transformers_litelvlm.conversion.recipes.sam2 import sam2_base_plus, sam2_large
from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.qwen2_5_vl_lite.configuration_qwen2_5_vl_lite import Qwen2_5_VLLiteConfig
from transformers_litelvlm.models.qwen3_5_lite.configuration_qwen3_5_lite import (
    Qwen3_5LiteConfig,
    Qwen3_5MoeLiteConfig,
)
from transformers_litelvlm.models.qwen3_vl_lite.configuration_qwen3_vl_lite import Qwen3_VLLiteConfig


# Lengths of the prompts in tests/fixtures/golden/checkpoints, tokenised as the checkpoints were trained: medians of
# the 104 dialogues of GLaMM with one sentence, and of what a second and a third one add; of LISA's 87.
GLAMM_PROMPT = PromptLengths(before=36, turn=36, further_turn=32, sentence=15)
LISA_PROMPT = PromptLengths(before=35, turn=27, further_turn=None, sentence=15)
# "USER: <image>\n" and a question of about 20 words, in llava-hf's chat template, which has no system prompt.
LLAVA_PROMPT = PromptLengths(before=5, turn=28, further_turn=0, sentence=25)
# Qwen2.5-VL's chat template with "You are a helpful assistant." and a question of about 20 words, also for Qwen3-VL,
# whose template has no system prompt: a few tokens less; UniPixel's with
# "Please segment the red mug in this image." and "The target is <|seg|>.".
QWEN_PROMPT = PromptLengths(before=15, turn=26, further_turn=0, sentence=20)
UNIPIXEL_PROMPT = PromptLengths(before=15, turn=22, further_turn=None, sentence=3, after_seg=3)
# "Please segment the red mug in this image." and "It is [SEG]."
SA2VA_PROMPT = PromptLengths(before=15, turn=25, further_turn=None, sentence=3, after_seg=3)

# A picture of COCO as Qwen2.5-VL's processor leaves it (1000 visual tokens of a 700 x 1120 picture), and as UniPixel
# and Sa2VA resize it, with Qwen2.5-VL and with Qwen3-VL.
QWEN_GRID, UNIPIXEL_GRID, SA2VA_GRID, SA2VA_QWEN3_GRID = (25, 40), (17, 23), (20, 27), (18, 24)

CLIP_BOS, CLIP_EOS = 49406, 49407

PRESETS: dict[str, Preset] = {}


def get_preset(name: str) -> Preset:
    """The preset called `name`. Raises ValueError if there is none; the message lists the known ones."""
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}. Known presets: {', '.join(PRESETS)}.")
    return PRESETS[name]


def preset(name: str, prompt: PromptLengths, grid: tuple[int, int] | None = None) -> Callable[[Any], Any]:
    """Decorator of a function without arguments that makes a config; its docstring is the description."""

    def register(build_config: Callable[[], PreTrainedConfig]) -> Callable[[], PreTrainedConfig]:
        PRESETS[name] = Preset(name, inspect.getdoc(build_config), build_config, prompt, grid)
        return build_config

    return register


# Hidden size, size inside the MLP, layers, heads, and for language models heads of keys and values.
SIZES = {
    "clip-vit-l": (1024, 4096, 24, 16),
    "clip-vit-l-text": (768, 3072, 12, 12),
    "vicuna-7b": (4096, 11008, 32, 32, 32),
    "tinyllama-1b": (2048, 5632, 22, 32, 4),
    "qwen2.5-vl-3b": (2048, 11008, 36, 16, 2),
    "qwen2.5-vl-7b": (3584, 18944, 28, 28, 4),
    "qwen3-vl-4b": (2560, 9728, 36, 32, 8),
    "qwen3-vl-8b": (4096, 12288, 36, 32, 8),
    "tiny-vision": (64, 128, 6, 4),
    "tiny-text": (64, 128, 2, 4),
    "tiny-llama": (64, 128, 18, 4, 2),
}
_SIZE_NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def sizes(name: str) -> dict[str, int]:
    """Keywords of a config, from `SIZES`."""
    return dict(zip(_SIZE_NAMES, SIZES[name]))


def clip_vit_l(side: int) -> CLIPVisionConfig:
    """The vision tower of openai/clip-vit-large-patch14 (224) and -336."""
    return CLIPVisionConfig(**sizes("clip-vit-l"), patch_size=14, image_size=side, projection_dim=768)


def clip_vit_l_text() -> CLIPTextConfig:
    """The text tower of both."""
    ids = {"bos_token_id": CLIP_BOS, "eos_token_id": CLIP_EOS}
    return CLIPTextConfig(**sizes("clip-vit-l-text"), vocab_size=49408, max_position_embeddings=77, **ids)


def llama_7b(vocab_size: int, rms_norm_eps: float = 1e-5, max_position_embeddings: int = 4096) -> LlamaConfig:
    """Vicuna 7B, with the rows that a checkpoint added."""
    return LlamaConfig(
        **sizes("vicuna-7b"),
        vocab_size=vocab_size,
        rms_norm_eps=rms_norm_eps,
        max_position_embeddings=max_position_embeddings,
        pad_token_id=0,
    )


def llama_1b() -> LlamaConfig:
    """1.1 billion parameters (the shape of TinyLlama), so that a CPU finishes."""
    return LlamaConfig(**sizes("tinyllama-1b"), vocab_size=32_000, max_position_embeddings=4096, pad_token_id=0)


def llava_config(text: LlamaConfig, side: int = 336, **kwargs: Any) -> LlavaLiteConfig:
    """LLaVA with CLIP's large towers; the id of the image placeholder is the last of the vocabulary, or after it."""
    ids = {"image_token_index": text.vocab_size - 1, **kwargs}
    return LlavaLiteConfig(
        vision_config=clip_vit_l(side),
        text_config=text,
        guidance_text_config=clip_vit_l_text(),
        guidance_projection_dim=768,
        image_seq_length=(side // 14) ** 2,
        pad_token_id=0,
        tie_word_embeddings=False,
        **ids,
    )


# A SAM of 128 pixels.
_TINY_SAM = {
    "vision_config": {
        "hidden_size": 32,
        "output_channels": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 128,
        "patch_size": 16,
        "window_size": 4,
        "global_attn_indexes": [1],
        "num_pos_feats": 16,
        "mlp_dim": 64,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 128, "patch_size": 16, "mask_input_channels": 4},
    "mask_decoder_config": {
        "hidden_size": 32,
        "mlp_dim": 64,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 32,
        "layer_norm_eps": 1e-5,
    },
}


@preset("tiny", GLAMM_PROMPT)
def tiny() -> LlavaLiteConfig:
    """64 visual tokens, 18 small layers, with masks: a first look, in minutes"""
    ids = {"bos_token_id": 254, "eos_token_id": 255}
    return LlavaLiteConfig(
        vision_config=CLIPVisionConfig(**sizes("tiny-vision"), image_size=64, patch_size=8),
        text_config=LlamaConfig(**sizes("tiny-llama"), vocab_size=256, pad_token_id=0),
        guidance_text_config=CLIPTextConfig(**sizes("tiny-text"), vocab_size=256, **ids),
        guidance_projection_dim=48,
        image_seq_length=64,
        image_token_index=255,
        seg_token_id=253,
        mask_config=SamConfig(**_TINY_SAM),
        pad_token_id=0,
    )


@preset("grounding-1b", GLAMM_PROMPT)
def grounding_1b() -> LlavaLiteConfig:
    """CLIP ViT-L/14-336, a Llama of 1.1 B, SAM ViT-B, with masks: for CPUs"""
    # SamConfig's defaults are ViT-B; the decoder's epsilon is that of the published weights.
    mask_config = SamConfig(mask_decoder_config=SAM_VIT_H["mask_decoder_config"])
    return llava_config(llama_1b(), seg_token_id=31_998, mask_config=mask_config)


@preset("llava-1b", LLAVA_PROMPT)
def llava_1b() -> LlavaLiteConfig:
    """the same without masks, answers in text: for CPUs"""
    return llava_config(llama_1b())


@preset("glamm-7b", GLAMM_PROMPT)
def glamm_7b() -> LlavaLiteConfig:
    """GLaMM-RefSeg: LLaVA 1.5 7B and SAM ViT-H, 576 visual tokens, masks"""
    return llava_config(
        llama_7b(32_007), image_token_index=32_007, seg_token_id=32_004, mask_config=SamConfig(**SAM_VIT_H)
    )


@preset("lisa-7b", LISA_PROMPT)
def lisa_7b() -> LlavaLiteConfig:
    """LISA-7B-v1: Llama 7B and SAM ViT-H, 256 visual tokens, masks, a dialogue per sentence"""
    return llava_config(
        llama_7b(32_004, rms_norm_eps=1e-6, max_position_embeddings=2048),
        side=224,
        image_token_index=32_004,
        seg_token_id=32_003,
        mask_config=SamConfig(**SAM_VIT_H),
        projector_type="linear",
    )


@preset("llava-1.5-7b", LLAVA_PROMPT)
def llava_7b() -> LlavaLiteConfig:
    """LLaVA 1.5 7B, 576 visual tokens, answers in text"""
    return llava_config(llama_7b(32_064), image_token_index=32_000)


# Of Qwen's models, what differs from upstream's defaults.
def _qwen2_5_vl(name: str, vocab_size: int, **kwargs: Any) -> Qwen2_5_VLLiteConfig:
    text = {
        **sizes(name),
        "vocab_size": vocab_size,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "pad_token_id": 151_643,
    }
    vision = {"hidden_size": 1280, "out_hidden_size": text["hidden_size"], "tokens_per_second": 2}
    return Qwen2_5_VLLiteConfig(vision_config=vision, text_config=text, **kwargs)


@preset("qwen2.5-vl-3b", QWEN_PROMPT, QWEN_GRID)
def qwen2_5_vl_3b(**kwargs: Any) -> Qwen2_5_VLLiteConfig:
    """Qwen2.5-VL 3B, a picture of 1000 visual tokens, answers in text"""
    return _qwen2_5_vl("qwen2.5-vl-3b", **{"vocab_size": 151_936, "tie_word_embeddings": True, **kwargs})


@preset("qwen2.5-vl-7b", QWEN_PROMPT, QWEN_GRID)
def qwen2_5_vl_7b() -> Qwen2_5_VLLiteConfig:
    """Qwen2.5-VL 7B, a picture of 1000 visual tokens, answers in text"""
    return _qwen2_5_vl("qwen2.5-vl-7b", vocab_size=152_064, tie_word_embeddings=False)


def _qwen3_vl(
    name: str, vision: dict[str, Any] | None = None, vocab_size: int = 151_936, **kwargs: Any
) -> Qwen3_VLLiteConfig:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = {**sizes(name), "vocab_size": vocab_size, "head_dim": 128, "rope_parameters": rope, "pad_token_id": 151_643}
    vision = {**(vision or {}), "out_hidden_size": text["hidden_size"]}
    return Qwen3_VLLiteConfig(vision_config=vision, text_config=text, **kwargs)


@preset("qwen3-vl-4b", QWEN_PROMPT, QWEN_GRID)
def qwen3_vl_4b(**kwargs: Any) -> Qwen3_VLLiteConfig:
    """Qwen3-VL 4B, a picture of 1000 visual tokens, answers in text"""
    vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
    return _qwen3_vl("qwen3-vl-4b", vision, **{"tie_word_embeddings": True, **kwargs})


@preset("qwen3-vl-8b", QWEN_PROMPT, QWEN_GRID)
def qwen3_vl_8b() -> Qwen3_VLLiteConfig:
    """Qwen3-VL 8B, a picture of 1000 visual tokens, answers in text"""
    return _qwen3_vl("qwen3-vl-8b", tie_word_embeddings=False)


@preset("qwen3.5-9b", QWEN_PROMPT, QWEN_GRID)
def qwen3_5_9b() -> Qwen3_5LiteConfig:
    """Qwen3.5 9B, a picture of 1000 visual tokens, answers in text"""
    return Qwen3_5LiteConfig(vision_config={"out_hidden_size": 4096})


@preset("qwen3.5-35b-a3b", QWEN_PROMPT, QWEN_GRID)
def qwen3_5_35b_a3b() -> Qwen3_5MoeLiteConfig:
    """Qwen3.5 35B-A3B, a mixture of experts, a picture of 1000 visual tokens, answers in text"""
    return Qwen3_5MoeLiteConfig(vision_config={"out_hidden_size": 2048})


@preset("unipixel-3b", UNIPIXEL_PROMPT, UNIPIXEL_GRID)
def unipixel_3b() -> Qwen2_5_VLLiteConfig:
    """UniPixel-3B: Qwen2.5-VL 3B and SAM 2.1 base-plus, a picture of 391 visual tokens, masks, a dialogue each"""
    return qwen2_5_vl_3b(mask_config=Sam2VideoConfig(**sam2_base_plus(768)), seg_token_id=151_666)


@preset("sa2va-qwen2.5-vl-3b", SA2VA_PROMPT, SA2VA_GRID)
def sa2va_qwen2_5_vl_3b() -> Qwen2_5_VLLiteConfig:
    """Sa2VA-Qwen2_5-VL-3B: with SAM 2 large, a picture of 540 visual tokens, masks, a dialogue each"""
    masks = mask_parts(sam2_large(SAM2_SIDE), before_norm=False, seg_token_id=151_665)
    return qwen2_5_vl_3b(vocab_size=151_670, **masks)


@preset("sa2va-qwen3-vl-4b", SA2VA_PROMPT, SA2VA_QWEN3_GRID)
def sa2va_qwen3_vl_4b() -> Qwen3_VLLiteConfig:
    """Sa2VA-Qwen3-VL-4B: with SAM 2 large, a picture of 432 visual tokens, masks, a dialogue each"""
    masks = mask_parts(sam2_large(SAM2_SIDE), before_norm=True, seg_token_id=151_669)
    return qwen3_vl_4b(vocab_size=151_674, **masks)
