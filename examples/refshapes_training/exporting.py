"""The checkpoint folder that ships with the package."""

from __future__ import annotations

import os

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPTokenizer, PreTrainedTokenizerBase, SamImageProcessorPil

from refshapes_training.common import IMAGE_MEAN, IMAGE_STD
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.data.refshapes_rendering import SCENE_SIZE
from transformers_litelvlm.models.llava_lite.modeling_llava_lite_segmentation import LlavaLiteForReferringSegmentation
from transformers_litelvlm.models.llava_lite.processing_llava_lite import DEFAULT_CHAT_TEMPLATE, LlavaLiteProcessor


def export(
    model: LlavaLiteForReferringSegmentation,
    guidance: nn.Module,
    clip_words: CLIPTokenizer,
    words: PreTrainedTokenizerBase,
    folder: str,
) -> None:
    """Writes weights (stored as float16, loaded as float32), config, tokenizers and image processors.

    Args:
        model: the model after the stage `masks`.
        guidance: the inner model after the stage `guidance`; its CLIP parts replace those of `model`.
        clip_words: the tokenizer of the guidance.
        words: the language tokenizer.
        folder: where to write.
    """
    model.model.vision_tower.load_state_dict(guidance.vision_tower.state_dict())
    model.model.guidance.load_state_dict(guidance.guidance.state_dict())
    # An answer is a few words; without a limit `generate` would go on to upstream's default.
    model.generation_config.max_new_tokens = 16
    # Measured: with the released layout (renumbered positions) this model loses most of its accuracy when pruned.
    model.config.pruning_config = PruningConfig(token_order="raster", position_ids="original")
    model.set_attn_implementation("sdpa")
    model.save_pretrained(folder)
    weights = os.path.join(folder, "model.safetensors")
    halves = {name: value.half() if value.is_floating_point() else value for name, value in load_file(weights).items()}
    if any(not torch.isfinite(value).all() for value in halves.values()):
        raise ValueError("a weight does not fit into float16")
    save_file(halves, weights, metadata={"format": "pt"})
    _processor(clip_words, words, model.config.vision_config.patch_size).save_pretrained(folder)


def _processor(clip_words: CLIPTokenizer, words: PreTrainedTokenizerBase, patch_size: int) -> LlavaLiteProcessor:
    colours = {"image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD)}
    square = {"height": SCENE_SIZE, "width": SCENE_SIZE}
    return LlavaLiteProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SCENE_SIZE}, crop_size=square, **colours),
        words,
        patch_size=patch_size,
        chat_template=DEFAULT_CHAT_TEMPLATE,
        guidance_tokenizer=clip_words,
        mask_image_processor=SamImageProcessorPil(
            size={"longest_edge": SCENE_SIZE},
            pad_size=square,
            mask_size={"longest_edge": SCENE_SIZE * 4 // 9},
            mask_pad_size={"height": SCENE_SIZE * 4 // 9, "width": SCENE_SIZE * 4 // 9},
            **colours,
        ),
        knows_scenes_alone=True,
    )
