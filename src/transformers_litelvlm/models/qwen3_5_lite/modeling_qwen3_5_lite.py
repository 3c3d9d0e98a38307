"""Qwen3.5 with visual-token pruning of images and videos: the stock models, told which visual tokens to keep."""

from transformers import (
    Qwen3_5ForConditionalGeneration,
    Qwen3_5Model,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeModel,
)

from transformers_litelvlm.models.family import pruned_features, pruned_forward
from transformers_litelvlm.models.qwen3_5_lite.configuration_qwen3_5_lite import (
    Qwen3_5LiteConfig,
    Qwen3_5MoeLiteConfig,
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


class Qwen3_5ModelMixin(TimestampedVideosMixin):
    """For base models of the Qwen3.5 families, in front of upstream's."""

    # The same folder may hold the head of the class built on this one; upstream leaves out what predicts more tokens.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^mtp.*"]


class Qwen3_5LiteModel(Qwen3_5ModelMixin, Qwen3_5Model):
    """[`~transformers.Qwen3_5Model`] whose `get_image_features` and `get_video_features` keep selected tokens.

    Modifications: both and `forward` prune before the language model, see [`PrunedModelMixin`]: its recurrent layers
    read the shortened prompt; `guidance` holds a CLIP if `config.guidance` is `"clip"`. The budget of a video is
    spread evenly over its temporal patches, and a method ranks within each of them. With pruning off it is the stock
    model, bit for bit.
    """

    config: Qwen3_5LiteConfig
    output_class = QwenVLModelOutputWithPast

    forward = pruned_forward(Qwen3_5Model, *GUIDANCE_ARGUMENTS)
    get_image_features = pruned_features(Qwen3_5Model, "image", *GUIDANCE_ARGUMENTS)
    get_video_features = pruned_features(Qwen3_5Model, "video", *GUIDANCE_ARGUMENTS)


class Qwen3_5LiteForConditionalGeneration(QwenVLHeadMixin, Qwen3_5ForConditionalGeneration):
    """[`~transformers.Qwen3_5ForConditionalGeneration`] on the visual tokens that a pruning method keeps.

    Modifications: `model` is a [`Qwen3_5LiteModel`]; `forward` and `generate` prune once, see [`PrunedHeadMixin`] and
    [`PrunedGenerationMixin`]. Loads stock weights.
    """

    config: Qwen3_5LiteConfig
    base_class = Qwen3_5LiteModel
    output_class = QwenVLCausalLMOutputWithPast

    forward = pruned_forward(Qwen3_5ForConditionalGeneration, *GUIDANCE_ARGUMENTS)


class Qwen3_5MoeLiteModel(Qwen3_5ModelMixin, Qwen3_5MoeModel):
    """[`~transformers.Qwen3_5MoeModel`], a mixture of experts, modified as [`Qwen3_5LiteModel`] is."""

    config: Qwen3_5MoeLiteConfig
    output_class = QwenVLMoeModelOutputWithPast

    forward = pruned_forward(Qwen3_5MoeModel, *GUIDANCE_ARGUMENTS)
    get_image_features = pruned_features(Qwen3_5MoeModel, "image", *GUIDANCE_ARGUMENTS)
    get_video_features = pruned_features(Qwen3_5MoeModel, "video", *GUIDANCE_ARGUMENTS)


class Qwen3_5MoeLiteForConditionalGeneration(QwenVLHeadMixin, Qwen3_5MoeForConditionalGeneration):
    """[`~transformers.Qwen3_5MoeForConditionalGeneration`], modified as [`Qwen3_5Lite`] is.

    `output_router_logits`, and the loss that balances the experts, are of the tokens that are kept.
    """

    config: Qwen3_5MoeLiteConfig
    base_class = Qwen3_5MoeLiteModel
    output_class = QwenVLMoeCausalLMOutputWithPast

    forward = pruned_forward(Qwen3_5MoeForConditionalGeneration, *GUIDANCE_ARGUMENTS)


Qwen3_5Lite = Qwen3_5LiteForConditionalGeneration
Qwen3_5MoeLite = Qwen3_5MoeLiteForConditionalGeneration
