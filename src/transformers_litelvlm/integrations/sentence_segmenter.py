"""Masks of sentences about one picture, in this process: what all annotation tools here ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.data.masks import box_around
from transformers_litelvlm.models.auto import config_for_segmentation, load_for_segmentation
from transformers_litelvlm.utils.image_io import ImageInput


class FoundMask(NamedTuple):
    """A mask that is not empty, at the size of the upright picture."""

    number: int  # of its sentence, from 0
    sentence: str
    mask: np.ndarray  # (H, W) booleans
    score: float  # mean probability inside the mask, in [0, 1]; not correctness
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two excluded


class SentenceSegmenter:
    """Answers sentences with masks.

    Args:
        model: checkpoint folder or Hub name. `None`: the bundled one, which knows drawn shapes, not photos.
        preset, method, budget, retention_ratio: pruning settings, as `pruning_preset` and so on of `from_pretrained`.
            They change the checkpoint's own setting, and of the bundled one its preset `"balanced"`.
        device: of the model, such as `"cuda:1"`. `None`: CUDA if there is one, else the CPU.

    Raises:
        ValueError, OSError: there is no such checkpoint, or it cannot follow the settings.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        preset: str | None = None,
        method: str | None = None,
        budget: int | None = None,
        retention_ratio: float | None = None,
        device: str | None = None,
    ) -> None:
        given = {"preset": preset, "method": method, "budget": budget, "retention_ratio": retention_ratio}
        given = {f"pruning_{name}": value for name, value in given.items() if value is not None}
        if model is None:
            given = {"pruning_preset": "balanced"} | given
        config = config_for_segmentation(model or DEFAULT_CHECKPOINT)
        config.set_pruning(**given)
        self.model, self.processor = load_for_segmentation(model or DEFAULT_CHECKPOINT, config)
        self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @torch.inference_mode()
    def __call__(
        self, picture: ImageInput, sentences: Sequence[str], threshold: float | None = None
    ) -> list[FoundMask]:
        """The masks that are not empty.

        Args:
            picture: as [`load_rgb_image`] reads it; EXIF orientation is applied.
            sentences: what to find. They share one call, and the budget.
            threshold: the lowest score that a mask may have.

        Raises:
            ValueError: the picture cannot be read, a sentence is empty, or the masks are not finite.
        """
        inputs = self.processor.segmentation_inputs(images=[picture], expressions=[list(sentences)])
        output = self.model.segment(**inputs.to(self.model.device, dtype=self.model.dtype)).require_finite()
        masks = found_masks(output.masks[0].cpu().numpy(), output.scores[0].tolist(), sentences)
        return [each for each in masks if threshold is None or each.score >= threshold]


def found_masks(masks: np.ndarray, scores: Sequence[float], sentences: Sequence[str]) -> list[FoundMask]:
    """The masks (T, H, W) of one picture that are not empty, with what belongs to them.

    Raises ValueError if there are not as many sentences as masks.
    """
    if not len(masks) == len(scores) == len(sentences):
        raise ValueError(f"There are {len(masks)} masks and {len(sentences)} sentences: pass one sentence for each.")
    found = enumerate(zip(sentences, masks, scores, map(box_around, masks)))
    return [FoundMask(number, *each) for number, each in found if each[-1] is not None]
