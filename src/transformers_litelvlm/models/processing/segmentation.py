"""`segmentation_inputs` of families with a [SEG] head: pictures, videos and expressions as a checkpoint wants them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from transformers_litelvlm.models.processing.grounding_media import FRAMES_PER_SECOND, GroundingMedia
from transformers_litelvlm.models.processing.processor import (
    GuidedProcessorMixin,
    check_return_tensors,
    check_size,
    check_switches,
)
from transformers_litelvlm.models.processing.sentences import (
    EXPRESSION,
    checked_templates,
    match_templates,
    messages_of,
    nest_expressions,
    tokenize_guidance,
    without_article,
)
from transformers_litelvlm.models.processing.tokens import tokenize
from transformers_litelvlm.models.upstream import VideoMetadata
from transformers_litelvlm.utils.image_io import load_rgb_image
from transformers_litelvlm.utils.messages import quoted


class SegmentationInputsMixin(GuidedProcessorMixin):
    """Adds [`segmentation_inputs`] to a processor.

    Attributes:
        mask_image_size: side of the square that the mask decoder sees; `None` if the checkpoint writes no masks.
        question_templates, answer_templates: questions about one `{expression}` and answers with one [SEG] that the
            checkpoint was trained with, the default ones first.
        seg_token: the token that stands for a mask.
        normalize_expressions: whether full stops at the ends, the first capital and a leading article go.
        one_expression_per_dialogue: whether every expression about a picture has a dialogue of its own, or all are
            turns of one.
        grounding_media: settings of [`GroundingMedia`].
    """

    sees_whole_picture = True

    # What the processor has.
    __call__: Callable[..., Any]
    return_mm_token_type_ids: bool
    create_mm_token_type_ids: Callable[[list[list[int]]], list[list[int]]]
    video_token: str
    image_token: str
    image_processor: Any
    video_processor: Any

    def set_segmentation(
        self,
        mask_image_size: int | None,
        question_templates: Sequence[str],
        answer_templates: Sequence[str],
        seg_token: str,
        normalize_expressions: bool,
        one_expression_per_dialogue: bool,
        grounding_media: dict[str, Any],
    ) -> None:
        """Set the attributes. Raises ValueError for what they cannot be."""
        check_size("mask_image_size", mask_image_size)
        check_switches(
            normalize_expressions=normalize_expressions, one_expression_per_dialogue=one_expression_per_dialogue
        )
        GroundingMedia.of(grounding_media)
        self.mask_image_size = mask_image_size
        self.question_templates = checked_templates("question_templates", question_templates, EXPRESSION)
        self.answer_templates = checked_templates("answer_templates", answer_templates, seg_token)
        self.seg_token = seg_token
        self.normalize_expressions = normalize_expressions
        self.one_expression_per_dialogue = one_expression_per_dialogue
        self.grounding_media = dict(grounding_media)

    def segmentation_inputs(
        self,
        images=None,
        expressions=None,
        videos=None,
        return_tensors: str = "pt",
        for_generation: bool = False,
        question_template: str | list | None = None,
        answer_template: str | list | None = None,
        as_written: bool = False,
    ) -> BatchFeature:
        """Everything that `model.segment(...)` takes: dialogues about the expressions of every picture or video.

        Of a video, the language model sees some frames, see [`GroundingMedia`], the mask decoder all of them. Pruning
        is guided by the expression alone, not by the question around it: that is the same for all expressions, and
        `guidance="intrinsic"` averages over words.

        Args:
            images: one picture or a list; and
            videos: a list of videos, each a list of frames (pictures or paths) or an array (F, H, W, 3) of uint8; or
                one such array. One of the two, or both: then the pictures come first.
            expressions: for one picture or video a sentence or several; for several a list of sentences each.
            return_tensors: only `"pt"`.
            for_generation: leave the answer to the model, for `model.generate_masks(...)`; of several turns in one
                dialogue the last one.
            question_template: with `{expression}`, and `{medium}` for "image" or "video"; one for all, or lists shaped
                like `expressions`. Default: the first of `question_templates`; of videos `video_question_template`.
            answer_template: with one [SEG], likewise. Default: the first of `answer_templates`.
            as_written: leave expressions as they are, whatever `normalize_expressions` says; for whole sentences, as
                in ReasonSeg.

        Returns:
            `BatchFeature`. Of B dialogues `input_ids`, `attention_mask`, `mm_token_type_ids` (B, L),
            `guidance_input_ids`, `guidance_attention_mask` (B, T, L), and `dialogue_images` (B,), which picture or
            video each is about. Of M pictures or videos `pixel_values_videos`, `video_grid_thw` (M, 3) and
            `second_per_grid_ts` (M,), or, where frames are images, `pixel_values` and `image_grid_thw` of all of them
            and `num_prompt_images` (M,); `guidance_pixel_values` where this processor has a CLIP's; and for the masks
            `mask_pixel_values` (frames, 3, S, S), `original_sizes` (M, 2), height before width, and with videos
            `mask_num_frames` (M,), 0 for a picture.

        Raises:
            ValueError: for an unreadable picture, frames of different sizes, an empty expression, one that contains a
                special token, or numbers that do not fit; also if the processor's checkpoint writes no masks.
        """
        check_return_tensors(return_tensors)
        if self.mask_image_size is None:
            raise ValueError("This processor has no `mask_image_size`: its checkpoint does not write masks.")
        media, num_pictures = _read_media(images, videos)
        settings = GroundingMedia.of(self.grounding_media)
        sentences = nest_expressions(expressions, len(media))
        defaults = [self.question_templates[0]] * num_pictures + [self.video_question_template] * len(media)
        questions = match_templates(
            question_template, "question_template", sentences, defaults, EXPRESSION, self.seg_token
        )
        defaults = [self.answer_templates[0]] * len(media)
        answers = match_templates(answer_template, "answer_template", sentences, defaults, self.seg_token)
        seen = [[frames[index] for index in settings.seen(len(frames))] for frames in media]
        dialogues, about, guiding = [], [], []
        for index, of_medium in enumerate(zip(sentences, questions, answers, strict=True)):
            turns, medium = list(zip(*of_medium, strict=True)), "image" if index < num_pictures else "video"
            for part in [[turn] for turn in turns] if self.one_expression_per_dialogue else [turns]:
                written = [self.expression(sentence, as_written) for sentence, _, _ in part]
                asked = [
                    (question.replace("{medium}", medium).replace(EXPRESSION, sentence), answer)
                    for sentence, (_, question, answer) in zip(written, part, strict=True)
                ]
                dialogues.append(self.dialogue(asked, for_generation, len(seen[index])))
                guiding.append(written)
                about.append(index)
        self.check_expressions(sentence for of_dialogue in guiding for sentence in of_dialogue)
        # A picture is prepared once, whatever the number of dialogues about it.
        features = self._seen_features(seen, settings, num_pictures)
        counts = [math.prod(grid) for grid in self.visual_token_grids(features)]
        placeholder, first = self.video_token, list(range(len(media)))
        if settings.pictures_as == "image":
            placeholder = self.image_token
            features["num_prompt_images"] = torch.tensor([len(frames) for frames in seen])
            first = [0, *accumulate(map(len, seen))]  # frames of a medium have one size
        dialogues = [
            dialogue.replace(placeholder, self.placeholders(placeholder, counts[first[index]]))
            for dialogue, index in zip(dialogues, about, strict=True)
        ]
        tokens = tokenize(self.tokenizer, dialogues, "left" if for_generation else "right")
        features.update(tokens)
        if self.return_mm_token_type_ids:
            features["mm_token_type_ids"] = torch.tensor(self.create_mm_token_type_ids(tokens["input_ids"].tolist()))
        features.update(tokenize_guidance(self.guidance_tokenizer or self.tokenizer, guiding))
        frames = [frame for of_medium in media for frame in of_medium]
        features["mask_pixel_values"] = settings.for_masks(frames, self.mask_image_size)
        features["original_sizes"] = torch.tensor([frames[0].size[::-1] for frames in media])
        features["dialogue_images"] = torch.tensor(about)
        if videos is not None:
            num_frames = [len(frames) if index >= num_pictures else 0 for index, frames in enumerate(media)]
            features["mask_num_frames"] = torch.tensor(num_frames)
        return features

    @property
    def video_question_template(self) -> str:
        """Asked about a video if no other question is given."""
        return GroundingMedia.of(self.grounding_media).video_question or self.question_templates[0]

    @property
    def whole_sentence_template(self) -> str:
        """Of the checkpoint's questions, the one that is nothing but a whole sentence and a request."""
        own = (template for template in self.question_templates if template.lstrip().startswith(EXPRESSION))
        return next(own, self.question_templates[0])

    def expression(self, expression: str, as_written: bool = False) -> str:
        """An expression as it stands in the question.

        Raises:
            ValueError: if nothing is left of it.
        """
        should = self.normalize_expressions and not as_written
        written = without_article(expression) if should else expression.strip()
        if not written:
            raise ValueError(f"`expressions` must say what to find, got {quoted(expression)}.")
        return written

    def guidance_text(self, expression: str, as_written: bool = False) -> str:
        """What guidance reads of an expression: itself; unlike in [`expression`] nothing may be left of it."""
        return self.expression(expression, as_written) if expression.strip() else ""

    def dialogue(self, turns: list[tuple[str, str]], for_generation: bool = False, num_frames: int = 1) -> str:
        """The prompt about one picture or video: (question, answer) pairs, the last answer left open or not.

        Args:
            num_frames: that the language model sees.
        """
        media = GroundingMedia.of(self.grounding_media)
        medium = [{"type": "video"}] if media.pictures_as == "video" else [{"type": "image"}] * num_frames
        messages = messages_of(turns, medium, for_generation)
        if media.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": media.system_prompt}]})
        return self.apply_chat_template(messages, add_generation_prompt=for_generation, tokenize=False)

    def placeholders(self, token: str, count: int) -> str:
        """What a rendered prompt has in place of `token`, the placeholder of an image or video of `count` tokens."""
        return token * count

    def _seen_features(
        self, seen: list[list[Image.Image]], settings: GroundingMedia, num_pictures: int
    ) -> BatchFeature:
        """Of the frames that the language model sees, those of pictures first, what it and the guidance get."""
        if settings.pictures_as == "image":
            processor = self.image_processor
            size, factor = processor.size, processor.patch_size * processor.merge_size
            limits = (factor, size["shortest_edge"], size["longest_edge"])
            pictures = [settings.resize_image(frame, *limits) for frames in seen for frame in frames]
            return self(images=pictures, do_resize=False, return_tensors="pt")
        processor = self.video_processor
        factor = processor.patch_size * processor.merge_size
        videos = [settings.resize_video(frames, factor) for frames in seen]
        metadata = [
            VideoMetadata(total_num_frames=len(f), fps=FRAMES_PER_SECOND, frames_indices=list(range(len(f))))
            for f in videos
        ]
        features = self(
            videos=videos, video_metadata=metadata, do_resize=False, do_sample_frames=False, return_tensors="pt"
        )
        features["second_per_grid_ts"] = torch.as_tensor(features["second_per_grid_ts"], dtype=torch.float32)
        return features


def _read_media(images, videos) -> tuple[list[list[Image.Image]], int]:
    """Every picture and video as a list of upright RGB frames, the pictures first, and how many these are."""
    if images is None and videos is None:
        raise ValueError("Give `images`, `videos`, or both.")
    images = images if isinstance(images, list | tuple) else [] if images is None else [images]
    return [[load_rgb_image(image)] for image in images] + read_videos(videos), len(images)


def read_videos(videos: Any) -> list[list[Image.Image]]:
    """Videos, one of them, or none, as upright RGB frames of one size each.

    Raises:
        ValueError: for what is no list of frames and no array of them, no frames, or frames of different sizes.
    """
    videos, read = [videos] if getattr(videos, "ndim", None) == 4 else videos, []
    for index, video in enumerate([] if videos is None else videos):
        frames = _read_frames(f"videos[{index}]", video)
        sizes = {frame.size for frame in frames}
        if len(sizes) != 1:
            what = "no frames" if not sizes else f"frames of different sizes, such as {sorted(sizes)[:2]}"
            raise ValueError(f"`videos[{index}]` has {what}.")
        read.append(frames)
    return read


def _read_frames(name: str, video: Any) -> list[Image.Image]:
    shape = tuple(video.shape) if hasattr(video, "ndim") else None
    if isinstance(video, str | os.PathLike | Image.Image) or (shape is not None and len(shape) != 4):
        what = type(video).__name__ if shape is None else f"an array of shape {shape}"
        raise ValueError(
            f"`{name}` must be a list of frames or an array (F, H, W, 3), got {what}: `videos` is a list of such "
            "videos, and video files are to be read into frames first."
        )
    return [load_rgb_image(frame) for frame in (video if shape is None else np.asarray(video))]
