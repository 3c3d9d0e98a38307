"""Processor of the LLaVA family: the prompt, both pictures (for CLIP and for SAM) and the sentences for guidance."""

from __future__ import annotations

import os
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer, BatchFeature, LlavaProcessor

from transformers_litelvlm.models.loading import access_arguments, hub_arguments
from transformers_litelvlm.models.processing.known_pictures import warn_of_unknown
from transformers_litelvlm.models.processing.processor import (
    GuidedProcessorMixin,
    check_return_tensors,
    check_size,
    check_sizes,
    check_switches,
    load_guidance_tokenizer,
    on_pil,
    read_images,
    resize_first,
)
from transformers_litelvlm.models.processing.sentences import (
    EXPRESSION,
    check_call,
    checked_templates,
    match_templates,
    messages_of,
    nest_expressions,
    tokenize_guidance,
)
from transformers_litelvlm.models.processing.tokens import tokenize
from transformers_litelvlm.utils.hub_names import check_loadable
from transformers_litelvlm.utils.image_io import ImageInput, load_rgb_image


# Vicuna's layout without a system prompt; used where a checkpoint brings no chat template of its own.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else ' ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{% endif %}"
    "{{ '' if message['role'] == 'user' else '</s>' }}"
    "{% endfor %}"
    "{{ ' ASSISTANT:' if add_generation_prompt else '' }}"
)
DEFAULT_QUESTION_TEMPLATES = ("Please segment {expression} in this image.",)
DEFAULT_ANSWER_TEMPLATES = ("It is [SEG].",)


class LlavaLiteProcessor(GuidedProcessorMixin, LlavaProcessor):
    """[`~transformers.LlavaProcessor`] that also prepares the sentences that guide pruning and the inputs of SAM.

    Modifications: `processor(images, text, expressions=...)` adds `guidance_input_ids` and
    `guidance_attention_mask`, (num_images, T, L); [`segmentation_inputs`] builds the dialogue that asks for masks.
    Prompts keep upstream's full number of image placeholders, whatever the pruning. Pictures are turned upright
    (EXIF) and converted to RGB. Image processors run on their PIL backends, as the published codes do, so that
    results do not depend on whether torchvision is installed.

    Args:
        image_processor, tokenizer, patch_size, vision_feature_select_strategy, chat_template, image_token: upstream's.
        num_additional_image_tokens (`int`, defaults to 1): the class token of CLIP.
        guidance_tokenizer: tokenizer of the CLIP text tower; without it there is no guidance.
        mask_image_processor: image processor of the mask decoder; without it there are no masks.
        question_templates (`list[str]`): questions about one `{expression}` that the checkpoint was trained with, the
            default one first; what CLIP is given, too.
        answer_templates (`list[str]`): answers with one [SEG], the default one first.
        seg_token (`str`, defaults to `"[SEG]"`).
        lowercase_expressions (`bool`, defaults to `True`): as LISA and GLaMM do with referring expressions.
        one_expression_per_dialogue (`bool`, defaults to `False`): ask about every expression in a dialogue of its own,
            as LISA was trained, not about all expressions of a picture in one.
        user_marker, assistant_marker (`str`): what starts a turn in a rendered prompt; they find the question where
            `expressions` is not given.
        knows_scenes_alone (`bool`, defaults to `False`): warn of pictures that are unlike the scenes of RefShapes, for
            the bundled checkpoint and its copies.
    """

    sees_whole_picture = False  # CLIP's image processor crops

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=None,
        vision_feature_select_strategy="default",
        chat_template=None,
        image_token="<image>",
        num_additional_image_tokens=1,
        guidance_tokenizer=None,
        mask_image_processor=None,
        question_templates=DEFAULT_QUESTION_TEMPLATES,
        answer_templates=DEFAULT_ANSWER_TEMPLATES,
        seg_token="[SEG]",
        lowercase_expressions=True,
        one_expression_per_dialogue=False,
        user_marker="USER:",
        assistant_marker="ASSISTANT:",
        knows_scenes_alone=False,
        **kwargs,
    ):
        if isinstance(mask_image_processor, dict):  # as saved in processor_config.json
            class_name = mask_image_processor.get("image_processor_type", "SamImageProcessorPil")
            mask_image_processor = getattr(transformers, class_name)(**mask_image_processor)
        check_switches(
            lowercase_expressions=lowercase_expressions,
            one_expression_per_dialogue=one_expression_per_dialogue,
            knows_scenes_alone=knows_scenes_alone,
        )
        self.guidance_tokenizer = guidance_tokenizer
        self.mask_image_processor = on_pil(mask_image_processor)
        self.question_templates = checked_templates("question_templates", question_templates, EXPRESSION)
        self.answer_templates = checked_templates("answer_templates", answer_templates, seg_token)
        self.seg_token = seg_token
        self.lowercase_expressions = lowercase_expressions
        self.one_expression_per_dialogue = one_expression_per_dialogue
        self.user_marker = user_marker
        self.assistant_marker = assistant_marker
        self.knows_scenes_alone = knows_scenes_alone
        super().__init__(
            on_pil(image_processor),
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template or DEFAULT_CHAT_TEMPLATE,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
            **kwargs,
        )
        check_size("patch_size", patch_size)
        check_sizes("image_processor", self.image_processor)
        check_sizes("mask_image_processor", self.mask_image_processor)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        expressions: str | list | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """As upstream, with the sentences for guidance.

        Args:
            images: one picture, a list, or a list of lists; paths and PIL images are turned upright and made RGB.
            text: one prompt or a list, with one image placeholder per picture.
            expressions (`str`, `list[str]` or `list[list[str]]`, *optional*): what to find in the pictures: one
                sentence for all, for one picture its sentences, for several pictures one sentence each, or a list of
                sentences for each. Default: the last user turn of each prompt, without placeholders.

        Returns:
            `BatchFeature` with upstream's keys, and of M pictures `guidance_input_ids` and `guidance_attention_mask`,
            (M, T, L); (M, L) where `expressions` are not given.

        Raises:
            ValueError: for an empty sentence, one that contains a special token, or a number of sentences that does
                not fit the pictures.
        """
        check_call(text, kwargs)
        images = read_images(images)
        features = super().__call__(images=images, text=text, **kwargs)
        if images is not None and self.guidance_tokenizer is not None:
            self.add_guidance(features, text, expressions, self.guidance_tokenizer)
        return features

    @property
    def media_tokens(self) -> tuple[str, ...]:
        return (self.image_token,)

    def segmentation_inputs(
        self,
        images,
        expressions,
        return_tensors: str = "pt",
        for_generation: bool = False,
        question_template: str | list | None = None,
        answer_template: str | list | None = None,
        as_written: bool = False,
        share_selection: bool = False,
    ) -> BatchFeature:
        """Everything that `model.segment(...)` takes: for every picture one dialogue about its expressions.

        Args:
            images: one picture or a list.
            expressions: for one picture a sentence or several; for several pictures a list of sentences each.
            return_tensors: only `"pt"`.
            for_generation: leave the answer to the model, for `model.generate_masks(...)`; one expression per picture.
            question_template: with `{expression}`; one for all, or lists shaped like `expressions`. Default: the first
                of `question_templates`.
            answer_template: with one [SEG], likewise. Default: the first of `answer_templates`.
            as_written: leave expressions as they are, whatever `lowercase_expressions` says; for whole sentences, as
                in ReasonSeg.
            share_selection: if a picture has several dialogues, guide pruning by all of its sentences together.
                Then the dialogues share visual tokens, and the language model reads them once.

        Returns:
            `BatchFeature` with `input_ids`, `attention_mask` (B, L), `pixel_values` (M, 3, H, W),
            `guidance_input_ids`, `guidance_attention_mask` (B, T, L), `mask_pixel_values` (M, 3, S, S),
            `original_sizes` and `reshaped_input_sizes` (M, 2), height before width. B dialogues about M pictures: the
            same number, unless the checkpoint wants one expression per dialogue and a picture has several. Then
            `dialogue_images` (B,) says which picture a dialogue is about; with `share_selection`, guidance has M rows.

        Raises:
            ValueError: for an unreadable picture, an empty expression, one that contains a special token, or numbers
                that do not fit; also if the processor has no mask image processor.
        """
        check_return_tensors(return_tensors)
        if self.mask_image_processor is None:
            raise ValueError("This processor has no `mask_image_processor`: its checkpoint does not write masks.")
        images = list(images) if isinstance(images, list | tuple) else [images]
        sized = [self._sized(image, place) for place, image in enumerate(images)]
        sentences = nest_expressions(expressions, len(images))
        self.check_expressions(self.expression(each, as_written) for of_image in sentences for each in of_image)
        if for_generation and any(len(of_image) > 1 for of_image in sentences):
            raise ValueError("`for_generation` takes one expression per picture; ask about the others separately.")
        defaults = [[templates[0]] * len(images) for templates in (self.question_templates, self.answer_templates)]
        questions = match_templates(
            question_template, "question_template", sentences, defaults[0], EXPRESSION, self.seg_token
        )
        answers = match_templates(answer_template, "answer_template", sentences, defaults[1], self.seg_token)
        turns = [
            [
                (self.question(sentence, question, as_written), answer)
                for sentence, question, answer in zip(*of_image, strict=True)
            ]
            for of_image in zip(sentences, questions, answers, strict=True)
        ]
        about, of_pictures = list(range(len(images))), turns
        if self.one_expression_per_dialogue:
            about = [image for image, of_image in enumerate(turns) for _ in of_image]
            turns = [[turn] for of_image in turns for turn in of_image]
        # A picture is prepared once, whatever the number of dialogues about it.
        # They are RGB: to convert them again would copy them.
        pixels = self.image_processor(
            [for_clip for for_clip, _, _ in sized], return_tensors=return_tensors, do_convert_rgb=False
        )
        features = BatchFeature({**pixels})
        _, rows, columns = self.visual_token_grids(features)[0]
        placeholders = self.image_token * (rows * columns)
        dialogues = [self.dialogue(of_, for_generation).replace(self.image_token, placeholders) for of_ in turns]
        features.update(tokenize(self.tokenizer, dialogues, "left" if for_generation else "right"))
        if self.guidance_tokenizer is not None:
            guiding = [[question for question, _ in turn] for turn in (of_pictures if share_selection else turns)]
            features.update(tokenize_guidance(self.guidance_tokenizer, guiding))
        pixels = self.mask_image_processor(
            [for_masks for _, for_masks, _ in sized], return_tensors=return_tensors, do_convert_rgb=False
        )
        features["mask_pixel_values"] = pixels["pixel_values"]
        features["original_sizes"] = torch.tensor([size for _, _, size in sized])
        features["reshaped_input_sizes"] = pixels["reshaped_input_sizes"]
        if len(about) != len(images):
            features["dialogue_images"] = torch.tensor(about)
        return features

    def _sized(self, image: ImageInput, place: int) -> tuple[Image.Image, Image.Image, tuple[int, int]]:
        """A picture as CLIP and as the mask decoder see it, before they crop or pad, and its (height, width)."""
        picture = load_rgb_image(image)
        if self.knows_scenes_alone:
            warn_of_unknown(picture, str(image) if isinstance(image, str | os.PathLike) else place)
        for_clip, for_masks = (resize_first(of, picture) for of in (self.image_processor, self.mask_image_processor))
        return for_clip, for_masks, (picture.height, picture.width)

    def expression(self, expression: str, as_written: bool = False) -> str:
        """An expression as it stands in the question: stripped and, with `lowercase_expressions` and unless it is to
        stay `as_written`, in lower case."""
        expression = expression.strip()
        if self.lowercase_expressions and not as_written:
            expression = expression.lower()
        return expression

    def question(self, expression: str, template: str | None = None, as_written: bool = False) -> str:
        """The question about an expression, see [`expression`]; what CLIP is given, too."""
        expression = self.expression(expression, as_written)
        return (template or self.question_templates[0]).replace(EXPRESSION, expression)

    def guidance_text(self, expression: str, as_written: bool = False) -> str:
        """What guidance reads of an expression: the question about it."""
        return self.question(expression, as_written=as_written)

    def dialogue(self, turns: list[tuple[str, str]], for_generation: bool = False) -> str:
        """The prompt that asks about one picture: (question, answer) pairs, the last answer left open or not."""
        messages = messages_of(turns, [{"type": "image"}], for_generation)
        return super().apply_chat_template(messages, add_generation_prompt=for_generation, tokenize=False)

    @property
    def whole_sentence_template(self) -> str:
        """Of the checkpoint's questions, the one that is nothing but a whole sentence and a request."""
        own = (template for template in reversed(self.question_templates) if template.startswith("{expression}"))
        return next(own, self.question_templates[0])

    def visual_token_grids(self, features: BatchFeature) -> list[tuple[int, int, int]]:
        """(1, rows, columns) of the visual tokens of every image, before pruning."""
        size = self.image_processor.crop_size
        grid = (1, size["height"] // self.patch_size, size["width"] // self.patch_size)
        return [grid] * len(features["pixel_values"])

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        if self.mask_image_processor is not None:
            # Upstream writes the name of the torchvision class; ours says what runs.
            output["mask_image_processor"]["image_processor_type"] = type(self.mask_image_processor).__name__
        return output

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, guidance_tokenizer=None, **kwargs: Any):
        """As upstream; reads the guidance tokenizer from the sub-folder `guidance_tokenizer`.

        Args:
            guidance_tokenizer: a tokenizer, or where to load one from, instead.

        Raises:
            OSError: a path that does not exist, or a repository that cannot be reached.
        """
        place = hub_arguments(pretrained_model_name_or_path, kwargs)
        processor = super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, **place})
        if isinstance(guidance_tokenizer, str | os.PathLike):
            access = access_arguments(kwargs)
            check_loadable(guidance_tokenizer, **access)
            guidance_tokenizer = AutoTokenizer.from_pretrained(guidance_tokenizer, **access)
        elif guidance_tokenizer is None:
            is_needed = bool(processor.guidance_tokenizer)
            guidance_tokenizer = load_guidance_tokenizer(pretrained_model_name_or_path, place, is_needed)
        processor.guidance_tokenizer = guidance_tokenizer
        return processor
