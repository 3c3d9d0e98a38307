"""Qwen2.5-VL with visual-token pruning of images and videos: the stock model, told which visual tokens to keep."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

from transformers_litelvlm.models.family import (
    SENTENCE_ARGUMENTS,
    PrunedHeadMixin,
    PrunedModelMixin,
    pruned_features,
    pruned_forward,
)
from transformers_litelvlm.models.guidance.clip import SideClip, load_side_clip
from transformers_litelvlm.models.guidance.encoded import EncodedMedia, Grid
from transformers_litelvlm.models.loading import GuidedLoadingMixin
from transformers_litelvlm.models.outputs import PrunedOutputMixin
from transformers_litelvlm.models.per_thread import PerThread
from transformers_litelvlm.models.prompt.generation import PrunedGenerationMixin
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedPrompt
from transformers_litelvlm.models.qwen2_5_vl_lite.configuration_qwen2_5_vl_lite import Qwen2_5_VLLiteConfig
from transformers_litelvlm.models.qwen2_5_vl_lite.guidance_qwen2_5_vl_lite import GUIDANCE, token_grids
from transformers_litelvlm.models.remote_code import RemoteCodeMixin
from transformers_litelvlm.models.upstream import MultimodalBaseModelOutputWithPast, MultimodalCausalLMOutputWithPast


# Weights of `Qwen2_5_VLLiteForReferringSegmentation` that the other classes leave aside.
MASK_KEYS = [r"^mask_model\.", r"^seg_head\."]

GUIDANCE_ARGUMENTS = (*SENTENCE_ARGUMENTS, "guidance_pixel_values")


@dataclass
class Qwen2_5_VLLiteModelOutputWithPast(PrunedOutputMixin, MultimodalBaseModelOutputWithPast):
    """Upstream's, whose `image_outputs`, `video_outputs` are [`PrunedImageFeatures`] if tokens were pruned."""


@dataclass
class Qwen2_5_VLLiteCausalLMOutputWithPast(PrunedOutputMixin, MultimodalCausalLMOutputWithPast):
    """Upstream's, further as [`Qwen2_5_VLLiteModelOutputWithPast`]."""


class Qwen2_5_VLLiteLoadingMixin(GuidedLoadingMixin):
    """For the model classes: what quantization leaves as it is."""

    # Small beside the language model, and what they compute decides which tokens are kept and where a mask ends.
    unquantized_parts = ("visual", "guidance", "seg_head", "mask_model")


class Qwen2_5_VLLiteModel(RemoteCodeMixin, Qwen2_5_VLLiteLoadingMixin, PrunedModelMixin, Qwen2_5_VLModel):
    """[`~transformers.Qwen2_5_VLModel`] whose `get_image_features` and `get_video_features` keep selected tokens.

    Modifications: both and `forward` prune, see [`PrunedModelMixin`]; `guidance` holds a CLIP if `config.guidance` is
    `"clip"`. The budget of a video is spread evenly over its temporal patches, and a method ranks within each of them.
    With pruning off it is the stock model, bit for bit.
    """

    config: Qwen2_5_VLLiteConfig
    # The same folder may hold the heads of the classes built on this one.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", *MASK_KEYS]

    media_arguments: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("pixel_values", "image_grid_thw"),
        "video": ("pixel_values_videos", "video_grid_thw"),
    }
    further_arguments = ("second_per_grid_ts", "mm_token_type_ids")
    guidance_arguments = GUIDANCE_ARGUMENTS
    output_class = Qwen2_5_VLLiteModelOutputWithPast
    rope_deltas = PerThread()  # of the last prompt; upstream's is one for all threads

    forward = pruned_forward(Qwen2_5_VLModel, *GUIDANCE_ARGUMENTS)
    get_image_features = pruned_features(Qwen2_5_VLModel, "image", *GUIDANCE_ARGUMENTS)
    get_video_features = pruned_features(Qwen2_5_VLModel, "video", *GUIDANCE_ARGUMENTS)

    def __init__(self, config: Qwen2_5_VLLiteConfig) -> None:
        super().__init__(config)
        self.guidance = None if config.guidance_config is None else SideClip(config.guidance_config)
        self.post_init()

    def load_missing_guidance(self, **access: Any) -> None:
        """As [`load_guidance`], if the config asks for a CLIP and none is there."""
        if self.config.guidance == "clip" and self.guidance is None:
            self.load_guidance(**access)

    def load_guidance(self, source: str | None = None, **access: Any) -> None:
        """Load the CLIP that `guidance="clip"` uses; `from_pretrained` does where it is needed.

        Args:
            source: folder or Hub id of a [`~transformers.CLIPModel`]; default: `config.guidance_model`.
            access: of `from_pretrained`: `cache_dir`, `force_download`, `local_files_only`, `token`.

        Raises:
            ValueError: if it cannot be loaded.
        """
        source = self.config.guidance_model if source is None else source
        self.guidance, self.config.guidance_config = load_side_clip(source, self.dtype, self.device, **access)
        self.config.guidance_model = source

    def media_grids(self, modality: str, arguments: dict[str, Any]) -> list[Grid]:
        return token_grids(arguments[f"{modality}_grid_thw"], self.visual.spatial_merge_size)

    def encode(self, modality: str, arguments: dict[str, Any]) -> EncodedMedia:
        pixels, grid = self.media_arguments[modality]
        own = {pixels, grid, *self.guidance_arguments}
        of_tower = {name: value for name, value in arguments.items() if name not in own}
        upstream = getattr(super(PrunedModelMixin, self), f"get_{modality}_features")
        encode = partial(upstream, arguments[pixels], arguments[grid], return_dict=True, **of_tower)
        pictures = arguments.get("guidance_pixel_values")
        return GUIDANCE[self.config.guidance].encode(self, encode, arguments[grid], pictures)

    def full_positions(self, arguments: dict[str, Any]) -> torch.Tensor | None:
        ids = arguments.get("input_ids")
        # Upstream only reads the size and device of embeddings.
        embeds = arguments["inputs_embeds"] if ids is None else ids.unsqueeze(-1)
        return self._upstream_positions(arguments, embeds, arguments.get("cache"))

    def decoder_positions(self, prompt: PrunedPrompt, embeds: torch.Tensor, cache: Any) -> torch.Tensor | None:
        return self._upstream_positions(prompt.inputs, embeds, cache)

    def _upstream_positions(self, arguments: dict[str, Any], embeds: torch.Tensor, cache: Any) -> torch.Tensor | None:
        names = ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw", *self.further_arguments)
        given = {name: arguments.get(name) for name in names}
        return self.compute_3d_position_ids(inputs_embeds=embeds, cache=cache, **given)

    def continue_after(self, prompt: PrunedPrompt, full_positions: torch.Tensor) -> None:
        if full_positions.ndim < 3:
            return
        is_real = prompt.plan.is_real
        # New positions are `rope_deltas` plus the number of tokens before, as in upstream's `get_rope_index`.
        self.rope_deltas = (full_positions[-3:].amax(dim=(0, 2)) + 1 - is_real.sum(dim=1)).unsqueeze(1)
        if len(full_positions) == 4:
            # Row 0 numbers the tokens for the attention mask: there, a gap would mean another, packed sequence.
            numbers = (is_real.long().cumsum(dim=-1) - 1).clamp(min=0)
            positions = prompt.inputs["position_ids"]
            prompt.inputs["position_ids"] = torch.cat((numbers.unsqueeze(0), positions[1:]))

    def check_short_prompt(self, prompt: PrunedPrompt) -> None:
        is_pruned = any(prompt.kept(modality) is not None for modality in self.modalities)
        if is_pruned and prompt.inputs.get("position_ids") is None:
            raise ValueError(
                "The prompt already holds the placeholders of the kept tokens alone, so their places in the picture "
                "cannot be told from it. Pass `position_ids`, or a prompt with all placeholders."
            )


class Qwen2_5_VLLiteForConditionalGeneration(
    RemoteCodeMixin,
    Qwen2_5_VLLiteLoadingMixin,
    PrunedGenerationMixin,
    PrunedHeadMixin,
    Qwen2_5_VLForConditionalGeneration,
):
    """[`~transformers.Qwen2_5_VLForConditionalGeneration`] on the visual tokens that a pruning method keeps.

    Modifications: `model` is a [`Qwen2_5_VLLiteModel`]; `forward` and `generate` prune once, see [`PrunedHeadMixin`]
    and [`PrunedGenerationMixin`]. Loads stock weights.
    """

    config: Qwen2_5_VLLiteConfig
    # The same folder may hold the mask decoder of `Qwen2_5_VLLiteForReferringSegmentation`.
    _keys_to_ignore_on_load_unexpected = MASK_KEYS
    output_class = Qwen2_5_VLLiteCausalLMOutputWithPast

    forward = pruned_forward(Qwen2_5_VLForConditionalGeneration, *GUIDANCE_ARGUMENTS)

    def __init__(self, config: Qwen2_5_VLLiteConfig) -> None:
        # Upstream's constructor would build a stock Qwen2_5_VLModel only to throw it away.
        super(Qwen2_5_VLForConditionalGeneration, self).__init__(config)
        self.model = Qwen2_5_VLLiteModel(config)
        self.lm_head = torch.nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


Qwen2_5_VLLite = Qwen2_5_VLLiteForConditionalGeneration

__all__ = ["Qwen2_5_VLLite", "Qwen2_5_VLLiteForConditionalGeneration", "Qwen2_5_VLLiteModel"]
