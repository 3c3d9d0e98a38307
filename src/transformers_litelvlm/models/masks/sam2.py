"""From pairs of hidden states at [SEG] to masks of images and videos, with a [`~transformers.Sam2VideoModel`].

The wiring is that of UniPixel: two projected states per object follow two "not a point" embeddings as the sparse
prompt, and of the three masks that the decoder proposes the one with the highest predicted IoU is taken. Images are
decoded as the first frame of a video is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Sam2VideoConfig, Sam2VideoInferenceSession, Sam2VideoModel

from transformers_litelvlm.models.devices import index_on
from transformers_litelvlm.models.masks.decoder import DecodedMasks, MaskDecoder, MaskGeometry, register_mask_decoder
from transformers_litelvlm.models.masks.seg_tokens import by_image
from transformers_litelvlm.models.upstream import NO_OBJ_SCORE


class Sam2MaskModel(Sam2VideoModel):
    """[`~transformers.Sam2VideoModel`] that remembers frames in its own number format.

    Modifications: upstream rounds what it remembers of a frame to bfloat16, and makes the mask of a clicked frame 0 or
    1 first; UniPixel does neither. Works offloaded, too. The
    weights are upstream's.
    """

    def get_image_wide_positional_embeddings(self) -> torch.Tensor:
        """(1, C, h, w), also of an offloaded model: upstream reads the device of a matrix that may be elsewhere."""
        with _parameters_at_hand(self.shared_image_embedding):
            return super().get_image_wide_positional_embeddings()

    def _encode_new_memory(
        self,
        current_vision_feats: torch.Tensor,
        pred_masks_high_res: torch.Tensor,
        object_score_logits: torch.Tensor,
        is_mask_from_pts: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Memory of a frame for T objects.

        Args:
            current_vision_feats: (h * w, T, C) of the frame.
            pred_masks_high_res: (T, 1, S, S) logits.
            object_score_logits: (T, 1, 1).
            is_mask_from_pts: not used.

        Returns:
            Features and their positions, both (h * w, T, memory channels).
        """
        features = current_vision_feats.permute(1, 2, 0).unflatten(-1, tuple(self.backbone_feature_sizes[-1]))
        masks = pred_masks_high_res.sigmoid() * self.config.sigmoid_scale_for_mem_enc
        memory, positions = self.memory_encoder(features, masks + self.config.sigmoid_bias_for_mem_enc)
        if self.occlusion_spatial_embedding_parameter is not None:
            is_absent = (object_score_logits <= 0).to(memory.dtype).unsqueeze(-1)
            memory = memory + is_absent * self.occlusion_spatial_embedding_parameter[..., None, None]
        return memory.flatten(2).permute(2, 0, 1), positions.to(memory.dtype).flatten(2).permute(2, 0, 1)


@register_mask_decoder(Sam2VideoConfig)
class Sam2MaskDecoder(MaskDecoder):
    """SAM 2 for pictures and videos. It sees all of a picture, stretched to a square."""

    takes_videos = True

    @classmethod
    def build(cls, config: Sam2VideoConfig) -> nn.Module:
        return Sam2MaskModel._from_config(config)

    @classmethod
    def prompt_size(cls, config: Sam2VideoConfig) -> int:
        return config.prompt_encoder_config.hidden_size

    @classmethod
    def input_size(cls, config: Sam2VideoConfig) -> int:
        return config.image_size

    def encode(
        self, pixel_values: torch.Tensor, num_frames: Sequence[int] | None = None
    ) -> list[torch.Tensor] | list[EncodedVideo]:
        """Of pictures see [`encode_images`], of videos [`encode_video`]."""
        pixel_values = self.to_encoder(pixel_values)
        if num_frames is None:
            return encode_images(self.mask_model, pixel_values)
        return [encode_video(self.mask_model, frames) for frames in pixel_values.split(list(num_frames))]

    def encode_for_one_use(self, pixel_values: torch.Tensor, num_frames: Sequence[int] | None = None) -> list:
        """Of videos the frames, which [`decode`] encodes one by one and forgets."""
        if num_frames is None:
            return self.encode(pixel_values)
        return [Frames(frames) for frames in self.to_encoder(pixel_values).split(list(num_frames))]

    def decode(
        self,
        features: list,
        prompts: torch.Tensor,
        counts: list[int],
        about: list[int],
        geometry: MaskGeometry,
    ) -> DecodedMasks:
        sizes = [(height, width) for height, width in geometry.original]
        is_video = isinstance(features[0], EncodedVideo | Frames)
        return (self._decode_videos if is_video else self._decode_images)(features, prompts, counts, about, sizes)

    def _decode_images(
        self,
        features: list[torch.Tensor],
        prompts: torch.Tensor,
        counts: list[int],
        about: list[int],
        sizes: list[tuple[int, int]],
    ) -> DecodedMasks:
        """Masks of all dialogues at once."""
        levels = [level[index_on(level.device, about)] for level in features]
        decoded = decode_hidden_tokens(self.mask_model, levels, prompts)
        of_dialogues = (decoded.pred_masks, decoded.iou_scores.float(), decoded.object_scores.float())
        pred_masks, iou_scores, object_scores = (by_image(rows, counts, about) for rows in of_dialogues)
        logits = [resize_masks(masks, size) for masks, size in zip(pred_masks, sizes, strict=True)]
        return DecodedMasks(decoded.pred_masks, logits, iou_scores, object_scores)

    def _decode_videos(
        self,
        videos: Sequence[Frames | EncodedVideo],
        prompts: torch.Tensor,
        counts: list[int],
        about: list[int],
        sizes: list[tuple[int, int]],
    ) -> DecodedMasks:
        """Masks of each video, frame after frame."""
        of_videos = by_image(self.to_encoder(prompts), counts, about)
        tracked = [
            track_hidden_tokens(self.mask_model, video.pixel_values if isinstance(video, Frames) else video, objects)
            for video, objects in zip(videos, of_videos, strict=True)
        ]
        logits = [
            resize_masks(masks.flatten(0, 1), size).unflatten(0, masks.shape[:2])
            for (masks, _, _), size in zip(tracked, sizes, strict=True)
        ]
        return DecodedMasks(
            [masks for masks, _, _ in tracked],
            logits,
            [first.iou_scores[0].float() for _, _, first in tracked],
            [scores.float() for _, scores, _ in tracked],
        )


class HiddenTokenMasks(NamedTuple):
    """What SAM 2's decoder makes of T prompts for each of B images.

    Attributes:
        pred_masks: (B, T, h, w) logits of the best mask; -1024 everywhere if the object is not in the picture.
        iou_scores: (B, T) its predicted IoU.
        object_scores: (B, T) logits; the object is in the picture if they are above 0.
        object_pointers: (B, T, C) what a video remembers of the object beside its masks.
        candidates: (B, T, 3, h, w) all masks, whether the object is there or not.
        candidate_scores: (B, T, 3) their predicted IoU.
    """

    pred_masks: torch.Tensor
    iou_scores: torch.Tensor
    object_scores: torch.Tensor
    object_pointers: torch.Tensor
    candidates: torch.Tensor
    candidate_scores: torch.Tensor


def encode_images(mask_model: Sam2VideoModel, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """Image features of `pixel_values` (B, 3, S, S): finest first, (B, C / 8, S / 4, S / 4), (B, C / 4, S / 8, S / 8),
    and (B, C, S / 16, S / 16), which includes the embedding for "nothing remembered"."""
    with _parameters_at_hand(mask_model):
        return mask_model.get_image_embeddings(pixel_values)


class Frames(NamedTuple):
    """Frames of a video that are not encoded yet.

    Attributes:
        pixel_values: (F, 3, S, S).
    """

    pixel_values: torch.Tensor


class EncodedVideo(NamedTuple):
    """Frames of a video and SAM 2's features of them, which no prompt changes.

    Attributes:
        pixel_values: (F, 3, S, S).
        features: of each frame what a session of upstream remembers of it.
    """

    pixel_values: torch.Tensor
    features: list[dict[str, list[torch.Tensor]]]


def encode_video(mask_model: Sam2VideoModel, pixel_values: torch.Tensor) -> EncodedVideo:
    """Features of the frames `pixel_values` (F, 3, S, S) of a video, for several calls of [`track_hidden_tokens`].

    All are kept: 17 MB per frame in float32 where S is 1024.
    """
    features: list[dict[str, list[torch.Tensor]]] = []
    with _parameters_at_hand(mask_model):
        for frame in pixel_values:  # one by one, as upstream does
            output = mask_model.get_image_features(frame.unsqueeze(0), return_dict=True)
            # Encodings of the positions are the same for all frames, and larger than the features.
            positions = features[0]["vision_pos_embeds"] if features else output.fpn_position_encoding
            features.append({"vision_feats": output.fpn_hidden_states, "vision_pos_embeds": positions})
    return EncodedVideo(pixel_values, features)


def decode_hidden_tokens(
    mask_model: Sam2VideoModel, image_features: list[torch.Tensor], hidden_tokens: torch.Tensor
) -> HiddenTokenMasks:
    """Run SAM 2's decoder with two hidden tokens per mask, for all masks of all images at once.

    Args:
        image_features: as [`encode_images`] returns them, for B images.
        hidden_tokens: (B, T, 2, C).
    """
    batch_size, num_masks, _, channels = hidden_tokens.shape
    *fine, features = image_features
    height, width = features.shape[-2:]
    if num_masks == 0:
        empty = features.new_zeros(batch_size, 0)
        pointers, candidates = (
            features.new_zeros(batch_size, 0, *size) for size in ((channels,), (3, *fine[0].shape[-2:]))
        )
        return HiddenTokenMasks(candidates[:, :, 0], empty, empty, pointers, candidates, candidates[..., 0, 0])
    with _tables_at_hand(mask_model):
        prompt_encoder = mask_model.prompt_encoder
        padding = prompt_encoder.not_a_point_embed.weight.expand(batch_size, num_masks, 2, -1)
        no_mask = prompt_encoder.no_mask_embed.weight.reshape(1, channels, 1, 1)
        positions = mask_model.get_image_wide_positional_embeddings()
        candidates, candidate_scores, output_tokens, object_scores = mask_model.mask_decoder(
            image_embeddings=features,
            image_positional_embeddings=positions.expand(batch_size, -1, -1, -1),
            sparse_prompt_embeddings=torch.cat((padding, hidden_tokens.to(features)), dim=2),
            dense_prompt_embeddings=no_mask.expand(batch_size, -1, height, width),
            multimask_output=True,
            high_resolution_features=fine,
        )
    best = candidate_scores.argmax(dim=-1, keepdim=True)  # (B, T, 1)
    is_present = object_scores > 0
    masks = candidates.take_along_dim(best[..., None, None], dim=2).squeeze(2)
    with _parameters_at_hand(mask_model):
        pointers = mask_model.object_pointer_proj(output_tokens.take_along_dim(best[..., None], dim=2).squeeze(2))
        pointers = torch.where(is_present, pointers, mask_model.no_object_pointer)
    return HiddenTokenMasks(
        pred_masks=masks.masked_fill(~is_present[..., None], NO_OBJ_SCORE),
        iou_scores=candidate_scores.take_along_dim(best, dim=-1).squeeze(-1),
        object_scores=object_scores.squeeze(-1),
        object_pointers=pointers,
        candidates=candidates,
        candidate_scores=candidate_scores,
    )


def track_hidden_tokens(
    mask_model: Sam2VideoModel, video: torch.Tensor | EncodedVideo, hidden_tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, HiddenTokenMasks]:
    """Masks of T objects in every frame of a video: prompted on frame 0, then followed forward through SAM 2's memory.

    A stock Sam2VideoModel remembers in bfloat16, which UniPixel does not; [`Sam2MaskModel`] does as UniPixel. Memory
    use does not grow with the number of frames, apart from the frames themselves and the masks.

    Args:
        video: (F, 3, S, S) its frames, or what [`encode_video`] made of them.
        hidden_tokens: (T, 2, C).

    Returns:
        Logits (T, F, h, w), object scores (T, F), and [`HiddenTokenMasks`] of frame 0, with B = 1.
    """
    pixel_values, known = video if isinstance(video, EncodedVideo) else (video, [])
    session = Sam2VideoInferenceSession(
        video=pixel_values,
        inference_device=pixel_values.device,
        inference_state_device=pixel_values.device,
        video_storage_device=pixel_values.device,
        dtype=pixel_values.dtype,
        max_vision_features_cache_size=len(known) or 1,
    )
    for index, features in enumerate(known):
        session.cache.cache_vision_features(index, features)
    first = _start_tracking(mask_model, session, hidden_tokens)
    masks, scores = [first.pred_masks[0]], [first.object_scores[0]]
    config = mask_model.config
    reach = max(config.num_maskmem, config.max_object_pointers_in_encoder)
    num_objects = len(hidden_tokens)
    for index in range(1, len(pixel_values) if num_objects else 0):
        with _tables_at_hand(mask_model):
            output = mask_model(session, frame_idx=index)
        masks.append(output.pred_masks.squeeze(1))
        scores.append(output.object_score_logits.squeeze(-1))
        for outputs in session.output_dict_per_obj.values():
            outputs["non_cond_frame_outputs"].pop(index - reach, None)  # no later frame looks back so far
    if num_objects == 0:
        masks, scores = masks * len(pixel_values), scores * len(pixel_values)
    return torch.stack(masks, dim=1), torch.stack(scores, dim=1), first


def _start_tracking(
    mask_model: Sam2VideoModel, session: Sam2VideoInferenceSession, hidden_tokens: torch.Tensor
) -> HiddenTokenMasks:
    """Decode frame 0 for all T objects at once, and put into `session` what upstream's frames after it look up."""
    with _parameters_at_hand(mask_model):
        # Leaves the features in the session, which the memory is made of, too.
        *fine, coarse = mask_model._prepare_vision_features(session, 0, 1)[0]
        feature_maps = [*fine, coarse + mask_model.no_memory_embedding]
    features = [
        feature_map.permute(1, 2, 0).unflatten(-1, tuple(size))
        for feature_map, size in zip(feature_maps, mask_model.backbone_feature_sizes, strict=True)
    ]
    first = decode_hidden_tokens(mask_model, features, hidden_tokens.unsqueeze(0))
    side = mask_model.image_size
    num_objects = len(hidden_tokens)
    large = [resize_masks(first.pred_masks[:, i], (side, side)).to(coarse).unsqueeze(1) for i in range(num_objects)]
    for index in range(num_objects):
        one = slice(index, index + 1)
        session.store_output(
            session.obj_id_to_idx(index),
            0,
            output_value={
                "pred_masks": first.pred_masks[:, one],
                "object_pointer": first.object_pointers[:, one],
                "object_score_logits": first.object_scores[:, one, None],
            },
        )
    with _parameters_at_hand(mask_model):
        mask_model._batch_encode_memories(
            session,
            0,
            objects_needing_memory_encoding=list(range(num_objects)),
            high_res_masks_for_memory=large,
            object_score_logits_for_memory=[first.object_scores[:, i : i + 1, None] for i in range(num_objects)],
            is_mask_from_pts_per_obj=[False] * num_objects,
        )
    return first


def resize_masks(pred_masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(N, h, w) logits -> float32 (N, H, W): SAM 2 sees the whole picture stretched to a square, so this undoes it."""
    if len(pred_masks) == 0:
        return pred_masks.new_zeros(0, *size, dtype=torch.float32)
    return F.interpolate(pred_masks.float().unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


@contextmanager
def _parameters_at_hand(*modules: nn.Module) -> Iterator[None]:
    """Parameters of `modules` themselves, which an offloaded model brings in for calls of their `forward` alone.

    Accelerate's `align_module_device` is for modules with one hook; the first of those on a device has two.
    """
    with ExitStack() as stack:
        for module in modules:
            hook = getattr(module, "_hf_hook", None)
            if hook is not None:
                hook.pre_forward(module)
                stack.callback(hook.post_forward, module, None)
        yield


def _tables_at_hand(mask_model: Sam2VideoModel) -> AbstractContextManager[None]:
    """Embeddings that are read, not called: an offloaded model would not bring them in by itself."""
    prompt_encoder, decoder = mask_model.prompt_encoder, mask_model.mask_decoder
    return _parameters_at_hand(
        prompt_encoder.no_mask_embed,
        prompt_encoder.not_a_point_embed,
        decoder.obj_score_token,
        decoder.iou_token,
        decoder.mask_tokens,
    )


__all__ = ["Sam2MaskModel"]
