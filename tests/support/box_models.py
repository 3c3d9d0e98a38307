"""Tiny stock mask models on disk, and chat models whose answers are written in advance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    Sam2Config,
    Sam2Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    SamImageProcessorPil,
    SamModel,
)

from tests.support.random_weights import asymmetric_
from tests.support.tiny_llava import tiny_sam_config
from tests.support.tiny_unipixel import sam2_config
from transformers_litelvlm.models.outputs import PrunedGenerateOutput, PrunedImageFeatures


def save_tiny_sam(folder: Path) -> str:
    """A stock SAM for squares of 32 pixels."""
    asymmetric_(SamModel(tiny_sam_config())).save_pretrained(folder)
    SamImageProcessorPil(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def save_tiny_sam2(folder: Path) -> str:
    """A stock SAM 2 for squares of 128 pixels, with the file for pictures that it has on the Hub."""
    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    config = sam2_config()
    asymmetric_(Sam2Model(Sam2Config(**{name: config[name] for name in parts}))).save_pretrained(folder)
    settings = {
        "image_processor_type": "Sam2ImageProcessorFast",
        "size": {"height": 128, "width": 128},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "mask_size": {"height": 32, "width": 32},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return str(folder)


def save_tiny_sam3(folder: Path) -> str:
    """A stock tracker of SAM 3 for squares of 112 pixels."""
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 112,
        "patch_size": 14,
        "window_size": 4,
        "global_attn_indexes": [1],
        "pretrain_image_size": 56,
    }
    sizes = [[32, 32], [16, 16], [8, 8]]
    vision = {"backbone_config": backbone, "fpn_hidden_size": 32, "backbone_feature_sizes": sizes}
    prompt = {"hidden_size": 32, "image_size": 112, "patch_size": 14, "mask_input_channels": 4}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    vision["model_type"] = "sam3_vision_model"
    config = Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    asymmetric_(Sam3TrackerModel(config)).save_pretrained(folder)
    settings = {"image_processor_type": "Sam3ImageProcessorFast", "size": {"height": 112, "width": 112}}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return str(folder)


def answer_with(monkeypatch: Any, chat_class: type, processor: Any, answers: dict[str, Any]) -> list[str]:
    """Have `generate` of a chat class write answers that are known in advance; all else is the model's own.

    Args:
        answers: by a part of the prompt that no other has, the text of the answer; or, of Qwen, a function that gets
            the width and height of the resized picture and returns it.

    Returns:
        The prompts that were asked, filled in later.
    """
    asked: list[str] = []
    tokenizer = processor.tokenizer

    def generate(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> PrunedGenerateOutput:
        features = kwargs["mm_encoder_outputs"]["image"]
        rows = []
        grids = (
            kwargs["image_grid_thw"].tolist() if "image_grid_thw" in kwargs else [(None, None, None)] * len(input_ids)
        )
        for row, (_, height, width) in zip(input_ids, grids, strict=True):
            prompt = tokenizer.decode([token for token in row.tolist() if token != self.config.image_token_id])
            [answer] = [text for part, text in answers.items() if part in prompt] or ["[]"]
            if isinstance(answer, Callable):
                patch = processor.image_processor.patch_size
                answer = answer(width * patch, height * patch)
            asked.append(prompt)
            rows.append(tokenizer(answer)["input_ids"])
        length = max(map(len, rows))
        end = tokenizer.eos_token_id
        new = torch.tensor([ids + [end] * (length - len(ids)) for ids in rows], dtype=input_ids.dtype)
        kept = features if isinstance(features, PrunedImageFeatures) else None
        return PrunedGenerateOutput(sequences=torch.cat((input_ids, new.view(len(rows), -1)), 1), image_outputs=kept)

    monkeypatch.setattr(chat_class, "generate", generate)
    return asked


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture without any order."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())
