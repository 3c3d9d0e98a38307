"""Configurations of the Qwen3-VL families, dense and mixture of experts, with visual-token pruning."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import Qwen3VLConfig, Qwen3VLMoeConfig

from transformers_litelvlm.models.masks.grounding import GroundedConfigMixin
from transformers_litelvlm.models.qwen_vl import QwenVLConfigMixin
from transformers_litelvlm.pruning.layers import LayerPruner
from transformers_litelvlm.pruning.registry import get_pruner


class Qwen3_VLConfigMixin(GroundedConfigMixin, QwenVLConfigMixin):
    """For configs of models that see a video as pictures between timestamps.

    Raises:
        ValueError: as [`QwenVLConfigMixin`] does; for a method inside the language model with
            `token_order="reference"`.
    """

    def check_pruning(self, pruning: Any) -> None:
        super().check_pruning(pruning)
        if pruning.token_order == "reference" and issubclass(get_pruner(pruning.method), LayerPruner):
            raise ValueError(
                f"`token_order='reference'` is not defined for {self.family_title} with the method "
                f"{pruning.method!r}: it ranks a video as a whole, and its tokens would stand at timestamps of other "
                "frames. Use 'raster', or None."
            )


class Qwen3_VLLiteConfig(Qwen3_VLConfigMixin, Qwen3VLConfig):
    """Configuration of [`Qwen3_VLLiteModel`] and the class built on it.

    Modifications of [`~transformers.Qwen3VLConfig`]: what to prune and how, what guides it, and the masks, see
    [`QwenVLConfigMixin`], [`GroundedConfigMixin`] and [`Qwen3_VLConfigMixin`].
    """

    model_type = "qwen3_vl_lite"
    family_title: ClassVar[str] = "Qwen3-VL"


class Qwen3_VLMoeLiteConfig(Qwen3_VLConfigMixin, Qwen3VLMoeConfig):
    """Configuration of [`Qwen3_VLMoeLiteModel`] and the class built on it.

    Modifications of [`~transformers.Qwen3VLMoeConfig`]: those of [`Qwen3_VLLiteConfig`].
    """

    model_type = "qwen3_vl_moe_lite"
    family_title: ClassVar[str] = "Qwen3-VL MoE"
