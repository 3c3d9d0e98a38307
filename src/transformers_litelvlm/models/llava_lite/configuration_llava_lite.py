"""Configuration of the LLaVA family with visual-token pruning."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, CLIPTextConfig, LlavaConfig, PreTrainedConfig

from transformers_litelvlm.models.pruned_config import PrunedConfigMixin
from transformers_litelvlm.models.upstream import SubConfigSpec


PROJECTOR_TYPES = ("mlp2x_gelu", "linear")


class LlavaLiteConfig(PrunedConfigMixin, LlavaConfig):
    """Configuration of [`LlavaLiteModel`] and the classes built on it.

    Modifications of [`~transformers.LlavaConfig`]: what to prune and how, the CLIP text tower that guides it, and,
    for models that write masks, the mask decoder. `pruning_budget`, `pruning_retention_ratio`, `pruning_method`,
    `pruning_method_options`, `pruning_token_order`, `pruning_position_ids` and `pruning_preset` are accepted as
    keywords here and in `from_pretrained`, and as attributes; they set fields of `pruning_config`.

    Args:
        pruning_config (`PruningConfig` or `dict`, *optional*): see [`PruningConfig`]; default: pruning is off.
        guidance_text_config (`CLIPTextConfig` or `dict`, *optional*): text tower of the CLIP that the vision tower
            comes from; default: that of openai/clip-vit-large-patch14-336.
        guidance_projection_dim (`int`, defaults to 768): size of CLIP's shared image-text space.
        guidance_model (`str`, defaults to `"openai/clip-vit-large-patch14-336"`): where the guidance weights come
            from when a checkpoint does not hold them.
        mask_config (`PreTrainedConfig` or `dict`, *optional*): the mask decoder, a `SamConfig` unless its `model_type`
            says otherwise; `None` for models without masks.
        seg_token_id (`int`, *optional*): id of `[SEG]`; `None` for models without masks.
        projector_type (`str`, defaults to `"mlp2x_gelu"`): LLaVA-1.5's projector of two layers, or `"linear"`, the
            single layer of LLaVA-1.0 and LISA.

    The id of the image placeholder, `image_token_index`, may lie outside the vocabulary: GLaMM and LISA have no row
    for it in their tables.

    Raises:
        ValueError: as [`PruningConfig`] does; also if both a budget and a ratio are given, for an unknown
            `projector_type`, and for the config of a checkpoint in the layout of the original LLaVA code.
    """

    model_type = "llava_lite"
    family_title: ClassVar[str] = "A LLaVA-style model"
    # LLaVA checkpoints often come without a chat template.
    example_question: ClassVar[str] = '"photo.jpg", text="USER: <image>\\nWhat is this? ASSISTANT:"'
    has_class_token = True

    sub_configs_defaults = {
        "guidance_text_config": SubConfigSpec(
            config_class=CLIPTextConfig,
            init_kwargs={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        ),
        "mask_config": SubConfigSpec(config_class=AutoConfig, model_type="sam", optional=True),
    }

    pruning_config: dict | PreTrainedConfig | None = None
    guidance_text_config: dict | PreTrainedConfig | None = None
    guidance_projection_dim: int = 768
    guidance_model: str = "openai/clip-vit-large-patch14-336"
    mask_config: dict | PreTrainedConfig | None = None
    seg_token_id: int | None = None
    projector_type: str = "mlp2x_gelu"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.projector_type not in PROJECTOR_TYPES:
            raise ValueError(f"`projector_type` must be one of {PROJECTOR_TYPES}, got {self.projector_type!r}.")

    @property
    def num_visual_tokens(self) -> int:
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """As upstream, but refuses the config of a checkpoint in the layout of the original LLaVA code."""
        if "mm_vision_tower" in config_dict:  # also a "llava" by its `model_type`, but flat, with other weight names
            kind = ", ".join(config_dict.get("architectures") or ["LLaVA"])
            raise ValueError(
                f"This is a checkpoint of the original code ({kind}), not of Transformers. Convert it once with "
                "`litelvlm convert {glamm,lisa} SOURCE TARGET` and load TARGET."
            )
        return super().from_dict(config_dict, **kwargs)
