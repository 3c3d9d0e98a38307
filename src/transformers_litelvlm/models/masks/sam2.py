"""From projected states of [SEG] to masks of images and videos, with a [`~transformers.Sam2VideoModel`].

The wiring is that of UniPixel and Sa2VA: the projected states of an object (two, or one) follow two "not a point"
embeddings as the sparse prompt, and of the three masks that the decoder proposes the one with the highest predicted
IoU is taken. Images are decoded as the first frame of a video is. Where the two differ, [`Sam2MaskConfig`] says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, Sam2VideoConfig, Sam2VideoInferenceSession, Sam2VideoModel

from transformers_litelvlm.models.devices import index_on, parameters_at_hand, to_device_of
from transformers_litelvlm.models.masks.decoder import DecodedMasks, MaskDecoder, MaskGeometry, register_mask_decoder
from transformers_litelvlm.models.masks.seg_tokens import by_image
from transformers_litelvlm.models.processing.processor import check_switches
from transformers_litelvlm.models.upstream import NO_OBJ_SCORE, Sam2VideoImageSegmentationOutput, init
from transformers_litelvlm.utils.messages import quoted


# Frames of a video whose features are kept between calls: 1 GB where the model sees squares of 1024 pixels.
KEPT_FRAMES = 64
# Masks that are resized to the square that the model sees at once.
MASKS_AT_ONCE = 16


class Sam2MaskConfig(Sam2VideoConfig):
    """Configuration of [`Sam2MaskModel`]: upstream's, and what checkpoints do differently. Defaults are UniPixel's.

    Args:
        blanks_absent (`bool`, defaults to `True`): whether the mask of an object that is not in the picture (object
            score 0 or below) is made empty, in the result and in the memory.
        num_prompted_frames (`int`, defaults to 1): frames of a video that are prompted, each on its own; those after
            them are followed through the memory.
        remembers_in_bfloat16 (`bool`, defaults to `False`): whether what is remembered of a frame is rounded to
            bfloat16, as upstream does.
        resizes_twice (`bool`, defaults to `False`): whether masks are first resized to the square that the model sees
            and then to the picture, not in one step.
        pixel_mean, pixel_std (`list[float]`, *optional*): what `uint8` pixels are normalised with, after division by
            255; for processors that leave it to the model, which needs a fourth of the memory for a long video.

    Raises:
        ValueError: for a switch that is not `True` or `False`, a number of frames below 1, or a mean or standard
            deviation that is not three finite numbers (the latter above 0).
    """

    model_type = "sam2_masks"

    blanks_absent: bool = True
    num_prompted_frames: int = 1
    remembers_in_bfloat16: bool = False
    resizes_twice: bool = False
    pixel_mean: list[float] | None = None
    pixel_std: list[float] | None = None

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "num_prompted_frames" and (type(value) is not int or value < 1):
            raise ValueError(f"`mask_config.{key}` must be a whole number above 0, got {quoted(value)}.")
        if key in ("blanks_absent", "remembers_in_bfloat16", "resizes_twice"):
            check_switches(**{f"mask_config.{key}": value})
        if key in ("pixel_mean", "pixel_std") and value is not None:
            numbers = value if isinstance(value, list | tuple) else [value]
            if len(numbers) != 3 or not all(_is_finite(number, key == "pixel_std") for number in numbers):
                above = " above 0" if key == "pixel_std" else ""
                raise ValueError(f"`mask_config.{key}` must be three finite numbers{above}, got {quoted(value)}.")
        super().__setattr__(key, value)

    @classmethod
    def of(cls, config: Sam2VideoConfig) -> Sam2MaskConfig:
        """A config of this class; upstream's own stands for the defaults."""
        if isinstance(config, cls):
            return config
        fields = {**config.to_dict(), "model_type": cls.model_type}
        return cls.from_dict(fields, attn_implementation=config._attn_implementation)


def _is_finite(number: Any, must_be_positive: bool) -> bool:
    return isinstance(number, int | float) and math.isfinite(number) and (number > 0 or not must_be_positive)


class Sam2MaskModel(Sam2VideoModel):
    """[`~transformers.Sam2VideoModel`] that follows a [`Sam2MaskConfig`].

    Modifications: upstream rounds what it remembers of a frame to bfloat16, makes the mask of a clicked frame 0 or 1
    first, and blanks the masks of absent objects; which of these a checkpoint does, the config says (the second,
    none). Masks of followed frames have gradients, features of the image encoder never. Works offloaded, too. The
    weights are upstream's.
    """

    config: Sam2MaskConfig
    config_class = Sam2MaskConfig
    # Without `torch.inference_mode`, under which frames that are followed would teach nothing.
    forward = Sam2VideoModel.forward.__wrapped__
    # As in upstream's `get_image_embeddings`: frames of a video are no other case than pictures.
    get_image_features = torch.no_grad()(Sam2VideoModel.get_image_features)

    def __init__(self, config: Sam2VideoConfig) -> None:
        super().__init__(Sam2MaskConfig.of(config))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:  # upstream leaves it out, so a checkpoint without it would get whatever was in memory
            init.zeros_(self.no_memory_embedding)

    def get_image_wide_positional_embeddings(self) -> torch.Tensor:
        """(1, C, h, w), also of an offloaded model: upstream reads the device of a matrix that may be elsewhere."""
        with parameters_at_hand(self.shared_image_embedding):
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
        positions = positions.to(memory.dtype).flatten(2).permute(2, 0, 1)
        memory = memory.to(torch.bfloat16) if self.config.remembers_in_bfloat16 else memory
        return memory.flatten(2).permute(2, 0, 1), positions

    def _single_frame_forward(
        self, pixel_values: Any = None, *, image_embeddings: Any = None, **kwargs: Any
    ) -> Sam2VideoImageSegmentationOutput:
        """Of a frame that is followed (features and no clicks), by [`decode_hidden_tokens`]; else upstream's."""
        is_followed = all(value is None for name, value in kwargs.items() if name.startswith("input_"))
        if image_embeddings is None or not is_followed:
            return super()._single_frame_forward(pixel_values, image_embeddings=image_embeddings, **kwargs)
        nothing = image_embeddings[-1].new_empty(1, 1, 0, self.hidden_dim)
        decoded = decode_hidden_tokens(self, image_embeddings, nothing)
        side = (self.image_size, self.image_size)
        return Sam2VideoImageSegmentationOutput(
            iou_scores=decoded.candidate_scores,
            pred_masks=decoded.pred_masks,
            high_res_masks=resize_masks(decoded.pred_masks[0], side).to(decoded.pred_masks).unsqueeze(0),
            object_pointer=decoded.object_pointers,
            object_score_logits=decoded.object_scores.unsqueeze(-1),
        )


@register_mask_decoder(Sam2MaskConfig)
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
    ) -> list[torch.Tensor] | list[Video]:
        """Of pictures the features, finest first: (M, C / 8, S / 4, S / 4), (M, C / 4, S / 8, S / 8), and
        (M, C, S / 16, S / 16), which includes the embedding for "nothing remembered". Of videos see [`encode_video`].
        """
        if num_frames is None:
            with parameters_at_hand(self.mask_model):
                return self.mask_model.get_image_embeddings(normalized(self.mask_model, pixel_values))
        videos = self.encode_for_one_use(pixel_values, num_frames)
        return [encode_video(self.mask_model, video) for video in videos]

    def encode_for_one_use(self, pixel_values: torch.Tensor, num_frames: Sequence[int] | None = None) -> list:
        """Of videos the frames, which [`decode`] encodes one by one and forgets."""
        if num_frames is None:
            return self.encode(pixel_values)
        parts = pixel_values.split([max(count, 1) for count in num_frames])
        return [Video(part, is_picture=count == 0) for part, count in zip(parts, num_frames, strict=True)]

    def decode(self, features: list, prompts: torch.Tensor, about: list[int], geometry: MaskGeometry) -> DecodedMasks:
        side = (self.mask_model.image_size, self.mask_model.image_size)
        through = side if self.mask_model.config.resizes_twice else None
        sizes = [((height, width), through) for height, width in geometry.original]
        decode = self._decode_videos if isinstance(features[0], Video) else self._decode_images
        return decode(features, prompts, about, sizes)

    def _decode_images(
        self, features: list[torch.Tensor], prompts: torch.Tensor, about: list[int], sizes: list[tuple]
    ) -> DecodedMasks:
        """Masks of all prompts at once."""
        levels = [level[index_on(level.device, about)] for level in features]
        decoded = decode_hidden_tokens(self.mask_model, levels, prompts.unsqueeze(1))
        of_masks = [decoded.pred_masks, decoded.iou_scores.float(), decoded.object_scores.float()]
        pred_masks, iou_scores, object_scores = (by_image(rows.squeeze(1), about, len(sizes)) for rows in of_masks)
        logits = [resize_masks(masks, *size) for masks, size in zip(pred_masks, sizes, strict=True)]
        return DecodedMasks(decoded.pred_masks.squeeze(1), logits, iou_scores, object_scores)

    def _decode_videos(
        self, videos: Sequence[Video], prompts: torch.Tensor, about: list[int], sizes: list[tuple]
    ) -> DecodedMasks:
        """Masks of each video, frame after frame."""
        of_videos = by_image(to_device_of(self.mask_model.vision_encoder, prompts), about, len(sizes))
        pred_masks, iou_scores, object_scores = [], [], []
        for video, objects in zip(videos, of_videos, strict=True):
            masks, scores, first = track_hidden_tokens(self.mask_model, video, objects.to(self.mask_model.dtype))
            pred_masks.append(masks[:, 0] if video.is_picture else masks)
            object_scores.append((scores[:, 0] if video.is_picture else scores).float())
            iou_scores.append(first.iou_scores[0].float())
        logits = [
            resize_masks(masks.flatten(0, -3), *size).unflatten(0, masks.shape[:-2])
            for masks, size in zip(pred_masks, sizes, strict=True)
        ]
        return DecodedMasks(pred_masks, logits, iou_scores, object_scores)


class HiddenTokenMasks(NamedTuple):
    """What SAM 2's decoder makes of T prompts for each of B images.

    Attributes:
        pred_masks: (B, T, h, w) logits of the best mask; -1024 everywhere if the object is not in the picture, where
            the config blanks it.
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


class Video(NamedTuple):
    """Frames of a video, and SAM 2's features of the first of them, which no prompt changes.

    Attributes:
        pixel_values: (F, 3, S, S), as the processor gives them.
        is_picture: whether it is a picture among videos.
        features: of each frame what a session of upstream remembers of it; other frames are encoded when they are
            decoded, and forgotten.
    """

    pixel_values: torch.Tensor
    is_picture: bool = False
    features: Sequence[dict[str, list[torch.Tensor]]] = ()


def normalized(mask_model: Sam2VideoModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Pixels in the dtype and on the device of the image encoder; `uint8` ones as the config says."""
    if pixel_values.dtype != torch.uint8:
        return to_device_of(mask_model.vision_encoder, pixel_values.to(mask_model.dtype))
    config = mask_model.config
    if config.pixel_mean is None or config.pixel_std is None:
        raise ValueError(
            "`mask_pixel_values` are whole numbers, which the mask model has to normalise, but `mask_config` has no "
            "`pixel_mean` and `pixel_std`: is the processor that of another checkpoint?"
        )
    pixel_values = to_device_of(mask_model.vision_encoder, pixel_values).float() / 255
    mean, std = (
        torch.tensor(values, device="cpu").view(3, 1, 1).to(pixel_values.device, non_blocking=True)
        for values in (config.pixel_mean, config.pixel_std)
    )
    return ((pixel_values - mean) / std).to(mask_model.dtype)


def encode_video(mask_model: Sam2VideoModel, video: Video) -> Video:
    """Features of the first [`KEPT_FRAMES`] frames of a video, for several calls of [`track_hidden_tokens`].

    They take 17 MB per frame in float32 where S is 1024.
    """
    features: list[dict[str, list[torch.Tensor]]] = []
    with parameters_at_hand(mask_model):
        for frame in video.pixel_values[:KEPT_FRAMES].split(1):  # one by one, as upstream does
            output = mask_model.get_image_features(normalized(mask_model, frame), return_dict=True)
            # Encodings of the positions are the same for all frames, and larger than the features.
            positions = features[0]["vision_pos_embeds"] if features else output.fpn_position_encoding
            features.append({"vision_feats": output.fpn_hidden_states, "vision_pos_embeds": positions})
    return video._replace(features=features)


class _Session(Sam2VideoInferenceSession):
    """Upstream's, of frames that are normalised when they are asked for, and features that are known already."""

    def __init__(self, mask_model: Sam2VideoModel, video: Video) -> None:
        device = to_device_of(mask_model.vision_encoder, video.pixel_values[:0]).device
        super().__init__(
            inference_device=device,
            inference_state_device=device,
            dtype=mask_model.dtype,
            max_vision_features_cache_size=len(video.features) or 1,
        )
        self._mask_model, self._frames = mask_model, video.pixel_values
        for index, features in enumerate(video.features):
            self.cache.cache_vision_features(index, features)

    @property
    def num_frames(self) -> int:
        return len(self._frames)

    def get_frame(self, frame_idx: int) -> torch.Tensor:
        return normalized(self._mask_model, self._frames[frame_idx])


def decode_hidden_tokens(
    mask_model: Sam2VideoModel, image_features: list[torch.Tensor], hidden_tokens: torch.Tensor
) -> HiddenTokenMasks:
    """Run SAM 2's decoder with n hidden tokens per mask, for all masks of all images at once.

    Args:
        image_features: as [`Sam2MaskDecoder.encode`] returns them, for B images.
        hidden_tokens: (B, T, n, C); n = 0 where an object is only followed.
    """
    batch_size, num_masks, _, channels = hidden_tokens.shape
    *fine, features = image_features
    height, width = features.shape[-2:]
    if 0 in (batch_size, num_masks):
        empty = features.new_zeros(batch_size, num_masks)
        pointers, candidates = (
            features.new_zeros(batch_size, num_masks, *size) for size in ((channels,), (3, *fine[0].shape[-2:]))
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
    with parameters_at_hand(mask_model):
        pointers = mask_model.object_pointer_proj(output_tokens.take_along_dim(best[..., None], dim=2).squeeze(2))
        pointers = torch.where(is_present, pointers, mask_model.no_object_pointer)
    if mask_model.config.blanks_absent:
        masks = masks.masked_fill(~is_present[..., None], NO_OBJ_SCORE)
    return HiddenTokenMasks(
        pred_masks=masks,
        iou_scores=candidate_scores.take_along_dim(best, dim=-1).squeeze(-1),
        object_scores=object_scores.squeeze(-1),
        object_pointers=pointers,
        candidates=candidates,
        candidate_scores=candidate_scores,
    )


def track_hidden_tokens(
    mask_model: Sam2VideoModel, video: Video, hidden_tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, HiddenTokenMasks]:
    """Masks of T objects in every frame of a video: prompted on the first frames, each of them on its own, then
    followed forward through SAM 2's memory.

    Memory use does not grow with the number of frames, apart from the frames themselves and the masks.

    Args:
        hidden_tokens: (T, n, C).

    Returns:
        Logits (T, F, h, w), object scores (T, F), and [`HiddenTokenMasks`] of frame 0, with B = 1.
    """
    session = _Session(mask_model, video)
    config, num_frames, num_objects = mask_model.config, len(video.pixel_values), len(hidden_tokens)
    num_prompted = min(config.num_prompted_frames, num_frames)
    prompted = [
        _prompt_frame(mask_model, session, index, hidden_tokens, is_remembered=num_prompted < num_frames)
        for index in range(num_prompted)
    ]
    masks, scores = [frame.pred_masks[0] for frame in prompted], [frame.object_scores[0] for frame in prompted]
    reach = max(config.num_maskmem, config.max_object_pointers_in_encoder)
    for index in range(num_prompted, num_frames if num_objects else num_prompted):
        with _tables_at_hand(mask_model):
            output = mask_model(session, frame_idx=index)
        masks.append(output.pred_masks.squeeze(1))
        scores.append(output.object_score_logits.squeeze(-1))
        for outputs in session.output_dict_per_obj.values():
            outputs["non_cond_frame_outputs"].pop(index - reach, None)  # no later frame looks back so far
    if num_objects == 0:
        masks, scores = masks[:1] * num_frames, scores[:1] * num_frames
    return torch.stack(masks, dim=1), torch.stack(scores, dim=1), prompted[0]


def _prompt_frame(
    mask_model: Sam2VideoModel,
    session: Sam2VideoInferenceSession,
    frame: int,
    hidden_tokens: torch.Tensor,
    is_remembered: bool,
) -> HiddenTokenMasks:
    """Decode a frame for all T objects at once, without memory, and put into `session` what upstream's frames after
    it look up, if there are any."""
    with parameters_at_hand(mask_model):
        # Leaves the features in the session, which the memory is made of, too.
        *fine, coarse = mask_model._prepare_vision_features(session, frame, 1)[0]
        feature_maps = [*fine, coarse + mask_model.no_memory_embedding]
    features = [
        feature_map.permute(1, 2, 0).unflatten(-1, tuple(size))
        for feature_map, size in zip(feature_maps, mask_model.backbone_feature_sizes, strict=True)
    ]
    decoded = decode_hidden_tokens(mask_model, features, hidden_tokens.unsqueeze(0))
    if not is_remembered:
        return decoded
    side = mask_model.image_size
    num_objects = len(hidden_tokens)
    large = [resize_masks(decoded.pred_masks[:, i], (side, side)).to(coarse).unsqueeze(1) for i in range(num_objects)]
    for index in range(num_objects):
        one = slice(index, index + 1)
        session.store_output(
            session.obj_id_to_idx(index),
            frame,
            output_value={
                "pred_masks": decoded.pred_masks[:, one],
                "object_pointer": decoded.object_pointers[:, one],
                "object_score_logits": decoded.object_scores[:, one, None],
            },
        )
    with parameters_at_hand(mask_model):
        mask_model._batch_encode_memories(
            session,
            frame,
            objects_needing_memory_encoding=list(range(num_objects)),
            high_res_masks_for_memory=large,
            object_score_logits_for_memory=[decoded.object_scores[:, i : i + 1, None] for i in range(num_objects)],
            is_mask_from_pts_per_obj=[False] * num_objects,
        )
    return decoded


def resize_masks(
    pred_masks: torch.Tensor, size: tuple[int, int], through: tuple[int, int] | None = None
) -> torch.Tensor:
    """(N, h, w) logits -> float32 (N, H, W): SAM 2 sees the whole picture stretched to a square, so this undoes it.

    Args:
        through: resized to this first, a few masks at a time.
    """
    if len(pred_masks) == 0:
        return pred_masks.new_zeros(0, *size, dtype=torch.float32)
    if through is not None:
        return torch.cat([resize_masks(resize_masks(few, through), size) for few in pred_masks.split(MASKS_AT_ONCE)])
    return F.interpolate(pred_masks.float().unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


def _tables_at_hand(mask_model: Sam2VideoModel) -> ExitStack:
    """Embeddings that are read, not called: an offloaded model would not bring them in by itself."""
    prompt_encoder, decoder = mask_model.prompt_encoder, mask_model.mask_decoder
    return parameters_at_hand(
        prompt_encoder.no_mask_embed,
        prompt_encoder.not_a_point_embed,
        decoder.obj_score_token,
        decoder.iou_token,
        decoder.mask_tokens,
    )


AutoConfig.register(Sam2MaskConfig.model_type, Sam2MaskConfig, exist_ok=True)
