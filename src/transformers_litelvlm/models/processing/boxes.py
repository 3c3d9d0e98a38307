"""Prompts that ask a chat model for boxes, and pictures for the mask model that they prompt."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import BatchFeature

from transformers_litelvlm.models.masks.boxes import BoxAnswer, read_answer
from transformers_litelvlm.models.processing.processor import GuidedProcessorMixin, check_return_tensors
from transformers_litelvlm.models.processing.sentences import (
    EXPRESSION,
    checked_templates,
    match_templates,
    nest_expressions,
    tokenize_guidance,
)
from transformers_litelvlm.models.processing.tokens import tokenize
from transformers_litelvlm.utils.image_io import load_rgb_image


class BoxProcessor:
    """Prepares what a [`BoxSegmentation`] takes, and reads the answers of its chat model.

    Args:
        chat: the processor of the chat model.
        mask_image_processor: the image processor of the mask model.
        question_templates: questions about one `{expression}`, the default one first. Default: the `box_questions`
            of the chat model's processor.

    Raises:
        ValueError: if it is not known how the chat model writes boxes, or a template lacks `{expression}`.
    """

    one_expression_per_dialogue = True
    sees_whole_picture = True

    def __init__(
        self,
        chat: GuidedProcessorMixin,
        mask_image_processor: Any,
        question_templates: list[str] | tuple[str, ...] | None = None,
    ) -> None:
        if not getattr(chat, "box_questions", ()):
            raise ValueError(
                f"It is not known how models of {type(chat).__name__} write boxes: a mask model can be joined to this "
                "package's classes for Qwen2.5-VL and later models of Qwen, and for InternVL."
            )
        self.chat: Any = chat
        self.mask_image_processor = mask_image_processor
        questions = chat.box_questions if question_templates is None else question_templates
        self.question_templates = checked_templates("question_templates", questions, EXPRESSION)

    @property
    def tokenizer(self) -> Any:
        return self.chat.tokenizer

    @property
    def whole_sentence_template(self) -> str:
        """The question that is nothing but a whole sentence and a request."""
        own = (template for template in self.question_templates if template.startswith(EXPRESSION))
        return next(own, self.question_templates[0])

    def visual_token_grids(self, features: BatchFeature) -> list[tuple[int, int, int]]:
        """(frames, rows, columns) of the visual tokens of every picture, before pruning."""
        return self.chat.visual_token_grids(features)

    def grid_on_picture(self, features: BatchFeature, size: tuple[int, int]) -> Any:
        """As [`~processor.GuidedProcessorMixin.grid_on_picture`] of the chat model's processor."""
        return self.chat.grid_on_picture(features, size)

    def segmentation_inputs(
        self,
        images: Any = None,
        expressions: Any = None,
        return_tensors: str = "pt",
        question_template: str | list | None = None,
        as_written: bool = False,
    ) -> BatchFeature:
        """Everything that `model.segment(...)` takes: an open dialogue for every expression about every picture.

        Args:
            images: one picture or a list.
            expressions: for one picture a sentence or several; for several pictures a list of sentences each.
            return_tensors: only `"pt"`.
            question_template: with `{expression}`; one for all, or lists shaped like `expressions`. Default: the first
                of `question_templates`.
            as_written: of no effect: expressions are always left as they are.

        Returns:
            `BatchFeature`. Of B dialogues `input_ids`, `attention_mask`, of Qwen `mm_token_type_ids` (B, L), padded on
            the left, `guidance_input_ids`, `guidance_attention_mask` (B, 1, L), `dialogue_images` (B,). Of M pictures
            what the chat model sees, and `mask_pixel_values` (M, 3, S, S), `original_sizes` and, for SAM,
            `reshaped_input_sizes` (M, 2), height before width.

        Raises:
            ValueError: for an unreadable picture, an empty expression, one that contains a special token, or numbers
                that do not fit.
        """
        check_return_tensors(return_tensors)
        images = [load_rgb_image(image) for image in (images if isinstance(images, list | tuple) else [images])]
        sentences = nest_expressions(expressions, len(images))
        defaults = [self.question_templates[0]] * len(images)
        questions = match_templates(question_template, "question_template", sentences, defaults, EXPRESSION)
        guiding = [[sentence.strip()] for of_image in sentences for sentence in of_image]
        about = [image for image, of_image in enumerate(sentences) for _ in of_image]
        self.chat.check_expressions(sentence for [sentence] in guiding)
        # A picture is prepared once, whatever the number of dialogues about it.
        features = self.chat.features_of_pictures(images)
        placeholder = self.chat.image_token
        counts = [math.prod(grid) for grid in self.visual_token_grids(features)]
        templates = [template for of_image in questions for template in of_image]
        dialogues = [
            self.dialogue(template.replace(EXPRESSION, sentence)).replace(
                placeholder, self.chat.placeholders(placeholder, counts[image])
            )
            for template, [sentence], image in zip(templates, guiding, about, strict=True)
        ]
        tokens = tokenize(self.tokenizer, dialogues, "left")
        features.update(tokens)
        if self.chat.return_mm_token_type_ids:
            types = self.chat.create_mm_token_type_ids(tokens["input_ids"].tolist())
            features["mm_token_type_ids"] = torch.tensor(types)
        features.update(tokenize_guidance(self.chat.guidance_tokenizer or self.tokenizer, guiding))
        for_masks = self.mask_image_processor(images, return_tensors="pt")
        features["mask_pixel_values"] = for_masks["pixel_values"]
        features["original_sizes"] = torch.tensor([image.size[::-1] for image in images])
        if "reshaped_input_sizes" in for_masks:
            features["reshaped_input_sizes"] = torch.as_tensor(for_masks["reshaped_input_sizes"])
        features["dialogue_images"] = torch.tensor(about)
        return features

    def dialogue(self, question: str) -> str:
        """The prompt about one picture, where the answer begins."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return self.chat.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def read_answers(self, new_ids: torch.Tensor, inputs: dict[str, Any], about: list[int]) -> list[BoxAnswer]:
        """What B answers locate, in pixels of the pictures.

        Args:
            new_ids: (B, L) tokens of the answers.
            inputs: of [`segmentation_inputs`].
            about: picture of each dialogue.
        """
        texts, tagged = (self.tokenizer.batch_decode(new_ids, skip_special_tokens=skip) for skip in (True, False))
        units = self.chat.units_of_boxes(inputs)
        sizes = [(width, height) for height, width in inputs["original_sizes"].tolist()]
        return [
            read_answer(text, raw).in_picture(units[image], sizes[image])
            for text, raw, image in zip(texts, tagged, about, strict=True)
        ]
