"""Checkpoints that vLLM can run on a CPU, where heads have 32, 64, 80, 96, ... channels and no other number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests.support.random_weights import asymmetric_
from tests.support.tiny_qwen2_5_vl import CHAT_TEMPLATE, QWEN2_5_VL, TinyQwen
from tests.support.tiny_qwen3_vl import QWEN3_VL
from transformers_litelvlm import DEFAULT_CHECKPOINT, LlavaLiteConfig, LlavaLiteForConditionalGeneration


OLD, NEW = 48, 64  # channels of a head


def save_bundled(folder: Path) -> str:
    """The bundled model with heads of 64: further channels that are zero, and angles as before."""
    shutil.copytree(DEFAULT_CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    heads = text["num_attention_heads"]
    # Channel i turns by theta ** (-2 i / size).
    theta = text["rope_parameters"]["rope_theta"] ** (NEW / OLD)
    text.update(head_dim=NEW, rope_parameters={**text["rope_parameters"], "rope_theta": theta})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def widened(rows: torch.Tensor, halves: int = 1) -> torch.Tensor:
        parts = rows.view(heads, halves, OLD // halves, -1)
        wide = parts.new_zeros(heads, halves, NEW // halves, parts.shape[-1])
        wide[:, :, : OLD // halves] = parts
        return wide.reshape(heads * NEW, -1)

    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "language_model" not in name or not name.endswith("_proj.weight"):
            continue
        if "q_proj" in name:  # logits are divided by the root of the size
            weights[name] = widened(weight, halves=2) * (NEW / OLD) ** 0.5
        elif "k_proj" in name:
            weights[name] = widened(weight, halves=2)
        elif "v_proj" in name:
            weights[name] = widened(weight)
        elif "o_proj" in name:
            weights[name] = widened(weight.T.contiguous()).T.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def save_talkative(folder: Path) -> str:
    """The same with a random language model, whose answers depend on every visual token."""
    save_bundled(folder)
    weights, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in sorted(weights):
        weight = weights[name]
        if weight.ndim != 2 or ("language_model" not in name and "lm_head" not in name):
            continue
        scale = 1.0 if "embed_tokens" in name else weight.shape[1] ** -0.5
        scale *= 1.6 if "self_attn" in name else 6.0 if "lm_head" in name else 1.0
        weights[name] = torch.randn(weight.shape, generator=generator) * scale
    name = "model.multi_modal_projector.linear_2.weight"
    weights[name] = weights[name] / weights[name].std() * weights[name].shape[1] ** -0.5 * 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def _tiny(family: TinyQwen) -> Any:
    """Two heads of 32 channels, with logits that are not all alike."""
    config = family.tiny_config()
    text = config.text_config
    text.hidden_size, text.num_attention_heads, text.num_key_value_heads, text.head_dim = 64, 2, 2, 32
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [4, 6, 6]}
    config.vision_config.out_hidden_size = 64
    model = asymmetric_(family.model_class(config))
    model.lm_head.weight.data *= 4
    return model


def save_qwen(folder: Path, name: str, is_stock: bool = False) -> str:
    """A tiny random model, with `name` `"qwen2_5_vl"` or `"qwen3_vl"`; as a stock checkpoint if wanted."""
    family = {"qwen2_5_vl": QWEN2_5_VL, "qwen3_vl": QWEN3_VL}[name]
    model, processor = _tiny(family), family.tiny_processor()
    if is_stock:
        model = family.stock_twin(model)
    model.save_pretrained(folder)
    processor.chat_template = CHAT_TEMPLATE
    processor.save_pretrained(folder)
    return str(folder)


def save_stock_llava(folder: Path) -> str:
    """The talkative model as a stock checkpoint, and in its folder `clip` the CLIP that its tower comes from."""
    model = LlavaLiteForConditionalGeneration.from_pretrained(save_talkative(folder / "ours"))
    config, guidance = model.config.to_dict(), model.model.guidance
    own = ("vision_config", "text_config", "image_token_index", "image_seq_length")
    stock = LlavaForConditionalGeneration(LlavaConfig(**{name: config[name] for name in own}))
    stock.load_state_dict({name: weight for name, weight in model.state_dict().items() if ".guidance." not in name})
    stock.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder / "ours")
    processor.guidance_tokenizer.save_pretrained(folder / "clip")
    processor.guidance_tokenizer = processor.mask_image_processor = None
    processor.save_pretrained(folder)
    parts = {"vision_config": config["vision_config"], "text_config": config["guidance_text_config"]}
    clip = CLIPModel(CLIPConfig(**parts, projection_dim=config["guidance_projection_dim"]))
    clip.text_model, clip.vision_model = guidance.text_model, model.model.vision_tower
    clip.text_projection, clip.visual_projection = guidance.text_projection, guidance.visual_projection
    clip.save_pretrained(folder / "clip")
    return str(folder)


def save_benchmark(folder: Path) -> str:
    """Random weights in the shape that docs/vllm.md measures: a language model of 8 layers of width 1024, half of
    CLIP ViT-L/14-336, and 576 visual tokens."""
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    side, ids = {"height": 336, "width": 336}, {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=side)
    processor.patch_size, processor.knows_scenes_alone = 14, False
    shared = {"num_hidden_layers": 12, "projection_dim": 768}
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16, image_size=336, patch_size=14, **shared
    )
    guidance = CLIPTextConfig(
        vocab_size=697,
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        bos_token_id=695,
        eos_token_id=696,
        pad_token_id=696,
        **shared,
    )
    text = LlamaConfig(
        vocab_size=469,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        max_position_embeddings=4096,
        **ids,
    )
    parts = {"vision_config": vision, "text_config": text, "guidance_text_config": guidance}
    config = LlavaLiteConfig(**parts, guidance_projection_dim=768, image_token_index=3, image_seq_length=576)
    torch.manual_seed(0)
    LlavaLiteForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
