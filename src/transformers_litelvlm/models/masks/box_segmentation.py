"""Masks without grounding weights: a chat model answers with boxes and points, which prompt a stock mask model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig

from transformers_litelvlm.models.loading import access_arguments, hub_arguments
from transformers_litelvlm.models.masks.box_prompts import BoxPrompts, load_box_prompts
from transformers_litelvlm.models.masks.boxes import BoxAnswer
from transformers_litelvlm.models.masks.decoder import MaskGeometry
from transformers_litelvlm.models.masks.output import ReferringSegmentationOutput
from transformers_litelvlm.models.masks.segmentation import ReferringSegmentationMixin, mask_geometry, on_host
from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.models.processing.boxes import BoxProcessor
from transformers_litelvlm.models.processing.processor import GuidedProcessorMixin
from transformers_litelvlm.models.remote_code import classes_by_type
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.models.upstream import NO_OBJ_SCORE
from transformers_litelvlm.utils.hub_names import check_loadable


# Enough for the reasoning of Seg-Zero; an answer alone takes about 40 for each object.
MAX_NEW_TOKENS = 1024


@dataclass
class BoxSegmentationOutput(ReferringSegmentationOutput):
    """Masks from boxes, further as [`ReferringSegmentationOutput`].

    `masks` hold the union of all objects of a sentence, and nothing if none was located; `mask_logits` the largest
    logit of its objects; `iou_scores` their mean, 0 without objects; `object_scores` their largest.

    Attributes:
        answers: of each image, [`BoxAnswer`] of each of its T_i sentences, in pixels of the image. An answer without
            objects tells whether the model said that there are none (`says_none`) or could not be read.
        object_masks: likewise, bool (n, H_i, W_i) of the n objects of the answer.
    """

    answers: list[list[BoxAnswer]] | None = None
    object_masks: list[list[torch.Tensor]] | None = None


class DialogueAnswers(NamedTuple):
    """What the language model answers in B dialogues.

    Attributes:
        new_ids: (B, L) tokens of the answers.
        kept: what was kept of the pictures; `None` if nothing was cut.
    """

    new_ids: torch.Tensor
    kept: PrunedImageFeatures | None = None


class _Union(NamedTuple):
    """The objects of one sentence together: logits (H, W), scores without dimensions, and masks (n, H, W) of each."""

    logits: torch.Tensor
    iou_score: torch.Tensor
    object_score: torch.Tensor
    objects: torch.Tensor


class BoxSegmentation(ReferringSegmentationMixin, nn.Module):
    """A chat model that writes boxes, and a mask model that they prompt, as one model for referring segmentation.

    [`segment`] and its halves are those of every model that writes masks; the answers are generated.

    Args:
        chat: a model of this package that answers in text, such as [`Qwen3_VLLite`].
        prompts: the mask model.
        processor: [`BoxProcessor`] of both.

    Attributes:
        max_new_tokens: of an answer, unless the generation config of the chat model says so.
    """

    mask_modality = "image"
    answers_in_text = True

    def __init__(self, chat: Any, prompts: BoxPrompts, processor: BoxProcessor) -> None:
        nn.Module.__init__(self)
        self.chat = chat
        self.mask_model = prompts.mask_model
        self.prompts, self.processor = prompts, processor
        self.max_new_tokens = MAX_NEW_TOKENS

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, mask_model: str | os.PathLike, **kwargs: Any
    ) -> BoxSegmentation:
        """Load a chat model and a mask model, both stock or saved.

        Args:
            pretrained_model_name_or_path: of the chat model: a folder or the name of a repository on the Hub.
            mask_model: of the mask model, likewise.
            kwargs: of `from_pretrained` of the chat model, pruning settings among them. `cache_dir`, `force_download`,
                `local_files_only` and `token` hold for the mask model, too.

        Raises:
            ValueError: if one of them is not of a kind that is known here.
        """
        chat = ChatModel.from_pretrained(pretrained_model_name_or_path, **kwargs)
        place = hub_arguments(pretrained_model_name_or_path, kwargs)
        processor = chat_classes(pretrained_model_name_or_path, **place)["AutoProcessor"]
        processor = processor.from_pretrained(pretrained_model_name_or_path, **place)
        return cls.join(chat, processor, mask_model, **access_arguments(kwargs))

    @classmethod
    def join(
        cls, chat: Any, processor: GuidedProcessorMixin, mask_model: str | os.PathLike, **access: Any
    ) -> BoxSegmentation:
        """The chat model with a mask model beside it, on the same device.

        Args:
            chat, processor: the chat model and its processor.
            mask_model: folder or Hub id of the mask model.
            access: how it is loaded, see [`load_box_prompts`].
        """
        prompts, image_processor = load_box_prompts(mask_model, **access)
        prompts.mask_model.to(chat.device)
        return cls(chat, prompts, BoxProcessor(processor, image_processor)).eval()

    @property
    def model(self) -> Any:
        """The base model of the chat model, which the halves call."""
        return self.chat.model

    @property
    def config(self) -> Any:
        """That of the chat model."""
        return self.chat.config

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.chat.device

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.chat.dtype

    @property
    def mask_decoder(self) -> Any:
        return self.prompts

    def generate_masks(self, input_ids: torch.Tensor, **inputs: Any) -> ReferringSegmentationOutput:
        """The same as [`segment`], whose answers are always the model's own."""
        return self.segment(input_ids, **inputs)

    @torch.no_grad()
    def read(  # type: ignore[override]
        self, inputs: dict[str, Any], features: Any = None, settings: PruningSettings | None = None
    ) -> DialogueAnswers:
        """What the chat model answers in the dialogues, by greedy decoding.

        Args:
            inputs: of `processor.segmentation_inputs`.
            features: of [`select`]; default: encoded and selected here.
            settings: of this call; default: those of the config.
        """
        inputs, settings = on_host(inputs), settings or self.model.settings()
        features = self.features_of(inputs, settings) if features is None else features
        prompts, own = self.prompts_of(inputs, features), self.chat.generation_config.max_new_tokens
        generated = self.chat.generate(
            **prompts,
            pruning_config=settings,
            do_sample=False,
            max_new_tokens=own or self.max_new_tokens,
            return_dict_in_generate=True,
        )
        kept = generated.get(f"{self.mask_modality}_outputs")
        new_ids = generated.sequences[:, prompts["input_ids"].shape[1] :]
        return DialogueAnswers(new_ids, kept if isinstance(kept, PrunedImageFeatures) else None)

    @torch.no_grad()
    def decode(  # type: ignore[override]
        self, read: DialogueAnswers, inputs: dict[str, Any], mask_features: Any = None
    ) -> BoxSegmentationOutput:
        """Masks of what the answers locate.

        Args:
            read: of [`read`].
            inputs: of `processor.segmentation_inputs`.
            mask_features: of [`encode_for_masks`]; default: encoded here.
        """
        inputs = on_host({"input_ids": read.new_ids, **inputs})
        geometry, about = mask_geometry(inputs), inputs["about"]
        features = self.encode_for_masks(inputs) if mask_features is None else mask_features
        answers: list[list[BoxAnswer]] = [[] for _ in geometry.original]
        for image, answer in zip(about, self.processor.read_answers(read.new_ids, inputs, about), strict=True):
            answers[image].append(answer)
        unions = [
            [self._union([level[image : image + 1] for level in features], answer, geometry, image) for answer in row]
            for image, row in enumerate(answers)
        ]
        return BoxSegmentationOutput.of(
            [torch.stack([union.logits for union in row]) for row in unions],
            read.kept,
            iou_scores=[torch.stack([union.iou_score for union in row]) for row in unions],
            object_scores=[torch.stack([union.object_score for union in row]) for row in unions]
            if self.prompts.scores_objects
            else None,
            answers=answers,
            object_masks=[[union.objects for union in row] for row in unions],
        )

    def _union(self, features: list[torch.Tensor], answer: BoxAnswer, geometry: MaskGeometry, image: int) -> _Union:
        """The masks of the objects of an answer about one picture, of which `features` are."""
        size, resized = geometry.original[image], geometry.resized[image] if geometry.resized else None
        absent = features[0].new_full((), NO_OBJ_SCORE, dtype=torch.float32)
        logits, object_score, masks, iou_scores = absent.expand(size), absent, [], []
        for each in self.prompts.decode(features, answer.objects, size, resized):
            logits = torch.maximum(logits, each.logits)
            masks.append(each.logits > 0)
            iou_scores.append(each.iou_score)
            if each.object_score is not None:
                object_score = torch.maximum(object_score, each.object_score)
        objects = torch.stack(masks) if masks else absent.new_zeros((0, *size), dtype=torch.bool)
        iou_score = torch.stack(iou_scores).mean() if iou_scores else torch.zeros_like(absent)
        return _Union(logits, iou_score, object_score, objects)


class ChatModel:
    """Loads a chat model as the class of this package for its family, also from a stock checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """As `from_pretrained` of that class.

        Raises:
            ValueError: if it is not known how models of its kind write boxes.
        """
        place = hub_arguments(pretrained_model_name_or_path, kwargs)
        chat = chat_classes(pretrained_model_name_or_path, **place)["AutoModelForImageTextToText"]
        return chat.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


def chat_classes(source: str | os.PathLike, **place: Any) -> dict[str, Any]:
    """The classes of this package for the chat model of a checkpoint, stock or saved, by the name of an Auto class.

    Args:
        source: a folder or the name of a repository on the Hub.
        place: where its files are, see [`~models.loading.hub_arguments`].

    Raises:
        ValueError: if it is not known how models of its kind write boxes.
    """
    check_loadable(source, **place)
    found = PreTrainedConfig.get_config_dict(source, **place)[0].get("model_type")
    known = {name: of for name, of in classes_by_type().items() if of["AutoProcessor"].box_questions}
    if found not in known:
        raise ValueError(
            f"{source} is of type {found!r}, and it is not known how such models write boxes. A mask model can be "
            f"joined to a model of type {', '.join(sorted(known))}."
        )
    return known[found]
