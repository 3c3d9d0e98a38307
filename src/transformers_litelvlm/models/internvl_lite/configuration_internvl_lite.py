"""Configuration of the InternVL family with visual-token pruning."""

from __future__ import annotations

from typing import ClassVar

from transformers import InternVLConfig, PreTrainedConfig

from transformers_litelvlm.models.masks.grounding import GroundedConfigMixin
from transformers_litelvlm.models.pruned_config import PrunedConfigMixin


class InternVLLiteConfig(GroundedConfigMixin, PrunedConfigMixin, InternVLConfig):
    """Configuration of [`InternVLLiteModel`] and the classes built on it.

    Modifications of [`~transformers.InternVLConfig`]: what to prune and how, and the masks. The keywords and
    attributes `pruning_budget`, `pruning_retention_ratio`, ... set fields of `pruning_config`, as in
    [`LlavaLiteConfig`].

    Args:
        pruning_config (`PruningConfig` or `dict`, *optional*): see [`PruningConfig`]; default: pruning is off. A
            budget counts the tokens of an image, all its tiles together, or of a whole video.
        mask_config, seg_token_id, grounding_config: see [`GroundedConfigMixin`].

    Raises:
        ValueError: as [`PruningConfig`] does; also if both a budget and a ratio are given.
    """

    model_type = "internvl_lite"
    family_title: ClassVar[str] = "InternVL"

    pruning_config: dict | PreTrainedConfig | None = None
