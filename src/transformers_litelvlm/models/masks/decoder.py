"""The contract of a mask decoder: one implementation for each kind of mask model, in a module of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig


class MaskGeometry(NamedTuple):
    """Sizes of M pictures or videos, height before width.

    Attributes:
        original: as they were given.
        resized: of each picture inside the square that the mask model sees, if it does not fill it.
    """

    original: list[list[int]]
    resized: list[list[int]] | None = None


class DecodedMasks(NamedTuple):
    """Masks of the objects in M pictures or videos, by picture.

    Attributes:
        pred_masks: (N, h, w) logits; of videos, for each video (T_i, F_i, h, w).
        mask_logits: at the original size, float32 (T_i, H_i, W_i), of videos (T_i, F_i, H_i, W_i).
        iou_scores: (T_i,) predicted IoU, of videos in the first frame.
        object_scores: (T_i,) or (T_i, F_i) logits that the object is there; `None` if the decoder has none.
    """

    pred_masks: torch.Tensor | list[torch.Tensor]
    mask_logits: list[torch.Tensor]
    iou_scores: list[torch.Tensor]
    object_scores: list[torch.Tensor] | None = None


class MaskDecoder(ABC):
    """Encodes pictures or videos, decodes masks for prompts from a language model, and resizes them.

    Args:
        mask_model: the model that does it.

    Attributes:
        takes_videos: whether it follows objects through videos.
    """

    takes_videos: ClassVar[bool] = False

    def __init__(self, mask_model: nn.Module) -> None:
        self.mask_model: Any = mask_model

    @classmethod
    @abstractmethod
    def build(cls, config: PreTrainedConfig) -> nn.Module:
        """The mask model of a config, without weights."""

    @classmethod
    @abstractmethod
    def prompt_size(cls, config: PreTrainedConfig) -> int:
        """C, the width of a prompt."""

    @classmethod
    @abstractmethod
    def input_size(cls, config: PreTrainedConfig) -> int:
        """Side of the square that the mask model sees."""

    @abstractmethod
    def encode(self, pixel_values: torch.Tensor, num_frames: Sequence[int] | None = None) -> Any:
        """Features that no prompt changes.

        Args:
            pixel_values: (M, 3, S, S) pictures; or the frames of all videos.
            num_frames: of each video; `None` for pictures.
        """

    def encode_for_one_use(self, pixel_values: torch.Tensor, num_frames: Sequence[int] | None = None) -> Any:
        """The same for a single [`decode`], which may then encode bit by bit."""
        return self.encode(pixel_values, num_frames)

    @abstractmethod
    def decode(self, features: Any, prompts: torch.Tensor, about: list[int], geometry: MaskGeometry) -> DecodedMasks:
        """Masks for N prompts about M pictures or videos.

        Args:
            features: of [`encode`] or [`encode_for_one_use`].
            prompts: (N, n, C), n prompt tokens for each mask.
            about: picture or video of each mask, ascending.
        """


_DECODERS: dict[str, type[MaskDecoder]] = {}


def register_mask_decoder(config_class: type[PreTrainedConfig]) -> Callable[[type[MaskDecoder]], type[MaskDecoder]]:
    """Class decorator: models whose `mask_config` is a `config_class` decode with this class."""

    def register(cls: type[MaskDecoder]) -> type[MaskDecoder]:
        _DECODERS[config_class.model_type] = cls
        return cls

    return register


def mask_decoder_class(config: PreTrainedConfig) -> type[MaskDecoder]:
    """The decoder for a `mask_config`.

    Raises:
        ValueError: if there is none for its kind of mask model.
    """
    if config.model_type not in _DECODERS:
        known = ", ".join(sorted(_DECODERS))
        raise ValueError(f"`mask_config` is of type {config.model_type!r}; there are mask decoders for {known}.")
    return _DECODERS[config.model_type]
