"""Qwen3-VL with visual-token pruning of images and videos: the stock model, told which visual tokens to keep."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLModel

from transformers_litelvlm.models.family import PrunedHeadMixin, pruned_features, pruned_forward
from transformers_litelvlm.models.outputs import PrunedOutputMixin
from transformers_litelvlm.models.prompt.generation import PrunedGenerationMixin
from transformers_litelvlm.models.qwen3_vl_lite.configuration_qwen3_vl_lite import Qwen3_VLLiteConfig
from transformers_litelvlm.models.qwen_vl import GUIDANCE_ARGUMENTS, QwenVLLoadingMixin, QwenVLModelMixin
from transformers_litelvlm.models.remote_code import RemoteCodeMixin
from transformers_litelvlm.models.upstream import MultimodalBaseModelOutputWithPast, MultimodalCausalLMOutputWithPast


@dataclass
class Qwen3_VLLiteModelOutputWithPast(PrunedOutputMixin, MultimodalBaseModelOutputWithPast):
    """Upstream's, whose `image_outputs`, `video_outputs` are [`PrunedImageFeatures`] if tokens were pruned."""


@dataclass
class Qwen3_VLLiteCausalLMOutputWithPast(PrunedOutputMixin, MultimodalCausalLMOutputWithPast):
    """Upstream's, further as [`Qwen3_VLLiteModelOutputWithPast`]."""


class Qwen3_VLLiteModel(RemoteCodeMixin, QwenVLModelMixin, Qwen3VLModel):
    """[`~transformers.Qwen3VLModel`] whose `get_image_features` and `get_video_features` keep selected tokens.

    Modifications: both and `forward` prune, see [`PrunedModelMixin`]; the features that DeepStack adds after the first
    decoder layers follow the selection; `guidance` holds a CLIP if `config.guidance` is `"clip"`. The budget of a
    video is spread evenly over its temporal patches, and a method ranks within each of them. With pruning off it is
    the stock model, bit for bit.
    """

    config: Qwen3_VLLiteConfig
    # The same folder may hold the head of the class built on this one.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]
    output_class = Qwen3_VLLiteModelOutputWithPast

    forward = pruned_forward(Qwen3VLModel, *GUIDANCE_ARGUMENTS)
    get_image_features = pruned_features(Qwen3VLModel, "image", *GUIDANCE_ARGUMENTS)
    get_video_features = pruned_features(Qwen3VLModel, "video", *GUIDANCE_ARGUMENTS)

    @property
    def num_deepstack(self) -> int:
        return len(self.config.vision_config.deepstack_visual_indexes)

    def upstream_features(self, modality: str, arguments: dict[str, Any]) -> Any:
        # Upstream's method for videos calls `get_image_features`, which here prunes.
        names = dict(zip(self.media_arguments[modality], self.media_arguments["image"]))
        arguments = {names.get(name, name): value for name, value in arguments.items()}
        return super().upstream_features("image", arguments)


class Qwen3_VLLiteForConditionalGeneration(
    RemoteCodeMixin, QwenVLLoadingMixin, PrunedGenerationMixin, PrunedHeadMixin, Qwen3VLForConditionalGeneration
):
    """[`~transformers.Qwen3VLForConditionalGeneration`] on the visual tokens that a pruning method keeps.

    Modifications: `model` is a [`Qwen3_VLLiteModel`]; `forward` and `generate` prune once, see [`PrunedHeadMixin`] and
    [`PrunedGenerationMixin`]. Loads stock weights.
    """

    config: Qwen3_VLLiteConfig
    output_class = Qwen3_VLLiteCausalLMOutputWithPast

    forward = pruned_forward(Qwen3VLForConditionalGeneration, *GUIDANCE_ARGUMENTS)

    def __init__(self, config: Qwen3_VLLiteConfig) -> None:
        # Upstream's constructor would build a stock Qwen3VLModel only to throw it away.
        super(Qwen3VLForConditionalGeneration, self).__init__(config)
        self.model = Qwen3_VLLiteModel(config)
        self.lm_head = torch.nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


Qwen3_VLLite = Qwen3_VLLiteForConditionalGeneration

__all__ = ["Qwen3_VLLite", "Qwen3_VLLiteForConditionalGeneration", "Qwen3_VLLiteModel"]
