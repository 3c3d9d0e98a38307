"""Configuration of the Qwen2.5-VL family with visual-token pruning."""

from __future__ import annotations

from typing import ClassVar

from transformers import AutoConfig, PreTrainedConfig, Qwen2_5_VLConfig

from transformers_litelvlm.models.qwen_vl import QwenVLConfigMixin
from transformers_litelvlm.models.upstream import SubConfigSpec


class Qwen2_5_VLLiteConfig(QwenVLConfigMixin, Qwen2_5_VLConfig):
    """Configuration of [`Qwen2_5_VLLiteModel`] and the classes built on it.

    Modifications of [`~transformers.Qwen2_5_VLConfig`]: what to prune and how, and what guides it. The keywords and
    attributes `pruning_budget`, `pruning_retention_ratio`, ... set fields of `pruning_config`, as in
    [`LlavaLiteConfig`]. Kept tokens stay in raster order and keep their positions, whatever the method's published
    code does: M-RoPE positions are places in the picture, which renumbering (`position_ids="compact"`) would erase.

    Args:
        pruning_config, guidance, guidance_model, guidance_config: see [`QwenVLConfigMixin`].
        mask_config (`PreTrainedConfig` or `dict`, *optional*): the mask decoder, a `Sam2VideoConfig` unless its
            `model_type` says otherwise; `None` for models without masks.
        seg_token_id (`int`, *optional*): id of the token that stands for a mask.

    Raises:
        ValueError: as [`PruningConfig`] does; for compact positions; for an unknown `guidance`.
    """

    model_type = "qwen2_5_vl_lite"
    family_title: ClassVar[str] = "Qwen2.5-VL"

    sub_configs_defaults = {
        "mask_config": SubConfigSpec(config_class=AutoConfig, model_type="sam2_video", optional=True)
    }

    mask_config: dict | PreTrainedConfig | None = None
    seg_token_id: int | None = None
