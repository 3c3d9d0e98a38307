"""Configurations of the Qwen3.5 families, dense and mixture of experts, with visual-token pruning."""

from __future__ import annotations

from typing import ClassVar

from transformers import Qwen3_5Config, Qwen3_5MoeConfig

from transformers_litelvlm.models.qwen3_vl_lite.configuration_qwen3_vl_lite import Qwen3_VLConfigMixin


class Qwen3_5ConfigMixin(Qwen3_VLConfigMixin):
    """For configs of models whose decoder has recurrent layers.

    Raises:
        ValueError: as [`Qwen3_VLConfigMixin`] does; for a method inside the language model.
    """

    why_none_inside = (
        "most of its layers are recurrent (linear attention), and what such a layer has read of a token cannot be "
        "taken out of its state."
    )


class Qwen3_5LiteConfig(Qwen3_5ConfigMixin, Qwen3_5Config):
    """Configuration of [`Qwen3_5LiteModel`] and the class built on it.

    Modifications of [`~transformers.Qwen3_5Config`]: what to prune and how, and what guides it, see
    [`QwenVLConfigMixin`] and [`Qwen3_5ConfigMixin`].
    """

    model_type = "qwen3_5_lite"
    family_title: ClassVar[str] = "Qwen3.5"


class Qwen3_5MoeLiteConfig(Qwen3_5ConfigMixin, Qwen3_5MoeConfig):
    """Configuration of [`Qwen3_5MoeLiteModel`] and the class built on it.

    Modifications of [`~transformers.Qwen3_5MoeConfig`]: those of [`Qwen3_5LiteConfig`].
    """

    model_type = "qwen3_5_moe_lite"
    family_title: ClassVar[str] = "Qwen3.5 MoE"
