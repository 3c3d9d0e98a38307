"""How a sweep takes the model families apart: what no pruning setting changes, and what each setting makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.evaluation.stopwatch import Stopwatch


# Inputs of one part of the dialogues about one picture or video, as `processor.segmentation_inputs` returns them.
Part = dict[str, Any]


class FamilySteps(ABC):
    """
    The steps of `segment` for dialogues about one picture or video.

    Args:
        model: A `...ForReferringSegmentation` of the family.

    Attributes:
        as_written (`dict`): Arguments of `segmentation_inputs` that leave sentences as the data has them.
        takes_videos (`bool`): Whether the family writes masks of videos.
        num_visual_tokens (`int`, *optional*): Of a picture before pruning; `None` where its size decides.
    """

    as_written: ClassVar[dict[str, Any]]
    takes_videos: ClassVar[bool] = False
    num_visual_tokens: int | None = None

    def __init__(self, model: Any) -> None:
        self.model = model

    @abstractmethod
    def empty_picture(self) -> Image.Image:
        """A picture to try settings on."""

    @abstractmethod
    def whole_sentence_template(self, templates: list[str]) -> str:
        """Of the checkpoint's questions, the one that is nothing but a whole sentence and a request."""

    @abstractmethod
    def encode(self, parts: list[Part], watch: Stopwatch) -> Any:
        """What all settings share: towers, and where it takes long the sentences. Stages: `vision`, `guidance`."""

    @abstractmethod
    def encode_for_masks(self, part: Part) -> Any:
        """SAM's features of the picture or video."""

    @abstractmethod
    def features(self, encoded: Any, parts: list[Part], place: int) -> BaseModelOutputWithPooling:
        """What the model's current setting keeps for each of the dialogues of `parts[place]`, or once for all."""

    @abstractmethod
    def read(self, part: Part, features: BaseModelOutputWithPooling) -> tuple[Any, torch.Tensor]:
        """`read_dialogues`."""

    @abstractmethod
    def decode(self, part: Part, states: torch.Tensor, input_ids: torch.Tensor, for_masks: Any) -> Any:
        """`decode_dialogues`."""


class LlavaSteps(FamilySteps):
    """LLaVA, GLaMM, LISA."""

    as_written = {"lowercase": False}

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        vision = model.config.vision_config
        self.num_visual_tokens = (vision.image_size // vision.patch_size) ** 2

    def empty_picture(self) -> Image.Image:
        side = self.model.config.vision_config.image_size
        return Image.new("RGB", (side, side))

    def whole_sentence_template(self, templates: list[str]) -> str:
        return next((text for text in reversed(templates) if text.startswith("{expression}")), templates[0])

    def encode(self, parts: list[Part], watch: Stopwatch) -> Any:
        base = self.model.model
        with watch.stage("vision"):
            states = base.encode_images(parts[0]["pixel_values"][:1])
            _ = states.features
        text_embeds = [None] * len(parts)
        if "guidance_input_ids" in parts[0]:
            with watch.stage("guidance"):
                text_embeds = [base.guidance.encode_text(part["guidance_input_ids"]) for part in parts]
        return states, text_embeds

    def encode_for_masks(self, part: Part) -> torch.Tensor:
        return self.model.encode_for_masks(part["mask_pixel_values"])

    def features(self, encoded: Any, parts: list[Part], place: int) -> BaseModelOutputWithPooling:
        base, part, pruning = self.model.model, parts[place], self.model.config.pruning_config
        states, text_embeds = encoded
        budget = pruning.resolve(self.num_visual_tokens)
        if budget is None:
            return BaseModelOutputWithPooling(pooler_output=list(base.multi_modal_projector(states.features[:, 1:])))
        if pruning.build_pruner().needs_text:  # else all dialogues get the same tokens
            states = states[torch.zeros(len(part["input_ids"]), dtype=torch.long, device=states.features.device)]
        guidance = (part.get("guidance_input_ids"), part.get("guidance_attention_mask"))
        return base.select_visual_tokens(states, budget, *guidance, text_embeds[place])

    def read(self, part: Part, features: BaseModelOutputWithPooling) -> tuple[Any, torch.Tensor]:
        return self.model.read_dialogues(
            part["input_ids"],
            part["attention_mask"],
            mm_encoder_outputs={"image": features},
            dialogue_images=part.get("dialogue_images"),
        )

    def decode(self, part: Part, states: torch.Tensor, input_ids: torch.Tensor, for_masks: Any) -> Any:
        return self.model.decode_dialogues(
            states,
            input_ids,
            mask_image_embeddings=for_masks,
            original_sizes=part["original_sizes"],
            reshaped_input_sizes=part["reshaped_input_sizes"],
            dialogue_images=part.get("dialogue_images"),
        )


class QwenSteps(FamilySteps):
    """Qwen2.5-VL: UniPixel."""

    as_written = {"normalize": False}
    takes_videos = True

    def empty_picture(self) -> Image.Image:
        vision = self.model.config.vision_config
        side = 16 * vision.patch_size * vision.spatial_merge_size
        return Image.new("RGB", (side, side))

    def whole_sentence_template(self, templates: list[str]) -> str:
        return next((text for text in templates if text.startswith("{expression}")), templates[0])

    def encode(self, parts: list[Part], watch: Stopwatch) -> Any:
        part = parts[0]
        with watch.stage("vision"):
            return self.model.encode_media(
                part["pixel_values_videos"], part["video_grid_thw"], part.get("guidance_pixel_values")
            )

    def encode_for_masks(self, part: Part) -> Any:
        return self.model.encode_for_masks(part["mask_pixel_values"], part.get("mask_num_frames"))

    def features(self, encoded: Any, parts: list[Part], place: int) -> BaseModelOutputWithPooling:
        part = parts[place]
        guidance = (part["guidance_input_ids"], part["guidance_attention_mask"])
        return self.model.select_media(encoded, part["dialogue_images"], *guidance)

    def read(self, part: Part, features: BaseModelOutputWithPooling) -> tuple[Any, torch.Tensor]:
        names = ("mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "dialogue_images")
        return self.model.read_dialogues(
            part["input_ids"],
            part["attention_mask"],
            mm_encoder_outputs={"video": features},
            **{name: part[name] for name in names},
        )

    def decode(self, part: Part, states: torch.Tensor, input_ids: torch.Tensor, for_masks: Any) -> Any:
        return self.model.decode_dialogues(
            states,
            input_ids,
            mask_image_features=for_masks,
            original_sizes=part["original_sizes"],
            mask_num_frames=part.get("mask_num_frames"),
            dialogue_images=part["dialogue_images"],
        )


STEPS: dict[str, type[FamilySteps]] = {"llava_lite": LlavaSteps, "qwen2_5_vl_lite": QwenSteps}


def steps_of(model: Any) -> FamilySteps:
    """
    The steps of a model.

    Raises:
        ValueError: Its family is not known here, or it writes no masks.
    """
    family = model.config.model_type
    if family not in STEPS or not hasattr(model, "decode_dialogues"):
        raise ValueError(
            f"{type(model).__name__} (`model_type` {family!r}) cannot be evaluated: only models that write masks, of"
            f" the families {', '.join(STEPS)}."
        )
    return STEPS[family](model)
