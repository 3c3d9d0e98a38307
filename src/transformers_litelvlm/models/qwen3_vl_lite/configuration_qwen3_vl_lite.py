"""Configuration of the Qwen3-VL family with visual-token pruning."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import CLIPConfig, PreTrainedConfig, Qwen3VLConfig

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.qwen_vl import QwenVLConfigMixin
from transformers_litelvlm.models.upstream import SubConfigSpec
from transformers_litelvlm.pruning.layers import LayerPruner
from transformers_litelvlm.pruning.registry import get_pruner


class Qwen3_VLLiteConfig(QwenVLConfigMixin, Qwen3VLConfig):
    """Configuration of [`Qwen3_VLLiteModel`] and the class built on it.

    Modifications of [`~transformers.Qwen3VLConfig`]: what to prune and how, and what guides it, as in
    [`Qwen2_5_VLLiteConfig`].

    Args:
        pruning_config (`PruningConfig` or `dict`, *optional*): see [`PruningConfig`]; default: pruning is off. A
            budget counts the tokens of an image, or of a whole video.
        guidance (`str`, defaults to `"intrinsic"`): what tells the methods about sentences and visual tokens.
            `"intrinsic"`: the model itself, without a second one. `"clip"`: a CLIP beside it.
        guidance_model (`str`, defaults to `"openai/clip-vit-large-patch14-336"`): where that CLIP comes from when a
            checkpoint does not hold it.
        guidance_config (`CLIPConfig` or `dict`, *optional*): its configuration, set when it is loaded.

    Raises:
        ValueError: as [`PruningConfig`] does; for compact positions; for an unknown `guidance`; for a method inside
            the language model with `token_order="reference"`.
    """

    model_type = "qwen3_vl_lite"
    family_title: ClassVar[str] = "Qwen3-VL"
    # There are no masks in this family: who asks every config hears so.
    mask_config: ClassVar[None] = None
    seg_token_id: ClassVar[None] = None

    # Spelled out, because the mapping of the parent class has to be extended and is shared with every stock model.
    sub_configs_defaults = {
        **Qwen3VLConfig.sub_configs_defaults,
        "pruning_config": SubConfigSpec(config_class=PruningConfig),
        "guidance_config": SubConfigSpec(config_class=CLIPConfig, optional=True),
    }

    # Upstream hands dtypes and attention kernels to every config listed here; pruning has neither.
    sub_configs: ClassVar[dict[str, type]] = {**Qwen3VLConfig.sub_configs, "guidance_config": CLIPConfig}

    pruning_config: dict | PreTrainedConfig | None = None
    guidance: str = "intrinsic"
    guidance_model: str = "openai/clip-vit-large-patch14-336"
    guidance_config: dict | PreTrainedConfig | None = None

    def check_pruning(self, pruning: Any) -> None:
        super().check_pruning(pruning)
        if pruning.token_order == "reference" and issubclass(get_pruner(pruning.method), LayerPruner):
            raise ValueError(
                f"`token_order='reference'` is not defined for Qwen3-VL with the method {pruning.method!r}: it ranks "
                "a video as a whole, and its tokens would stand at timestamps of other frames. Use 'raster', or "
                "None."
            )

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == "qwen3_vl_moe":  # most weights would be missing
            raise ValueError(
                f"{pretrained_model_name_or_path} is a mixture of experts ('qwen3_vl_moe'), for which there is no "
                "pruning here: use a dense Qwen3-VL, or the stock class, `Qwen3VLMoeForConditionalGeneration`."
            )
        return config_dict, kwargs
