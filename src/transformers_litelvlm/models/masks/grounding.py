"""From the language model's states to prompts of the mask decoder: what checkpoints do differently,
as settings, and the part of the model that follows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from transformers_litelvlm.models.devices import to_device_of
from transformers_litelvlm.models.masks import sam2  # noqa: F401  registers its decoder
from transformers_litelvlm.models.masks.decoder import mask_decoder_class
from transformers_litelvlm.models.masks.segmentation import ReferringSegmentationMixin, require_mask_parts
from transformers_litelvlm.models.upstream import Qwen2_5_VLRMSNorm, SubConfigSpec
from transformers_litelvlm.utils.messages import quoted


# Weights of the classes with masks that the other classes of a family leave aside.
MASK_KEYS = [r"^mask_model\.", r"^seg_head\."]

_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}

# Field -> what it may be.
_CHOICES: dict[str, tuple] = {
    "pictures_as": ("image", "video"),
    "reads": ("before", "at"),
    "before_norm": (True, False),
    "head_norm": (True, False),
    "head_activation": tuple(_ACTIVATIONS),
}


class GroundingConfig(PreTrainedConfig):
    """How the states of a language model become prompts of a mask decoder. The defaults are UniPixel's.

    Args:
        pictures_as (`str`, defaults to `"video"`): what a picture is for the language model, a `"video"` of one frame
            or an `"image"`; with the latter, frames of a video are images, too.
        reads (`str`, defaults to `"before"`): whether the state that makes a mask is the one `"before"` [SEG], which
            predicts it, or the one `"at"` [SEG], which needs a token after it in an answer that the model writes.
        before_norm (`bool`, defaults to `True`): whether it is read before the language model's final norm.
        num_prompt_tokens (`int`, defaults to 2): tokens that a mask is prompted with.
        head_norm (`bool`, defaults to `True`): whether the head between the two begins with an RMS norm.
        head_activation (`str`, defaults to `"gelu"`): between its two linear layers; or `"relu"`.

    Raises:
        ValueError: for a value that is not one of these.
    """

    model_type = "grounding"

    pictures_as: str = "video"
    reads: str = "before"
    before_norm: bool = True
    num_prompt_tokens: int = 2
    head_norm: bool = True
    head_activation: str = "gelu"

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _CHOICES and value not in _CHOICES[key]:
            allowed = ", ".join(map(repr, _CHOICES[key]))
            raise ValueError(f"`grounding_config.{key}` must be one of {allowed}, got {quoted(value)}.")
        if key == "num_prompt_tokens" and (type(value) is not int or value < 1):
            raise ValueError(
                f"`grounding_config.num_prompt_tokens` must be a whole number above 0, got {quoted(value)}."
            )
        super().__setattr__(key, value)


# As a dataclass, it gives its fields to upstream's configs, which are dataclasses.
@dataclass(init=False, repr=False, eq=False, kw_only=True)
class GroundedConfigMixin:
    """For configs of families with masks.

    Args:
        mask_config (`PreTrainedConfig` or `dict`, *optional*): the mask decoder, a `Sam2VideoConfig` unless its
            `model_type` says otherwise; `None` for models without masks.
        seg_token_id (`int`, *optional*): id of the token that stands for a mask.
        grounding_config (`GroundingConfig` or `dict`, *optional*): how its states become masks.
    """

    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "mask_config": SubConfigSpec(config_class=AutoConfig, model_type="sam2_video", optional=True),
        "grounding_config": SubConfigSpec(config_class=GroundingConfig, optional=True),
    }

    mask_config: dict | PreTrainedConfig | None = None
    seg_token_id: int | None = None
    grounding_config: dict | PreTrainedConfig | None = None


class GroundedMixin(ReferringSegmentationMixin):
    """For a model that writes masks, in front of its model that answers in text: `seg_head` turns the state of
    each [SEG] into prompt tokens of `mask_model`, as `config.grounding_config` says.

    Attributes:
        without_masks: name of the class for checkpoints without a mask decoder.
    """

    # Everything is expected here: nothing of the folder is left over.
    _keys_to_ignore_on_load_unexpected: list[str] = []
    without_masks: ClassVar[str]

    def __init__(self, config: Any) -> None:
        require_mask_parts(config, type(self).__name__, self.without_masks)
        config.grounding_config = grounding = config.grounding_config or GroundingConfig()
        # Upstream puts the state after the norm at the end of the hidden states that it returns, unless told not to.
        config.text_config.tie_last_hidden_states = not grounding.before_norm
        super().__init__(config)
        decoder, size = mask_decoder_class(config.mask_config), config.text_config.hidden_size
        self.seg_head = nn.Sequential(
            *([Qwen2_5_VLRMSNorm(size)] if grounding.head_norm else []),
            nn.Linear(size, size),
            _ACTIVATIONS[grounding.head_activation](),
            nn.Linear(size, grounding.num_prompt_tokens * decoder.prompt_size(config.mask_config)),
        )
        self.mask_model = decoder.build(config.mask_config)
        self.mask_modality = grounding.pictures_as
        self.reads_before_norm = grounding.before_norm
        self.reads_at_seg = grounding.reads == "at"
        self.post_init()

    def prompts_of_seg(self, states: torch.Tensor) -> torch.Tensor:
        prompts = self.seg_head(to_device_of(self.seg_head[-1], states))
        return prompts.unflatten(-1, (self.config.grounding_config.num_prompt_tokens, -1))
