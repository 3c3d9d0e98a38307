"""`segmentation_inputs` of the Qwen2.5-VL family: pictures or videos and expressions, prepared as UniPixel does."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from transformers_litelvlm.models.processing.processor import check_return_tensors
from transformers_litelvlm.models.processing.sentences import (
    EXPRESSION,
    match_templates,
    nest_expressions,
    tokenize_guidance,
)
from transformers_litelvlm.models.processing.tokens import tokenize
from transformers_litelvlm.models.qwen2_5_vl_lite.unipixel_prompts import (
    FRAMES_PER_SECOND,
    SYSTEM_PROMPT,
    frames_for_masks,
    normalize_expression,
    resize_frames,
    sample_frames,
)
from transformers_litelvlm.models.upstream import VideoMetadata
from transformers_litelvlm.utils.image_io import load_rgb_image
from transformers_litelvlm.utils.messages import quoted


class SegmentationInputsMixin:
    """Adds [`segmentation_inputs`] to a processor of Qwen2.5-VL."""

    one_expression_per_dialogue = True
    sees_whole_picture = True

    # What the processor has.
    __call__: Callable[..., Any]
    apply_chat_template: Callable[..., Any]
    check_expressions: Callable[[Iterable[str]], None]
    create_mm_token_type_ids: Callable[[list[list[int]]], list[list[int]]]
    visual_token_grids: Callable[[BatchFeature], list[tuple[int, int, int]]]
    video_token: str
    image_token: str
    tokenizer: Any
    guidance_tokenizer: Any
    video_processor: Any
    mask_image_size: int | None
    question_templates: list[str]
    answer_templates: list[str]
    seg_token: str
    normalize_expressions: bool

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
        """Everything that `model.segment(...)` takes: a dialogue for every expression about every picture or video.

        As in UniPixel, a picture is a video of one frame. Of a video, the language model sees up to 16 frames at equal
        distances, SAM 2 all of them. Pruning is guided by the expression alone, not by the question around it: that is
        the same for all expressions, and `guidance="intrinsic"` averages over words.

        Args:
            images: one picture or a list; or
            videos: a list of videos, each a list of frames (pictures or paths) or an array (F, H, W, 3) of uint8; or
                one such array.
            expressions: for one picture or video a sentence or several; for several a list of sentences each.
            return_tensors: only `"pt"`.
            for_generation: leave the answer to the model, for `model.generate_masks(...)`.
            question_template: with `{expression}`, and `{medium}` for "image" or "video"; one for all, or lists shaped
                like `expressions`. Default: the first of `question_templates`.
            answer_template: with one [SEG], likewise. Default: the first of `answer_templates`.
            as_written: leave expressions as they are, whatever `normalize_expressions` says; for whole sentences, as
                in ReasonSeg.

        Returns:
            `BatchFeature`. Of B dialogues `input_ids`, `attention_mask`, `mm_token_type_ids` (B, L),
            `guidance_input_ids`, `guidance_attention_mask` (B, 1, L), and `dialogue_images` (B,), which picture or
            video each is about. Of M pictures or videos `pixel_values_videos`, `video_grid_thw` (M, 3),
            `second_per_grid_ts` (M,), `guidance_pixel_values` where this processor has a CLIP's, and for the masks
            `mask_pixel_values` (frames, 3, S, S), `original_sizes` (M, 2), height before width, and for videos
            `mask_num_frames` (M,).

        Raises:
            ValueError: for an unreadable picture, frames of different sizes, an empty expression, one that contains a
                special token, or numbers that do not fit; also if the processor's checkpoint writes no masks.
        """
        check_return_tensors(return_tensors)
        if self.mask_image_size is None:
            raise ValueError("This processor has no `mask_image_size`: its checkpoint does not write masks.")
        if (images is None) == (videos is None):
            raise ValueError("Give either `images` or `videos`.")
        media = _read_media(images, videos)
        sentences = nest_expressions(expressions, len(media))
        questions = match_templates(
            question_template, "question_template", sentences, self.question_templates[0], EXPRESSION
        )
        answers = match_templates(
            answer_template, "answer_template", sentences, self.answer_templates[0], self.seg_token
        )
        medium = "image" if videos is None else "video"
        dialogues, about, guiding = [], [], []
        for index, of_medium in enumerate(zip(sentences, questions, answers, strict=True)):
            for sentence, question, answer in zip(*of_medium, strict=True):
                sentence = self.expression(sentence, as_written)
                question = question.replace("{medium}", medium).replace(EXPRESSION, sentence)
                dialogues.append(self.dialogue(question, None if for_generation else answer))
                guiding.append([sentence])
                about.append(index)
        self.check_expressions(sentence for [sentence] in guiding)
        # A picture is prepared once, whatever the number of dialogues about it.
        features = self._media_features(media, return_tensors)
        counts = [math.prod(grid) for grid in self.visual_token_grids(features)]
        dialogues = [
            dialogue.replace(self.video_token, self.video_token * counts[index])
            for dialogue, index in zip(dialogues, about, strict=True)
        ]
        tokens = tokenize(self.tokenizer, dialogues, "left" if for_generation else "right")
        types = torch.tensor(self.create_mm_token_type_ids(tokens["input_ids"].tolist()))
        features.update(tokens, mm_token_type_ids=types)
        features.update(tokenize_guidance(self.guidance_tokenizer or self.tokenizer, guiding))
        features["mask_pixel_values"] = torch.cat([frames_for_masks(m, self.mask_image_size) for m in media])
        features["original_sizes"] = torch.tensor([frames[0].size[::-1] for frames in media])
        features["dialogue_images"] = torch.tensor(about)
        if videos is not None:
            features["mask_num_frames"] = torch.tensor([len(frames) for frames in media])
        return features

    @property
    def whole_sentence_template(self) -> str:
        """Of the checkpoint's questions, the one that is nothing but a whole sentence and a request."""
        own = (template for template in self.question_templates if template.startswith("{expression}"))
        return next(own, self.question_templates[0])

    def expression(self, expression: str, as_written: bool = False) -> str:
        """An expression as it stands in the question.

        Raises:
            ValueError: if nothing is left of it.
        """
        should = self.normalize_expressions and not as_written
        written = normalize_expression(expression) if should else expression.strip()
        if not written:
            raise ValueError(f"`expressions` must say what to find, got {quoted(expression)}.")
        return written

    def guidance_text(self, expression: str, as_written: bool = False) -> str:
        """What guidance reads of an expression: itself; unlike in [`expression`] nothing may be left of it."""
        return self.expression(expression, as_written) if expression.strip() else ""

    def dialogue(self, question: str, answer: str | None = None) -> str:
        """The prompt about one picture or video, with its answer or open."""
        turns: list[tuple[str, list[dict[str, Any]]]] = [
            ("system", [{"type": "text", "text": SYSTEM_PROMPT}]),
            ("user", [{"type": "video"}, {"type": "text", "text": question}]),
        ]
        if answer is not None:
            turns.append(("assistant", [{"type": "text", "text": answer}]))
        messages = [{"role": role, "content": content} for role, content in turns]
        return self.apply_chat_template(messages, add_generation_prompt=answer is None, tokenize=False)

    def _media_features(self, media: list[list], return_tensors: str) -> BatchFeature:
        """Of pictures or videos, what the language model and the guidance see."""
        processor = self.video_processor
        factor = processor.patch_size * processor.merge_size
        seen = [resize_frames([frames[index] for index in sample_frames(len(frames))], factor) for frames in media]
        metadata = [
            VideoMetadata(total_num_frames=len(f), fps=FRAMES_PER_SECOND, frames_indices=list(range(len(f))))
            for f in seen
        ]
        features = self(
            videos=seen,
            video_metadata=metadata,
            do_resize=False,
            do_sample_frames=False,
            return_tensors=return_tensors,
        )
        features["second_per_grid_ts"] = torch.as_tensor(features["second_per_grid_ts"], dtype=torch.float32)
        return features


def _read_media(images, videos) -> list[list]:
    """Every picture or video as a list of upright RGB frames."""
    if videos is None:
        images = images if isinstance(images, list | tuple) else [images]
        return [[load_rgb_image(image)] for image in images]
    videos = [videos] if getattr(videos, "ndim", None) == 4 else videos  # one video
    media = [_read_frames(f"videos[{index}]", video) for index, video in enumerate(videos)]
    for index, frames in enumerate(media):
        sizes = {frame.size for frame in frames}
        if len(sizes) != 1:
            what = "no frames" if not sizes else f"frames of different sizes, such as {sorted(sizes)[:2]}"
            raise ValueError(f"`videos[{index}]` has {what}.")
    return media


def _read_frames(name: str, video: Any) -> list[Image.Image]:
    shape = tuple(video.shape) if hasattr(video, "ndim") else None
    if isinstance(video, str | os.PathLike | Image.Image) or (shape is not None and len(shape) != 4):
        what = type(video).__name__ if shape is None else f"an array of shape {shape}"
        raise ValueError(
            f"`{name}` must be a list of frames or an array (F, H, W, 3), got {what}: `videos` is a list of such "
            "videos, and video files are to be read into frames first."
        )
    return [load_rgb_image(frame) for frame in (video if shape is None else np.asarray(video))]
