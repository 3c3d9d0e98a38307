"""What the families of Qwen's vision-language models share: media of any size, M-RoPE, a choice of guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import CLIPConfig, PreTrainedConfig

from transformers_litelvlm.models.family import SENTENCE_ARGUMENTS, PrunedHeadMixin, PrunedModelMixin
from transformers_litelvlm.models.guidance.clip import SideClip, load_side_clip
from transformers_litelvlm.models.guidance.encoded import EncodedMedia, Grid
from transformers_litelvlm.models.guidance.qwen_tower import GUIDANCE, token_grids
from transformers_litelvlm.models.loading import GuidedLoadingMixin
from transformers_litelvlm.models.outputs import PrunedOutputMixin
from transformers_litelvlm.models.per_thread import PerThread
from transformers_litelvlm.models.prompt.generation import PrunedGenerationMixin
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedPrompt
from transformers_litelvlm.models.pruned_config import PrunedConfigMixin
from transformers_litelvlm.models.upstream import (
    MultimodalBaseModelOutputWithPast,
    MultimodalCausalLMOutputWithPast,
    MultimodalMoeBaseModelOutputWithPast,
    MultimodalMoeCausalLMOutputWithPast,
    SubConfigSpec,
)
from transformers_litelvlm.utils.messages import quoted


GUIDANCE_ARGUMENTS = (*SENTENCE_ARGUMENTS, "guidance_pixel_values")


# Mixins of upstream's dataclasses give them fields if they are dataclasses, too.
@dataclass(init=False, repr=False, eq=False, kw_only=True)
class QwenVLConfigMixin(PrunedConfigMixin):
    """For configs: what to prune and how, and what guides it.

    Args:
        pruning_config (`PruningConfig` or `dict`, *optional*): see [`PruningConfig`]; default: pruning is off. A
            budget counts the tokens of an image, or of a whole video.
        guidance (`str`, defaults to `"intrinsic"`): what tells the methods about sentences and visual tokens.
            `"intrinsic"`: the model itself, without a second one. `"clip"`: a CLIP beside it.
        guidance_model (`str`, defaults to `"openai/clip-vit-large-patch14-336"`): where that CLIP comes from when a
            checkpoint does not hold it.
        guidance_config (`CLIPConfig` or `dict`, *optional*): its configuration, set when it is loaded.

    Raises:
        ValueError: as [`PrunedConfigMixin`] does; for compact positions; for an unknown `guidance`.
    """

    # Positions are places in the picture: renumbered, they would mean nothing.
    default_token_order: ClassVar[str] = "raster"
    default_position_ids: ClassVar[str] = "original"

    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "guidance_config": SubConfigSpec(config_class=CLIPConfig, optional=True)
    }

    pruning_config: dict | PreTrainedConfig | None = None
    guidance: str = "intrinsic"
    guidance_model: str = "openai/clip-vit-large-patch14-336"
    guidance_config: dict | PreTrainedConfig | None = None

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "guidance" and value not in GUIDANCE:
            raise ValueError(f"`guidance` must be one of {', '.join(map(repr, GUIDANCE))}, got {quoted(value)}.")
        super().__setattr__(key, value)

    @property
    def num_tower_layers(self) -> int:
        return self.vision_config.depth

    def check_pruning(self, pruning: Any) -> None:
        super().check_pruning(pruning)
        if pruning.position_ids == "compact":
            raise ValueError(
                f"`position_ids='compact'` is not defined for {self.family_title}: its positions are places in the "
                "picture (and in time), and renumbering them would erase the places. Use 'original', or None. The "
                "preset 'faithful' asks for compact positions, too."
            )


@dataclass
class QwenVLModelOutputWithPast(PrunedOutputMixin, MultimodalBaseModelOutputWithPast):
    """Upstream's, whose `image_outputs`, `video_outputs` are [`PrunedImageFeatures`] if tokens were pruned."""


@dataclass
class QwenVLCausalLMOutputWithPast(PrunedOutputMixin, MultimodalCausalLMOutputWithPast):
    """Upstream's, further as [`QwenVLModelOutputWithPast`]."""


@dataclass
class QwenVLMoeModelOutputWithPast(PrunedOutputMixin, MultimodalMoeBaseModelOutputWithPast):
    """Upstream's of a mixture of experts, further as [`QwenVLModelOutputWithPast`]; `router_logits` have the tokens
    that the layers got."""


@dataclass
class QwenVLMoeCausalLMOutputWithPast(PrunedOutputMixin, MultimodalMoeCausalLMOutputWithPast):
    """Upstream's, further as [`QwenVLMoeModelOutputWithPast`]."""


class QwenVLModelMixin(GuidedLoadingMixin, PrunedModelMixin):
    """For base models of images and videos, in front of upstream's.

    Attributes:
        context_block: index of the vision block whose attention intrinsic guidance reads, see [`IntrinsicEvidence`].
    """

    config: Any
    visual: Any
    dtype: torch.dtype
    device: torch.device
    compute_3d_position_ids: Callable[..., torch.Tensor | None]

    # Small beside the language model, and what they compute decides which tokens are kept and where a mask ends.
    unquantized_parts = ("visual", "guidance", "seg_head", "mask_model")
    media_arguments: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("pixel_values", "image_grid_thw"),
        "video": ("pixel_values_videos", "video_grid_thw"),
    }
    further_arguments: ClassVar[tuple[str, ...]] = ("mm_token_type_ids",)
    guidance_arguments = GUIDANCE_ARGUMENTS
    counts_positions = False
    rope_deltas = PerThread()  # of the last prompt; upstream's is one for all threads

    @property
    def context_block(self) -> int:
        return self.config.vision_config.depth - 1

    def in_raster_order(self, states: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """The patches inside the tower, (tokens, merge ** 2, C), frame after frame and each frame in raster order.

        Args:
            grid_thw: (M, 3) patches of each medium.
        """
        return states

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.guidance = None if config.guidance_config is None else SideClip(config.guidance_config)
        self.post_init()  # type: ignore[attr-defined]

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
        of_tower = {name: value for name, value in arguments.items() if name not in self.guidance_arguments}

        def encode(**further: Any) -> Any:
            return self.upstream_features(modality, {**of_tower, **further})

        grid_thw, pictures = arguments[f"{modality}_grid_thw"], arguments.get("guidance_pixel_values")
        return GUIDANCE[self.config.guidance].encode(self, encode, grid_thw, pictures)

    def full_positions(self, arguments: dict[str, Any]) -> torch.Tensor | None:
        ids, cache = arguments.get("input_ids"), arguments.get("cache")
        if cache is not None and cache.get_seq_length() > 0:  # upstream would number images as if they were text
            raise ValueError(
                f"`cache` holds {cache.get_seq_length()} tokens, and places in a picture after them cannot be told "
                "from `input_ids`. Pass the `position_ids` of these, or call `generate` with the whole prompt."
            )
        # Upstream only reads the size and device of embeddings.
        embeds = arguments["inputs_embeds"] if ids is None else ids.unsqueeze(-1)
        return self._upstream_positions(arguments, embeds, cache)

    def decoder_positions(self, prompt: PrunedPrompt, embeds: torch.Tensor, cache: Any) -> torch.Tensor | None:
        return self._upstream_positions(prompt.inputs, embeds, cache)

    def _upstream_positions(self, arguments: dict[str, Any], embeds: torch.Tensor, cache: Any) -> torch.Tensor | None:
        names = ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw", *self.further_arguments)
        given = {name: arguments.get(name) for name in names}
        return self.compute_3d_position_ids(inputs_embeds=embeds, cache=cache, **given)

    def continue_after(self, prompt: PrunedPrompt, full_positions: torch.Tensor) -> None:
        places = full_positions[-3:] if full_positions.ndim == 3 else full_positions.unsqueeze(0)
        # New positions are `rope_deltas` plus the number of tokens before, as in upstream's `get_rope_index`; the mask
        # covers those in a cache, too.
        before = prompt.inputs["attention_mask"].long().sum(dim=1)
        self.rope_deltas = (places.amax(dim=(0, 2)) + 1 - before).unsqueeze(1)
        if full_positions.ndim == 3 and len(full_positions) == 4:
            # Row 0 numbers the tokens for the attention mask: there, a gap would mean another, packed sequence.
            numbers = (prompt.plan.is_real.long().cumsum(dim=-1) - 1).clamp(min=0)
            positions = prompt.inputs["position_ids"]
            prompt.inputs["position_ids"] = torch.cat((numbers.unsqueeze(0), positions[1:]))

    def check_short_prompt(self, prompt: PrunedPrompt) -> None:
        is_pruned = any(prompt.kept(modality) is not None for modality in self.modalities)
        if is_pruned and prompt.inputs.get("position_ids") is None:
            raise ValueError(
                "The prompt already holds the placeholders of the kept tokens alone, so their places in the picture "
                "cannot be told from it. Pass `position_ids`, or a prompt with all placeholders."
            )


class TimestampedVideosMixin(QwenVLModelMixin):
    """For base models that see a video as pictures between timestamps, in front of upstream's."""

    def upstream_features(self, modality: str, arguments: dict[str, Any]) -> Any:
        # Upstream's method for videos calls `get_image_features`, which here prunes.
        names = dict(zip(self.media_arguments[modality], self.media_arguments["image"]))
        arguments = {names.get(name, name): value for name, value in arguments.items()}
        return super().upstream_features("image", arguments)


class QwenVLHeadMixin(GuidedLoadingMixin, PrunedGenerationMixin, PrunedHeadMixin):
    """For models that answer in text, in front of upstream's."""
