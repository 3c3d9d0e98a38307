"""Configuration of the Qwen2.5-VL family with visual-token pruning."""

from __future__ import annotations

from typing import ClassVar

from transformers import Qwen2_5_VLConfig

from transformers_litelvlm.models.masks.grounding import GroundedConfigMixin
from transformers_litelvlm.models.qwen_vl import QwenVLConfigMixin


class Qwen2_5_VLLiteConfig(GroundedConfigMixin, QwenVLConfigMixin, Qwen2_5_VLConfig):
    """Configuration of [`Qwen2_5_VLLiteModel`] and the classes built on it.

    Modifications of [`~transformers.Qwen2_5_VLConfig`]: what to prune and how, what guides it, and the masks. The
    keywords and attributes `pruning_budget`, `pruning_retention_ratio`, ... set fields of `pruning_config`, as in
    [`LlavaLiteConfig`]. Kept tokens stay in raster order and keep their positions, whatever the method's published
    code does: M-RoPE positions are places in the picture, which renumbering (`position_ids="compact"`) would erase.

    Args:
        pruning_config, guidance, guidance_model, guidance_config: see [`QwenVLConfigMixin`].
        mask_config, seg_token_id, grounding_config: see [`GroundedConfigMixin`].

    Raises:
        ValueError: as [`PruningConfig`] does; for compact positions; for an unknown `guidance`.
    """

    model_type = "qwen2_5_vl_lite"
    family_title: ClassVar[str] = "Qwen2.5-VL"
