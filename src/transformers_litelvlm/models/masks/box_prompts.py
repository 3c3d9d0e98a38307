"""Masks of what boxes and points locate, by a stock SAM, SAM 2 or the tracker of SAM 3."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskGeneration, SamImageProcessorPil, SamModel, ViTImageProcessorPil

from transformers_litelvlm.models.devices import to_device_of
from transformers_litelvlm.models.masks.boxes import LocatedObject
from transformers_litelvlm.models.masks.sam import resize_masks
from transformers_litelvlm.models.processing.processor import check_sizes
from transformers_litelvlm.utils.hub_names import check_loadable


# By the type of a checkpoint, what prepares pictures for it: in the corner of a padded square, or stretched to one,
# which is all that ViT's does. Upstream's own for SAM 2 and 3 need torchvision.
IMAGE_PROCESSORS: dict[str, Any] = {
    "sam": SamImageProcessorPil,
    **dict.fromkeys(("sam2", "sam2_video", "sam3_tracker", "sam3_video"), ViTImageProcessorPil),
}


class ObjectMask(NamedTuple):
    """The mask of one object.

    Attributes:
        logits: float32 (H, W) at the size of the picture.
        iou_score: predicted IoU, a tensor without dimensions.
        object_score: logit that the object is there, likewise; `None` for SAM.
    """

    logits: torch.Tensor
    iou_score: torch.Tensor
    object_score: torch.Tensor | None


class BoxPrompts:
    """Prompts a mask model with boxes and points.

    Args:
        mask_model: a [`~transformers.SamModel`], [`~transformers.Sam2Model`] or [`~transformers.Sam3TrackerModel`].
        input_size: side of the square that it sees.

    Attributes:
        scores_objects: whether it says how sure it is that an object is there.
    """

    takes_videos = False

    def __init__(self, mask_model: nn.Module, input_size: int) -> None:
        self.mask_model: Any = mask_model
        self.input_size = input_size
        self.scores_objects = not isinstance(mask_model, SamModel)

    def encode(self, pixel_values: torch.Tensor, num_frames: None = None) -> list[torch.Tensor]:
        """Features of M pictures, the finest first: (M, C, h, w) each; SAM has one of them."""
        pixels = to_device_of(self.mask_model.vision_encoder, pixel_values.to(self.mask_model.dtype))
        features = self.mask_model.get_image_embeddings(pixels)
        return [features] if isinstance(features, torch.Tensor) else features

    encode_for_one_use = encode

    def decode(
        self,
        features: list[torch.Tensor],
        objects: Sequence[LocatedObject],
        original: Sequence[int],
        resized: Sequence[int] | None,
    ) -> Iterator[ObjectMask]:
        """Masks of the objects of one picture, one after the other.

        A box, with or without points, gives the one mask of the decoder that is made for clear prompts. Points alone
        may mean a part or the whole: of three masks, the one with the highest predicted IoU.

        Args:
            features: of the picture, see [`encode`], M = 1.
            objects: in pixels of the picture.
            original: height and width of the picture.
            resized: height and width inside the padded square, if the picture does not fill the square.
        """
        height, width = resized or (self.input_size, self.input_size)
        scale = torch.tensor([width / original[1], height / original[0]], device=features[0].device)
        embeddings = features if len(features) > 1 else features[0]
        for each in objects:
            prompts: dict[str, torch.Tensor] = {}
            if each.box is not None:
                prompts["input_boxes"] = (scale.new_tensor(each.box) * scale.repeat(2)).reshape(1, 1, 4)
            if each.points:
                points = scale.new_tensor(each.points) * scale
                prompts["input_points"] = points.reshape(1, 1, -1, 2)
                prompts["input_labels"] = torch.ones_like(points[:, 0], dtype=torch.int).reshape(1, 1, -1)
            output = self.mask_model(image_embeddings=embeddings, multimask_output=each.box is None, **prompts)
            best = output.iou_scores[0, 0].argmax()
            mask = output.pred_masks[0, 0, best][None]
            if resized is not None:
                logits = resize_masks(mask, self.input_size, resized, original)[0]
            else:
                logits = nn.functional.interpolate(mask[None].float(), tuple(original), mode="bilinear")[0, 0]
            objectness = output.get("object_score_logits")
            score = None if objectness is None else objectness.reshape(()).float()
            yield ObjectMask(logits, output.iou_scores[0, 0, best].float(), score)


def load_box_prompts(source: str | os.PathLike, **access: Any) -> tuple[BoxPrompts, Any]:
    """A stock mask model, in evaluation mode and float32, and what prepares pictures for it.

    Float32 because positions in a picture of 1024 pixels need more digits than half precision has, and because it is
    small beside a chat model.

    Args:
        source: a checkpoint folder or the name of one on the Hub.
        access: of `from_pretrained`: `cache_dir`, `local_files_only`, `token`, `revision`.

    Raises:
        ValueError: if it is no mask model of a kind that is known here, or weights are missing.
    """
    check_loadable(source, **access)
    config = AutoConfig.from_pretrained(source, **access)
    if config.model_type not in IMAGE_PROCESSORS:
        raise ValueError(
            f"`mask_model` {source} is of type {config.model_type!r}, which cannot be prompted with boxes here: give "
            f"a checkpoint of {', '.join(IMAGE_PROCESSORS)}, such as 'facebook/sam2.1-hiera-large'."
        )
    image_processor = IMAGE_PROCESSORS[config.model_type].from_pretrained(source, **access)
    check_sizes("mask_model", image_processor)
    model, loading = AutoModelForMaskGeneration.from_pretrained(
        source, dtype=torch.float32, output_loading_info=True, **access
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"The weights in {source} lack {len(missing)} parameters, the first is {missing[0]}.")
    size = image_processor.size
    return BoxPrompts(model.eval(), size.get("longest_edge") or size["height"]), image_processor
