"""Processor of the InternVL family: the prompt, the tiles of images, the frames of videos and the sentences."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, InternVLProcessor

from transformers_litelvlm.models.loading import hub_arguments
from transformers_litelvlm.models.processing.grounding_media import GroundingMedia
from transformers_litelvlm.models.processing.processor import MAX_SIDE, check_sizes, in_format_of, on_pil, read_images
from transformers_litelvlm.models.processing.segmentation import SegmentationInputsMixin, read_videos
from transformers_litelvlm.models.processing.sentences import check_call
from transformers_litelvlm.models.upstream import get_optimal_tiled_canvas
from transformers_litelvlm.utils.messages import quoted


MOST_TILES = 100  # of an image: upstream looks through the square of this number of layouts


class InternVLLiteProcessor(SegmentationInputsMixin, InternVLProcessor):
    """[`~transformers.InternVLProcessor`] that also prepares the sentences that guide pruning.

    Modifications: `processor(images, text, videos, expressions=...)` adds `guidance_input_ids` and
    `guidance_attention_mask`, (M, T, L) for M images and videos in the order of the prompts, in the language model's
    tokens; and `num_tiles` (M,), how many of the tiles in `pixel_values` each of them has. Prompts keep upstream's
    full number of placeholders, whatever the pruning. Pictures are turned upright (EXIF) and converted to RGB. Images
    run on PIL, so that results do not depend on whether torchvision is installed. Frames of videos do, too: each is
    one tile. All videos of a call have as many frames, as upstream.

    Args:
        image_processor, tokenizer, image_seq_length, chat_template: upstream's.
        video_processor: not used.
        user_marker, assistant_marker (`str`): what starts a turn in a rendered prompt; they find the question where
            `expressions` is not given.
        mask_image_size, question_templates, answer_templates, seg_token, normalize_expressions,
            one_expression_per_dialogue, grounding_media: of checkpoints that write masks, see
            [`SegmentationInputsMixin`].
    """

    turn_tokens = ("<img>", "</img>", "<|im_end|>")
    # As in the authors' evaluation. Answers are `<ref>the dog</ref><box>[[x1, y1, x2, y2]]</box>`.
    box_questions = (
        "Please provide the bounding box coordinate of the region this sentence describes: <ref>{expression}</ref>",
    )
    guidance_tokenizer = None  # sentences are in the language model's tokens
    further_input_names: ClassVar[list[str]] = ["num_tiles", "guidance_input_ids", "guidance_attention_mask"]

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        image_seq_length=256,
        chat_template=None,
        user_marker="<|im_start|>user",
        assistant_marker="<|im_start|>assistant",
        mask_image_size=None,
        question_templates=("Please segment {expression} in this {medium}.",),
        answer_templates=("It is [SEG].",),
        seg_token="[SEG]",
        normalize_expressions=False,
        one_expression_per_dialogue=True,
        grounding_media=None,
        **kwargs,
    ):
        self.user_marker = user_marker
        self.assistant_marker = assistant_marker
        self.video_processor = None
        self.set_segmentation(
            mask_image_size,
            question_templates,
            answer_templates,
            seg_token,
            normalize_expressions,
            one_expression_per_dialogue,
            grounding_media or {"pictures_as": "image"},
        )
        super().__init__(
            on_pil(image_processor),
            tokenizer,
            image_seq_length=image_seq_length,
            chat_template=chat_template,
            **kwargs,
        )
        check_sizes("image_processor", self.image_processor)
        self._check_tiles()

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        expressions: str | list | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """As upstream, with the sentences for guidance.

        Args:
            images, text: as upstream; paths and PIL images are turned upright and made RGB.
            videos: a list of videos, each a list of frames (pictures or paths) or an array (F, H, W, 3) of uint8.
            expressions (`str`, `list[str]` or `list[list[str]]`, *optional*): what to find: one sentence for all, for
                one image or video its sentences, for several one sentence each, or a list of sentences for each, in
                the order of the prompts. Default: the last user turn of each prompt.

        Returns:
            `BatchFeature` with upstream's keys; of M images and videos `num_tiles` (M,), `guidance_input_ids` and
            `guidance_attention_mask`, (M, T, L), or (M, L) where `expressions` are not given.

        Raises:
            ValueError: for an empty sentence, one that contains a special token, or a number of sentences that does
                not fit; for videos of different length.
        """
        check_call(text, kwargs)
        prompts = [text] if isinstance(text, str) else list(text or [])
        if isinstance(videos, list | tuple) and all(map(_is_list_of_videos, videos)):  # by prompt
            videos = [video for of_prompt in videos for video in of_prompt]
        frames = read_videos(videos) or None
        features = super().__call__(images=read_images(images), text=text, videos=frames, **kwargs)
        counts = {name: features.pop(f"num_{name}_tiles", []) for name in ("image", "video")}
        if images is None and frames is None:
            return features
        remaining = {name: iter(np.asarray(each).tolist()) for name, each in counts.items()}
        order = [found.lastgroup for prompt in prompts for found in re.finditer(self.multimodal_pattern, prompt)]
        num_tiles = torch.tensor([next(remaining[name]) for name in order])
        features.update(in_format_of(features, {"num_tiles": num_tiles}))
        # Here a video is frames in its place among the images.
        as_images = [prompt.replace(self.video_token, self.image_token) for prompt in prompts]
        self.add_guidance(features, as_images, expressions, self.tokenizer)
        return features

    @property
    def media_tokens(self) -> tuple[str, ...]:
        return (self.image_token,)

    def visual_token_grids(self, features: BatchFeature) -> list[tuple[int, int, int]]:
        """(tiles, rows, columns) of the visual tokens of every image, before pruning."""
        side = math.isqrt(self.image_seq_length)
        return [(int(tiles), side, side) for tiles in features["num_tiles"]]

    def features_of_pictures(self, images: list[Image.Image]) -> BatchFeature:
        # Upstream takes no images without a text.
        return self._seen_features([[image] for image in images], GroundingMedia.of(self.grounding_media), len(images))

    def grid_on_picture(self, features: BatchFeature, size: tuple[int, int]):
        tiles, rows, columns = self.visual_token_grids(features)[0]
        if tiles == 1:
            return None
        limits, (width, height) = self.image_processor, size
        across, down = get_optimal_tiled_canvas(
            (height, width), (limits.size["height"], limits.size["width"]), limits.min_patches, limits.max_patches
        )
        raster = np.arange(down * rows * across * columns).reshape(down, rows, across, columns)
        thumbnail = np.full(rows * columns, -1)
        return (down * rows, across * columns), np.append(raster.transpose(0, 2, 1, 3).reshape(-1), thumbnail)

    def placeholders(self, token: str, count: int) -> str:
        return f"{self.start_image_token}{token * count}{self.end_image_token}"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs: Any):
        """As upstream.

        Raises:
            OSError: a path that does not exist, or a repository that cannot be reached.
        """
        place = hub_arguments(pretrained_model_name_or_path, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, **place})

    def _check_tiles(self) -> None:
        """Raises ValueError for settings of tiles that upstream would fail with, or hang, at the first image."""
        of_tiles, length = self.image_processor, self.image_seq_length
        limits = (1, of_tiles.min_patches, of_tiles.max_patches, MOST_TILES)
        if any(type(limit) is not int for limit in limits) or list(limits) != sorted(limits):
            raise ValueError(
                f"`image_processor.min_patches` and `max_patches` must be whole numbers from 1 to {MOST_TILES} in "
                f"ascending order, got {quoted(limits[1])} and {quoted(limits[2])}."
            )
        if type(length) is not int or not 0 < length <= MAX_SIDE or math.isqrt(length) ** 2 != length:
            raise ValueError(
                f"`image_seq_length` must be a square number from 1 to {MAX_SIDE:,}, the visual tokens of a tile, got "
                f"{quoted(length)}."
            )
        if of_tiles.size.get("height") is None or of_tiles.size.get("height") != of_tiles.size.get("width"):
            raise ValueError(f"`image_processor.size` must have equal height and width, got {quoted(of_tiles.size)}.")

    def _process_images(self, images, **kwargs: Any):
        processed, texts = super()._process_images(images, **kwargs)
        processed["num_image_tiles"] = processed["num_patches"]  # upstream drops this one
        return processed, texts

    def _process_videos(self, videos, **kwargs: Any):
        """Each frame is one tile; upstream's own video processor needs torchvision."""
        if kwargs.get("do_sample_frames"):
            videos = [_sampled(frames, kwargs.get("num_frames")) for frames in videos]
        counts = [len(frames) for frames in videos]
        if len(set(counts)) != 1:
            raise ValueError(
                f"`videos` have {counts} frames: InternVL takes videos of the same number of frames in a call."
            )
        known = self.image_processor.valid_kwargs.__annotations__
        settings = {n: v for n, v in kwargs.items() if n in known} | {"crop_to_patches": False, "return_tensors": "pt"}
        tiles = [self.image_processor(frames, **settings) for frames in videos]
        pixels = torch.stack([each["pixel_values"] for each in tiles])
        processed = {"pixel_values_videos": pixels, "num_video_tiles": counts}
        return processed, [self.replace_video_token(processed, index) for index in range(len(videos))]

    def _seen_features(
        self, seen: list[list[Image.Image]], settings: GroundingMedia, num_pictures: int
    ) -> BatchFeature:
        # A frame of a video is one tile.
        parts = [self.image_processor(seen[place], crop_to_patches=place < num_pictures) for place in range(len(seen))]
        return BatchFeature(
            {
                "pixel_values": torch.tensor(np.concatenate([np.stack(part["pixel_values"]) for part in parts])),
                "num_tiles": torch.tensor([tiles for part in parts for tiles in part["num_patches"]]),
            }
        )


def _sampled(frames: list[Image.Image], num_frames: Any) -> list[Image.Image]:
    """So many frames at equal distances, each in the middle of its part of the video, as upstream."""
    if type(num_frames) is not int or not 0 < num_frames <= len(frames):
        raise ValueError(
            f"`num_frames` must be a whole number from 1 to the {len(frames)} frames of the video, got "
            f"{quoted(num_frames)}. InternVL does not sample by `fps` here: the rate of a list of frames is not known."
        )
    return [frames[int((place + 0.5) * len(frames) / num_frames)] for place in range(num_frames)]


def _is_list_of_videos(videos: Any) -> bool:
    """Whether it is one, not a video: a list of frames."""
    first = videos[0] if isinstance(videos, list | tuple) and videos else None
    return isinstance(first, list | tuple) or getattr(first, "ndim", 0) == 4
