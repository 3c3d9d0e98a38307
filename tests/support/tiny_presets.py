"""Presets of the size of a test, one of every kind of model."""

from __future__ import annotations

import dataclasses

from transformers import Sam2VideoConfig

from tests.support.tiny_qwen2_5_vl import tiny_config as tiny_qwen_config
from tests.support.tiny_unipixel import sam2_config
from transformers_litelvlm.benchmark.presets import (
    LISA_PROMPT,
    LLAVA_PROMPT,
    PRESETS,
    QWEN_PROMPT,
    UNIPIXEL_PROMPT,
    tiny,
)
from transformers_litelvlm.benchmark.subjects import Preset


def _tiny_without_masks():
    config = tiny()
    config.mask_config = config.seg_token_id = None
    return config


def _tiny_unipixel():
    config = tiny_qwen_config(mask_config=Sam2VideoConfig(**sam2_config()))
    config.seg_token_id = config.text_config.vocab_size - 1
    return config


def _tiny_qwen():
    config = tiny_qwen_config()
    # As in the published model, the placeholder is behind the words.
    config.image_token_id = config.text_config.vocab_size - 1
    return config


TINY = {
    "glamm": PRESETS["tiny"],
    "lisa": dataclasses.replace(PRESETS["tiny"], prompt=LISA_PROMPT),
    "llava": Preset("llava", "text", _tiny_without_masks, LLAVA_PROMPT),
    "qwen": Preset("qwen", "text", _tiny_qwen, QWEN_PROMPT, (6, 8)),
    "unipixel": Preset("unipixel", "masks", _tiny_unipixel, UNIPIXEL_PROMPT, (6, 8)),
}
