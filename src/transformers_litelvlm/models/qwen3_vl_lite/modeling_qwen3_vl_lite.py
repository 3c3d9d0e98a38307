"""Qwen3-VL with visual-token pruning of images and videos: the stock models, told which visual tokens to keep."""

from transformers import (
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLMoeModel,
)

from transformers_litelvlm.models.family import pruned_features, pruned_forward
from transformers_litelvlm.models.masks.grounding import MASK_KEYS, GroundedMixin
from transformers_litelvlm.models.qwen3_vl_lite.configuration_qwen3_vl_lite import (
    Qwen3_VLLiteConfig,
    Qwen3_VLMoeLiteConfig,
)
from transformers_litelvlm.models.qwen_vl import (
    GUIDANCE_ARGUMENTS,
    QwenVLCausalLMOutputWithPast,
    QwenVLHeadMixin,
    QwenVLModelOutputWithPast,
    QwenVLMoeCausalLMOutputWithPast,
    QwenVLMoeModelOutputWithPast,
    TimestampedVideosMixin,
)


class Qwen3_VLModelMixin(TimestampedVideosMixin):
    """For base models with DeepStack, in front of upstream's."""

    # The same folder may hold the heads of the classes built on this one.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", *MASK_KEYS]

    @property
    def num_deepstack(self) -> int:
        return len(self.config.vision_config.deepstack_visual_indexes)


class Qwen3_VLLiteModel(Qwen3_VLModelMixin, Qwen3VLModel):
    """[`~transformers.Qwen3VLModel`] whose `get_image_features` and `get_video_features` keep selected tokens.

    Modifications: both and `forward` prune, see [`PrunedModelMixin`]; the features that DeepStack adds after the first
    decoder layers follow the selection; `guidance` holds a CLIP if `config.guidance` is `"clip"`. The budget of a
    video is spread evenly over its temporal patches, and a method ranks within each of them. With pruning off it is
    the stock model, bit for bit.
    """

    config: Qwen3_VLLiteConfig
    output_class = QwenVLModelOutputWithPast

    forward = pruned_forward(Qwen3VLModel, *GUIDANCE_ARGUMENTS)
    get_image_features = pruned_features(Qwen3VLModel, "image", *GUIDANCE_ARGUMENTS)
    get_video_features = pruned_features(Qwen3VLModel, "video", *GUIDANCE_ARGUMENTS)


class Qwen3_VLLiteForConditionalGeneration(QwenVLHeadMixin, Qwen3VLForConditionalGeneration):
    """[`~transformers.Qwen3VLForConditionalGeneration`] on the visual tokens that a pruning method keeps.

    Modifications: `model` is a [`Qwen3_VLLiteModel`]; `forward` and `generate` prune once, see [`PrunedHeadMixin`] and
    [`PrunedGenerationMixin`]. Loads stock weights.
    """

    config: Qwen3_VLLiteConfig
    # The same folder may hold the mask decoder of `Qwen3_VLLiteForReferringSegmentation`.
    _keys_to_ignore_on_load_unexpected = MASK_KEYS
    base_class = Qwen3_VLLiteModel
    output_class = QwenVLCausalLMOutputWithPast

    forward = pruned_forward(Qwen3VLForConditionalGeneration, *GUIDANCE_ARGUMENTS)


class Qwen3_VLLiteForReferringSegmentation(GroundedMixin, Qwen3_VLLiteForConditionalGeneration):
    """[`Qwen3_VLLiteForConditionalGeneration`] with a [SEG] head and a mask decoder, SAM 2 (Sa2VA).

    Modifications: those of [`Qwen2_5_VLLiteForReferringSegmentation`].
    """

    without_masks = Qwen3_VLLiteForConditionalGeneration.__name__


class Qwen3_VLMoeLiteModel(Qwen3_VLModelMixin, Qwen3VLMoeModel):
    """[`~transformers.Qwen3VLMoeModel`], a mixture of experts, modified as [`Qwen3_VLLiteModel`] is."""

    config: Qwen3_VLMoeLiteConfig
    output_class = QwenVLMoeModelOutputWithPast

    forward = pruned_forward(Qwen3VLMoeModel, *GUIDANCE_ARGUMENTS)
    get_image_features = pruned_features(Qwen3VLMoeModel, "image", *GUIDANCE_ARGUMENTS)
    get_video_features = pruned_features(Qwen3VLMoeModel, "video", *GUIDANCE_ARGUMENTS)


class Qwen3_VLMoeLiteForConditionalGeneration(QwenVLHeadMixin, Qwen3VLMoeForConditionalGeneration):
    """[`~transformers.Qwen3VLMoeForConditionalGeneration`], modified as [`Qwen3_VLLite`] is.

    `output_router_logits`, and the loss that balances the experts, are of the tokens that are kept; with a method
    inside the language model they are an error.
    """

    config: Qwen3_VLMoeLiteConfig
    base_class = Qwen3_VLMoeLiteModel
    output_class = QwenVLMoeCausalLMOutputWithPast

    forward = pruned_forward(Qwen3VLMoeForConditionalGeneration, *GUIDANCE_ARGUMENTS)


Qwen3_VLLite = Qwen3_VLLiteForConditionalGeneration
Qwen3_VLMoeLite = Qwen3_VLMoeLiteForConditionalGeneration
