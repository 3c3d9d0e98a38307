"""Qwen2.5-VL that writes masks of images and videos: two tokens from each [SEG] state prompt SAM 2 (UniPixel)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from transformers_litelvlm.models.dialogues import index_on
from transformers_litelvlm.models.guidance.clip import to_device_of
from transformers_litelvlm.models.masks.sam import (
    ReferringSegmentationOutput,
    by_image,
    count_seg,
    foreground_confidence,
    require_mask_parts,
    states_before_seg,
    states_of_new_tokens,
)
from transformers_litelvlm.models.masks.sam2 import (
    EncodedVideo,
    Sam2MaskModel,
    decode_hidden_tokens,
    encode_images,
    encode_video,
    resize_masks,
    track_hidden_tokens,
)
from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedInputs
from transformers_litelvlm.models.qwen2_5_vl_lite.configuration_qwen2_5_vl_lite import Qwen2_5_VLLiteConfig
from transformers_litelvlm.models.qwen2_5_vl_lite.dialogue_media import DialogueMediaMixin
from transformers_litelvlm.models.qwen2_5_vl_lite.modeling_qwen2_5_vl_lite import (
    Qwen2_5_VLLiteForConditionalGeneration,
)
from transformers_litelvlm.models.upstream import Qwen2_5_VLRMSNorm


NUM_HIDDEN_TOKENS = 2

# Inputs of `segment` that `generate` does not know.
_MASK_INPUTS = ("mask_pixel_values", "original_sizes", "mask_num_frames")


class Qwen2_5_VLLiteForReferringSegmentation(DialogueMediaMixin, Qwen2_5_VLLiteForConditionalGeneration):
    """[`Qwen2_5_VLLiteForConditionalGeneration`] with a [SEG] head and a mask decoder.

    Modifications: `seg_head` turns the hidden state before each [SEG] into two prompt tokens of `mask_model`, a
    [`~transformers.Sam2VideoModel`] that remembers as UniPixel's does; [`segment`] and [`generate_masks`] return masks
    at the original size. UniPixel reads the state before the language model's final norm, so here the last of the
    hidden states that `output_hidden_states` returns is that one (`tie_last_hidden_states` of the config).
    """

    # Everything is expected here: nothing of the folder is left over.
    _keys_to_ignore_on_load_unexpected: list[str] = []

    def __init__(self, config: Qwen2_5_VLLiteConfig) -> None:
        require_mask_parts(config, type(self).__name__, "Qwen2_5_VLLiteForConditionalGeneration")
        config.text_config.tie_last_hidden_states = False
        super().__init__(config)
        hidden_size = config.text_config.hidden_size
        prompt_size = config.mask_config.prompt_encoder_config.hidden_size
        self.seg_head = nn.Sequential(
            Qwen2_5_VLRMSNorm(hidden_size),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, NUM_HIDDEN_TOKENS * prompt_size),
        )
        self.mask_model = Sam2MaskModel._from_config(config.mask_config)
        self.post_init()

    def encode_for_masks(
        self, mask_pixel_values: torch.Tensor, mask_num_frames: torch.Tensor | None = None
    ) -> list[torch.Tensor] | list[EncodedVideo]:
        """SAM 2's features of pictures `mask_pixel_values` (M, 3, S, S), see [`encode_images`]; or, given the frames
        (M,) of each, of videos, see [`encode_video`]. The sentences play no part."""
        pixel_values = self._for_mask_model(mask_pixel_values)
        if mask_num_frames is None:
            return encode_images(self.mask_model, pixel_values)
        return [encode_video(self.mask_model, frames) for frames in pixel_values.split(mask_num_frames.tolist())]

    def prompts_for_masks(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor, num_masks: list[int] | None = None
    ) -> tuple[torch.Tensor, list[int]]:
        """Prompts (B, T, 2, C) of every [SEG] of `input_ids` (B, L), and T_i of each row.

        Args:
            hidden_states: (B, L, D) of the language model, BEFORE its final norm.
            num_masks: [SEG] of each row, where that is known; else the device is asked.
        """
        states, counts = states_before_seg(hidden_states, input_ids, self.config.seg_token_id, num_masks)
        return self.seg_head(to_device_of(self.seg_head[1], states)).unflatten(-1, (NUM_HIDDEN_TOKENS, -1)), counts

    @torch.no_grad()
    def segment(
        self,
        input_ids: torch.Tensor,
        mask_pixel_values: torch.Tensor | None = None,
        original_sizes: torch.Tensor | None = None,
        mask_num_frames: torch.Tensor | None = None,
        dialogue_images: torch.Tensor | None = None,
        mask_image_features: list[torch.Tensor] | list[EncodedVideo] | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ReferringSegmentationOutput:
        """Masks for all sentences of all pictures or videos, the answers with [SEG] being part of the prompt: ONE
        forward pass of the language model; the vision tower and SAM 2's encoder see each picture once.

        Takes what [`Qwen2_5_VLLiteProcessor.segmentation_inputs`] returns: B dialogues about M pictures or videos.

        Args:
            input_ids, attention_mask: (B, L), one [SEG] per mask.
            mask_pixel_values: (frames, 3, S, S) for SAM 2; a picture is one frame.
            original_sizes: (M, 2) height, width.
            mask_num_frames: (M,) frames of each video; `None` for pictures. A video's masks start in its first frame
                and are followed through all others.
            dialogue_images: (B,) the picture or video that each dialogue is about; ascending. Default: one each.
            mask_image_features: of [`encode_for_masks`] instead of `mask_pixel_values`, for sweeps.
            kwargs: further arguments of `forward`: `pixel_values_videos`, `video_grid_thw` and `second_per_grid_ts` of
                the M pictures or videos, `mm_token_type_ids`, guidance, ...

        Returns:
            [`ReferringSegmentationOutput`]; its lists have one entry per picture or video.

        Raises:
            ValueError: if a row of the prompt has no [SEG], or an input is missing.
        """
        # What shapes depend on is asked of the device before it has much to do.
        num_masks = count_seg(input_ids, self.config.seg_token_id)
        original_sizes, mask_num_frames, dialogue_images = (
            value if value is None else value.cpu() for value in (original_sizes, mask_num_frames, dialogue_images)
        )
        pruned, states = self.read_dialogues(input_ids, attention_mask, dialogue_images=dialogue_images, **kwargs)
        return self.decode_dialogues(
            states,
            pruned.model_inputs["input_ids"],
            mask_pixel_values=mask_pixel_values,
            mask_image_features=mask_image_features,
            original_sizes=original_sizes,
            mask_num_frames=mask_num_frames,
            dialogue_images=dialogue_images,
            features=pruned.video_features or pruned.features,
            num_masks=num_masks,
        )

    def read_dialogues(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        dialogue_images: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[PrunedInputs, torch.Tensor]:
        """First half of [`segment`], whose arguments it has: what the language model makes of the dialogues.

        Args:
            kwargs: with `mm_encoder_outputs={"video": ...}` of [`select_media`], no pixels are needed.

        Returns:
            The shortened prompt, with what stayed in its `video_features`, and its states (B, L', D) BEFORE the final
            norm.

        Raises:
            ValueError: if a row of the prompt has no [SEG].
        """
        count_seg(input_ids, self.config.seg_token_id)
        kwargs = self._one_medium_per_dialogue(dialogue_images, {**kwargs, "attention_mask": attention_mask})
        prompt = {name: kwargs.pop(name, None) for name in self._prompt_arguments}
        pruned = self.model.prune_prompt(input_ids=input_ids, **prompt, **kwargs)
        # The one state that is asked for is the last layer's, see the class.
        output = self.model(**pruned.model_inputs, pruned=pruned, use_cache=False, output_hidden_states=[-1])
        return pruned.completed_by(output), output.hidden_states[-1]

    @torch.no_grad()
    def generate_masks(
        self,
        input_ids: torch.Tensor,
        mask_pixel_values: torch.Tensor,
        original_sizes: torch.Tensor,
        mask_num_frames: torch.Tensor | None = None,
        dialogue_images: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ReferringSegmentationOutput:
        """Masks for every [SEG] that the model writes itself, which is how UniPixel is evaluated; slower.

        Args:
            input_ids: (B, L) prompts that end where the answer begins.
            kwargs: further arguments of `generate`. Greedy, and at most 512 new tokens, where not said otherwise.
            The rest as in [`segment`].

        Returns:
            [`ReferringSegmentationOutput`] with `sequences`; an answer without [SEG] has no masks.
        """
        if kwargs.get("generation_config") is None:
            kwargs = {"do_sample": False, "max_new_tokens": 512, **kwargs}
        kwargs.update(return_dict_in_generate=True, output_hidden_states=[-1])  # the last layer's alone
        generated = self.generate(input_ids=input_ids, dialogue_images=dialogue_images, **kwargs)
        if len(generated.sequences) != len(input_ids):
            raise ValueError("`generate_masks` takes one answer per prompt: `num_return_sequences` must be 1.")
        new_ids = generated.sequences[:, input_ids.shape[1] :]
        output = self.decode_dialogues(
            states_of_new_tokens(generated, new_ids.shape[1]),
            # Shifted by one, so that a state stands before the token it predicted, as in a full sequence.
            nn.functional.pad(new_ids, (1, 0), value=-1),
            mask_pixel_values=mask_pixel_values,
            original_sizes=original_sizes,
            mask_num_frames=mask_num_frames,
            dialogue_images=dialogue_images,
        )
        output.sequences = generated.sequences
        return output

    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any):
        """As [`Qwen2_5_VLLiteForConditionalGeneration.generate`]; inputs that only masks need are left aside.

        With `dialogue_images`, pictures or videos are given once each, as in [`segment`].
        """
        for name in _MASK_INPUTS:
            kwargs.pop(name, None)
        return super().generate(inputs, **self._one_medium_per_dialogue(kwargs.pop("dialogue_images", None), kwargs))

    def _for_mask_model(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return to_device_of(self.mask_model.vision_encoder, pixel_values.to(self.mask_model.dtype))

    def decode_dialogues(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor,
        *,
        original_sizes: torch.Tensor | None,
        mask_pixel_values: torch.Tensor | None = None,
        mask_image_features: list[torch.Tensor] | list[EncodedVideo] | None = None,
        mask_num_frames: torch.Tensor | None = None,
        dialogue_images: torch.Tensor | None = None,
        features: PrunedImageFeatures | None = None,
        num_masks: list[int] | None = None,
    ) -> ReferringSegmentationOutput:
        """Second half of [`segment`], whose arguments it has: masks from the states before each [SEG].

        Args:
            hidden_states, input_ids: (B, L', D) and (B, L') of the shortened prompt.
            features: what was kept of the pictures or videos, for the output.
            num_masks: [SEG] of each row, where that is known; else the device is asked.
        """
        if original_sizes is None:
            raise ValueError("`original_sizes` is missing; the processor returns it.")
        if mask_image_features is None:
            if mask_pixel_values is None:
                raise ValueError("`mask_pixel_values` is missing: use `processor.segmentation_inputs`.")
            mask_image_features = self._features_or_frames(mask_pixel_values, mask_num_frames)
        prompts, counts = self.prompts_for_masks(hidden_states, input_ids, num_masks)
        about = list(range(len(prompts))) if dialogue_images is None else dialogue_images.tolist()
        sizes = [(height, width) for height, width in original_sizes.tolist()]
        decode: Callable[..., ReferringSegmentationOutput] = (
            self._decode_images if mask_num_frames is None else self._decode_videos
        )
        output = decode(mask_image_features, prompts, counts, about, sizes)
        output.seg_embeddings = prompts
        if features is not None:
            output.retained_indices = features.retained_indices
            output.similarity, output.context_scores = features.similarity, features.context_scores
            output.merge_weights = features.merge_weights
        return output

    def _features_or_frames(self, mask_pixel_values: torch.Tensor, mask_num_frames: torch.Tensor | None) -> list:
        """For one use: features of pictures; of videos the frames, which then are encoded one by one and forgotten."""
        if mask_num_frames is None:
            return self.encode_for_masks(mask_pixel_values)
        return list(self._for_mask_model(mask_pixel_values).split(mask_num_frames.tolist()))

    def _decode_images(
        self,
        features: list[torch.Tensor],
        prompts: torch.Tensor,
        counts: list[int],
        about: list[int],
        sizes: list[tuple[int, int]],
    ) -> ReferringSegmentationOutput:
        """Masks of all dialogues at once."""
        levels = [level[index_on(level.device, about)] for level in features]
        decoded = decode_hidden_tokens(self.mask_model, levels, prompts)
        of_dialogues = (decoded.low_res_masks, decoded.iou_scores.float(), decoded.object_scores.float())
        low_res, iou_scores, object_scores = (by_image(rows, counts, about) for rows in of_dialogues)
        logits = [resize_masks(masks, size) for masks, size in zip(low_res, sizes, strict=True)]
        return ReferringSegmentationOutput(
            masks=[mask_logits > 0 for mask_logits in logits],
            mask_logits=logits,
            scores=[foreground_confidence(mask_logits) for mask_logits in logits],
            iou_scores=iou_scores,
            object_scores=object_scores,
            low_res_masks=decoded.low_res_masks,
        )

    def _decode_videos(
        self,
        videos: Sequence[torch.Tensor | EncodedVideo],
        prompts: torch.Tensor,
        counts: list[int],
        about: list[int],
        sizes: list[tuple[int, int]],
    ) -> ReferringSegmentationOutput:
        """Masks of each video, frame after frame."""
        of_videos = by_image(self._for_mask_model(prompts), counts, about)
        tracked = [
            track_hidden_tokens(self.mask_model, video, objects)
            for video, objects in zip(videos, of_videos, strict=True)
        ]
        logits = [
            resize_masks(masks.flatten(0, 1), size).unflatten(0, masks.shape[:2])
            for (masks, _, _), size in zip(tracked, sizes, strict=True)
        ]
        return ReferringSegmentationOutput(
            masks=[mask_logits > 0 for mask_logits in logits],
            mask_logits=logits,
            scores=[foreground_confidence(m.flatten(0, 1)).view(m.shape[:2]) for m in logits],
            iou_scores=[first.iou_scores[0].float() for _, _, first in tracked],
            object_scores=[scores.float() for _, scores, _ in tracked],
            low_res_masks=[masks for masks, _, _ in tracked],
        )


__all__ = ["Qwen2_5_VLLiteForReferringSegmentation"]
