"""Presets of the size of a test, one of every kind of model."""

from __future__ import annotations

import dataclasses
from functools import partial

from transformers import Sam2VideoConfig

from tests.support.tiny_qwen2_5_vl import QWEN2_5_VL
from tests.support.tiny_qwen3_5 import QWEN3_5_MOE
from tests.support.tiny_qwen3_vl import QWEN3_VL
from tests.support.tiny_unipixel import sam2_config
from transformers_litelvlm.benchmark.presets import (
    LISA_PROMPT,
    LLAVA_PROMPT,
    PRESETS,
    QWEN_PROMPT,
    SA2VA_PROMPT,
    UNIPIXEL_PROMPT,
    tiny,
)
from transformers_litelvlm.benchmark.subjects import Preset
from transformers_litelvlm.conversion.recipes.sa2va import mask_parts


def _tiny_without_masks():
    config = tiny()
    config.mask_config = config.seg_token_id = None
    return config


def _tiny_unipixel():
    config = QWEN2_5_VL.tiny_config(mask_config=Sam2VideoConfig(**sam2_config()))
    config.seg_token_id = config.text_config.vocab_size - 1
    return config


def _tiny_sa2va():
    masks = mask_parts(sam2_config(), before_norm=True, seg_token_id=QWEN3_VL.tiny_config().text_config.vocab_size - 1)
    return QWEN3_VL.tiny_config(**masks)


def _tiny_qwen(tiny=QWEN2_5_VL):
    config = tiny.tiny_config()
    # As in the published model, the placeholder is behind the words.
    config.image_token_id = config.text_config.vocab_size - 1
    return config


TINY = {
    "glamm": PRESETS["tiny"],
    "lisa": dataclasses.replace(PRESETS["tiny"], prompt=LISA_PROMPT),
    "llava": Preset("llava", "text", _tiny_without_masks, LLAVA_PROMPT),
    "qwen": Preset("qwen", "text", _tiny_qwen, QWEN_PROMPT, (6, 8)),
    "qwen3_vl": Preset("qwen3_vl", "text", partial(_tiny_qwen, QWEN3_VL), QWEN_PROMPT, (6, 8)),
    "qwen3_5": Preset("qwen3_5", "text", partial(_tiny_qwen, QWEN3_5_MOE), QWEN_PROMPT, (6, 8)),
    "sa2va": Preset("sa2va", "masks", _tiny_sa2va, SA2VA_PROMPT, (6, 8)),
    "unipixel": Preset("unipixel", "masks", _tiny_unipixel, UNIPIXEL_PROMPT, (6, 8)),
}
