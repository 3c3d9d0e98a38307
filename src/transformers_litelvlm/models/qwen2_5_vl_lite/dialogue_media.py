"""Several dialogues about one picture or video: encoded once, selected from for each sentence."""

import math
from typing import Any, NamedTuple

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.models.dialogues import repeat_encoded, rows_of
from transformers_litelvlm.models.guidance.vision_tower import TowerStates
from transformers_litelvlm.models.outputs import PrunedImageFeatures


class EncodedMedia(NamedTuple):
    """What neither sentences nor pruning settings change about M pictures or videos.

    Attributes:
        tower: output of the vision tower.
        grid_thw: (M, 3).
        clip: with `guidance="clip"`, states of CLIP's tower for every frame; its layers run when a method asks.
    """

    tower: BaseModelOutputWithPooling
    grid_thw: torch.Tensor
    clip: TowerStates | torch.Tensor | None


class DialogueMediaMixin:
    """For the class that writes masks: inputs of B dialogues about M pictures or videos."""

    model: Any
    config: Any

    def encode_media(
        self,
        pixel_values_videos: torch.Tensor,
        video_grid_thw: torch.Tensor,
        guidance_pixel_values: torch.Tensor | None = None,
    ) -> EncodedMedia:
        """What is the same for all dialogues about M pictures or videos, whatever the pruning. Arguments: [`segment`].

        For sweeps: encode once, and for each setting [`select_media`], [`read_dialogues`], [`decode_dialogues`].
        """
        clip = guidance_pixel_values
        if clip is not None and self.model.guidance is not None:  # else they do not fit: selecting says so
            clip = self.model.guidance.encode_pictures(clip)
        return EncodedMedia(self.model.encode_videos(pixel_values_videos, video_grid_thw), video_grid_thw, clip)

    def select_media(
        self,
        media: EncodedMedia,
        dialogue_images: torch.Tensor,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling | PrunedImageFeatures:
        """What `get_video_features` gives for each of B dialogues about M encoded pictures or videos.

        Args:
            media: of [`encode_media`].
            dialogue_images: (B,) which of them each dialogue is about.
            guidance_input_ids, guidance_attention_mask: (B, T, L), see [`~Qwen2_5_VLLiteModel.get_image_features`].

        Returns:
            For `mm_encoder_outputs={"video": ...}`.
        """
        about, pruning = dialogue_images.tolist(), self.config.pruning_config
        encoded = repeat_encoded(media.tower, media.grid_thw.prod(-1).tolist(), about)
        merged = self.config.vision_config.spatial_merge_size**2
        if all(pruning.resolve(math.prod(grid) // merged) is None for grid in media.grid_thw.tolist()):
            return BaseModelOutputWithPooling(pooler_output=encoded.pooler_output)
        clip = media.clip
        if clip is not None:
            clip = clip[rows_of(media.grid_thw[:, 0].tolist(), about)]
        return self.model.select_visual_tokens(
            encoded, media.grid_thw[about], guidance_input_ids, guidance_attention_mask, clip
        )

    def _one_medium_per_dialogue(self, dialogue_images: torch.Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs of B dialogues about M pictures or videos as upstream takes them, B of each; encoded M times."""
        grid_thw = inputs.get("video_grid_thw")
        if dialogue_images is None or grid_thw is None:
            return inputs
        about = dialogue_images.tolist()
        if len(grid_thw) != about[-1] + 1:
            raise ValueError(
                f"`video_grid_thw` has {len(grid_thw)} rows, but `dialogue_images` names {about[-1] + 1} pictures or "
                "videos: give each of them once."
            )
        if len(about) == len(grid_thw):
            return inputs
        inputs = dict(inputs)
        for name in ("video_grid_thw", "second_per_grid_ts"):
            if inputs.get(name) is not None:
                inputs[name] = inputs[name][about]
        pixels, pictures = inputs.pop("pixel_values_videos", None), inputs.pop("guidance_pixel_values", None)
        if pixels is not None:
            guidance = {name: inputs.get(name) for name in ("guidance_input_ids", "guidance_attention_mask")}
            media = self.encode_media(pixels, grid_thw, pictures)
            inputs["mm_encoder_outputs"] = {"video": self.select_media(media, dialogue_images, **guidance)}
        return inputs
