"""Configuration of the Qwen2.5-VL family with visual-token pruning."""

from __future__ import annotations

from typing import ClassVar

from transformers import AutoConfig, CLIPConfig, PreTrainedConfig, Qwen2_5_VLConfig

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.qwen_vl import QwenVLConfigMixin
from transformers_litelvlm.models.upstream import SubConfigSpec


class Qwen2_5_VLLiteConfig(QwenVLConfigMixin, Qwen2_5_VLConfig):
    """Configuration of [`Qwen2_5_VLLiteModel`] and the classes built on it.

    Modifications of [`~transformers.Qwen2_5_VLConfig`]: what to prune and how, and what guides it. The keywords and
    attributes `pruning_budget`, `pruning_retention_ratio`, ... set fields of `pruning_config`, as in
    [`LlavaLiteConfig`]. Kept tokens stay in raster order and keep their positions, whatever the method's published
    code does: M-RoPE positions are places in the picture, which renumbering (`position_ids="compact"`) would erase.

    Args:
        pruning_config (`PruningConfig` or `dict`, *optional*): see [`PruningConfig`]; default: pruning is off. A
            budget counts the tokens of an image, or of a whole video.
        guidance (`str`, defaults to `"intrinsic"`): what tells the methods about sentences and visual tokens.
            `"intrinsic"`: the model itself, without a second one. `"clip"`: a CLIP beside it.
        guidance_model (`str`, defaults to `"openai/clip-vit-large-patch14-336"`): where that CLIP comes from when a
            checkpoint does not hold it.
        guidance_config (`CLIPConfig` or `dict`, *optional*): its configuration, set when it is loaded.
        mask_config (`PreTrainedConfig` or `dict`, *optional*): the mask decoder, a `Sam2VideoConfig` unless its
            `model_type` says otherwise; `None` for models without masks.
        seg_token_id (`int`, *optional*): id of the token that stands for a mask.

    Raises:
        ValueError: as [`PruningConfig`] does; for compact positions; for an unknown `guidance`.
    """

    model_type = "qwen2_5_vl_lite"
    family_title: ClassVar[str] = "Qwen2.5-VL"

    # Spelled out, because the mapping of the parent class has to be extended and is shared with every stock model.
    sub_configs_defaults = {
        **Qwen2_5_VLConfig.sub_configs_defaults,
        "pruning_config": SubConfigSpec(config_class=PruningConfig),
        "guidance_config": SubConfigSpec(config_class=CLIPConfig, optional=True),
        "mask_config": SubConfigSpec(config_class=AutoConfig, model_type="sam2_video", optional=True),
    }

    # Upstream hands dtypes and attention kernels to every config listed here; pruning has neither.
    sub_configs: ClassVar[dict[str, type]] = {
        name: spec.config_class for name, spec in sub_configs_defaults.items() if name != "pruning_config"
    }

    pruning_config: dict | PreTrainedConfig | None = None
    guidance: str = "intrinsic"
    guidance_model: str = "openai/clip-vit-large-patch14-336"
    guidance_config: dict | PreTrainedConfig | None = None
    mask_config: dict | PreTrainedConfig | None = None
    seg_token_id: int | None = None
