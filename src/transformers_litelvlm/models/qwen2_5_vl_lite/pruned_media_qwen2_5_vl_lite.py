"""Images and videos of Qwen2.5-VL, encoded and pruned: `get_image_features` and `get_video_features`."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.models.guidance.clip import load_side_clip
from transformers_litelvlm.models.guidance.frames import select_frames
from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.models.quantization import keep_unquantized
from transformers_litelvlm.models.qwen2_5_vl_lite.guidance_qwen2_5_vl_lite import GUIDANCE, FrameGuidance
from transformers_litelvlm.pruning.base import Pruner, get_pruner, list_pruners
from transformers_litelvlm.pruning.selection import resolve_budget


# Small beside the language model, and what they compute decides which tokens survive and where a mask ends.
UNQUANTIZED_PARTS = ["visual", "guidance", "seg_head", "mask_model"]


class SideGuidanceLoadingMixin:
    """For the model classes: with `guidance="clip"`, a checkpoint without a CLIP gets it from `guidance_model`.

    A `quantization_config` leaves the vision tower, the guidance and the parts that make masks as they are.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any):
        """As upstream.

        Raises:
            ValueError: if a CLIP is needed, and the one that the config names cannot be loaded.
        """
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = keep_unquantized(kwargs["quantization_config"], UNQUANTIZED_PARTS)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if model.config.guidance == "clip" and model.base_model.guidance is None:
            model.base_model.load_guidance()
        return (model, info) if output_loading_info else model


class PrunedMediaMixin:
    """For the base model, in front of [`~transformers.Qwen2_5_VLModel`]: its features are those of kept tokens."""

    def load_guidance(self, source: str | None = None) -> None:
        """Load the CLIP that `guidance="clip"` uses; `from_pretrained` does where it is needed.

        Args:
            source: folder or Hub id of a [`~transformers.CLIPModel`]; default: `config.guidance_model`.

        Raises:
            ValueError: if it cannot be loaded.
        """
        source = self.config.guidance_model if source is None else source
        self.guidance, self.config.guidance_config = load_side_clip(source, self.dtype, self.device)
        self.config.guidance_model = source

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_grid_thw: torch.Tensor | None = None,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
        guidance_pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling | PrunedImageFeatures:
        """Encode images and keep the visual tokens that the pruning method selects.

        Args:
            pixel_values, image_grid_thw: as upstream, for M images.
            guidance_input_ids: (M, T, L) the T expressions of each image, as the processor makes them: in the language
                model's tokens, or in CLIP's with `guidance="clip"`.
            guidance_attention_mask: (M, T, L); an expression that an image does not have is all zero.
            guidance_pixel_values: (M, 3, S, S) the images for CLIP.

        Returns:
            Upstream's output where pruning is off, or cuts nothing. Otherwise [`PrunedImageFeatures`].

        Raises:
            ValueError: if the method needs sentences and there are none, or guidance is not what the config asks for.
        """
        guidance = (guidance_input_ids, guidance_attention_mask, guidance_pixel_values)
        return self._encode(super().get_image_features, pixel_values, image_grid_thw, guidance, **kwargs)

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor,
        video_grid_thw: torch.Tensor | None = None,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
        guidance_pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling | PrunedImageFeatures:
        """As [`get_image_features`], for M videos; `guidance_pixel_values` has a picture for every temporal patch.

        The budget of a video is spread evenly over its temporal patches, and the method ranks within each of them.
        """
        guidance = (guidance_input_ids, guidance_attention_mask, guidance_pixel_values)
        return self._encode(super().get_video_features, pixel_values_videos, video_grid_thw, guidance, **kwargs)

    def _encode(
        self,
        encode: Callable[..., BaseModelOutputWithPooling],
        pixels: torch.Tensor,
        grid_thw: torch.Tensor,
        guidance: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling | PrunedImageFeatures:
        pruning = self.config.pruning_config
        if not pruning.is_on:
            return encode(pixels, grid_thw, **kwargs)
        grids = self._visual_token_grids(grid_thw)
        is_cut = any(pruning.resolve(math.prod(grid)) is not None for grid in grids)
        if not is_cut or pruning.build_pruner().is_inside_language_model:
            return encode(pixels, grid_thw, **kwargs)
        return_dict = kwargs.pop("return_dict", None)
        source = self._guidance_source(grids, grid_thw, guidance)
        encoded = encode(pixels, grid_thw, **{**kwargs, **source.encoder_kwargs(self.config), "return_dict": True})
        output = self._select(encoded, grids, source)
        return output if return_dict is not False else output.to_tuple()

    def encode_images(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """First half of pruned `get_image_features`: the vision tower's output, which no sentence changes."""
        return super().get_image_features(pixel_values, image_grid_thw, **self._encoder_kwargs(kwargs))

    def encode_videos(
        self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """First half of pruned `get_video_features`."""
        return super().get_video_features(pixel_values_videos, video_grid_thw, **self._encoder_kwargs(kwargs))

    def _encoder_kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, **GUIDANCE[self.config.guidance].encoder_kwargs(self.config), "return_dict": True}

    def select_visual_tokens(
        self,
        encoded: BaseModelOutputWithPooling,
        grid_thw: torch.Tensor,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
        guidance_pixel_values: torch.Tensor | None = None,
    ) -> PrunedImageFeatures | BaseModelOutputWithPooling:
        """Second half: select. Sweeps over methods and budgets call it on what they encoded once.

        Args:
            encoded: output of [`encode_images`] or [`encode_videos`].
            grid_thw: (M, 3) as given to it.
            guidance_input_ids, guidance_attention_mask, guidance_pixel_values: see [`get_image_features`].

        Returns:
            [`PrunedImageFeatures`]. For a method that prunes inside the language model a plain output with all tokens.

        Raises:
            ValueError: if the method needs sentences and there are none, or guidance is not what the config asks for.
        """
        if self.config.pruning_config.build_pruner().is_inside_language_model:
            return BaseModelOutputWithPooling(pooler_output=list(encoded.pooler_output))
        grids = self._visual_token_grids(grid_thw)
        guidance = (guidance_input_ids, guidance_attention_mask, guidance_pixel_values)
        return self._select(encoded, grids, self._guidance_source(grids, grid_thw, guidance))

    def _visual_token_grids(self, grid_thw: torch.Tensor) -> list[tuple[int, int, int]]:
        merge = self.visual.spatial_merge_size
        return [(t, height // merge, width // merge) for t, height, width in grid_thw.tolist()]

    def _guidance_source(
        self,
        grids: list[tuple[int, int, int]],
        grid_thw: torch.Tensor,
        guidance: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    ) -> FrameGuidance:
        source = GUIDANCE[self.config.guidance](self, grids, grid_thw, *guidance)
        pruner = self.config.pruning_config.build_pruner()
        if not _is_defined(type(pruner)):
            defined = ", ".join(name for name in list_pruners() if _is_defined(get_pruner(name)))
            raise ValueError(
                f"The pruning method {pruner.name!r} is not defined for Qwen2.5-VL: it reads the class token or the "
                f"layers of a CLIP tower. Methods that are: {defined}."
            )
        if pruner.needs_text and source.input_ids is None:
            raise ValueError(
                f"The pruning method {pruner.name!r} is guided by sentences, but `guidance_input_ids` is None. Pass "
                "`expressions=[...]` to the processor and its whole output to the model, or choose another "
                "`pruning_method`."
            )
        return source

    def _select(
        self, encoded: BaseModelOutputWithPooling, grids: list[tuple[int, int, int]], source: FrameGuidance
    ) -> PrunedImageFeatures:
        pruning = self.config.pruning_config
        output = select_frames(
            torch.cat(encoded.pooler_output),
            grids,
            [resolve_budget(math.prod(grid), pruning.budget, pruning.retention_ratio) for grid in grids],
            pruning.build_pruner(),
            partial(source.evidence, encoded=encoded),
            self.config.resolved_token_order,
        )
        output.last_hidden_state = encoded.last_hidden_state
        return output


def _is_defined(pruner: type[Pruner]) -> bool:
    """Whether a method can do without a class token."""
    return not pruner.needs_class_token
