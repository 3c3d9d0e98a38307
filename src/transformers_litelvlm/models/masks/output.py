"""What models return that write masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers.utils import ModelOutput, logging

from transformers_litelvlm.models.outputs import NotFiniteError, PrunedImageFeatures, RetainedIndices
from transformers_litelvlm.models.processing.known_pictures import UNLIKE
from transformers_litelvlm.utils.messages import SAID, is_first


logger = logging.get_logger(__name__)

# Of a mask whose confidence is computed: a large picture is not copied as a whole.
PIXELS_AT_ONCE = 1 << 22
MORE_TOKENS = 'more visual tokens (the preset "accurate", a larger budget), or no pruning (the method "none")'


@dataclass
class ReferringSegmentationOutput(ModelOutput):
    """Masks for every sentence of every image.

    Lists have one entry per image; T_i is its number of sentences, (H_i, W_i) its original size. Tensors have one row
    for each of the B dialogues, usually one per image, and are padded to T, the largest number of sentences.

    Of videos, with F_i frames, `masks` and `mask_logits` are (T_i, F_i, H_i, W_i), `scores` and `object_scores`
    (T_i, F_i), `iou_scores` those of the first frame, and `pred_masks` is a list of (T_i, F_i, h, w).

    Attributes:
        masks: bool (T_i, H_i, W_i), logits > 0.
        mask_logits: float32 (T_i, H_i, W_i).
        scores: float32 (T_i,), mean probability of the pixels inside the mask; 0 for an empty mask.
        iou_scores: float32 (T_i,), IoU that the mask decoder's own head predicts; LISA and GLaMM do not train it.
        object_scores: float32 (T_i,), with SAM 2 only: logit that the object is in the picture at all.
        pred_masks: (B, T, h, w) logits as the mask decoder gives them; zeros after the last mask of a dialogue.
        seg_embeddings: (B, T, n, C) projected [SEG] states, the decoder's prompts; zeros after the last of a dialogue.
        retained_indices: (B, K) visual tokens that were kept; `None` if pruning was off.
        similarity: (B, T, N) and context_scores: (B, N), if the method computed them.
        merge_weights: (B, K, N) how much of each visual token is in each kept one; `None` if nothing was merged.
        sequences: (B, L) generated ids, on the generate route only.
    """

    masks: list[torch.Tensor] | None = None
    mask_logits: list[torch.Tensor] | None = None
    scores: list[torch.Tensor] | None = None
    iou_scores: list[torch.Tensor] | None = None
    object_scores: list[torch.Tensor] | None = None
    pred_masks: torch.Tensor | list[torch.Tensor] | None = None
    seg_embeddings: torch.Tensor | None = None
    retained_indices: RetainedIndices | None = None
    similarity: torch.Tensor | None = None
    context_scores: torch.Tensor | None = None
    merge_weights: torch.Tensor | list[torch.Tensor] | None = None
    sequences: torch.Tensor | None = None

    @classmethod
    def of(cls, mask_logits: list[torch.Tensor], kept: PrunedImageFeatures | None, **fields: Any) -> Self:
        """From the logits of each image, and what was kept of it. On a CPU as [`require_finite`]: elsewhere this would
        wait for the device; who brings masks to the host asks then."""
        kept = kept or PrunedImageFeatures()
        output = cls(
            masks=[logits > 0 for logits in mask_logits],
            mask_logits=mask_logits,
            scores=[foreground_confidence(logits) for logits in mask_logits],
            retained_indices=kept.retained_indices,
            similarity=kept.similarity,
            context_scores=kept.context_scores,
            merge_weights=kept.merge_weights,
            **fields,
        )
        return output.require_finite() if mask_logits[0].is_cpu else output

    def require_finite(self) -> Self:
        """The same, if all masks are made of finite numbers. Waits for the device.

        Raises:
            NotFiniteError: if masks are not finite; the message names the image or video.
        """
        # Each is NaN as soon as a pixel of the mask is; SAM 2 has no pixels for an object that is not there.
        for of_images in (self.scores, self.iou_scores, self.object_scores or []):
            for index, scores in enumerate(of_images):
                if not scores.isfinite().all():
                    raise NotFiniteError(
                        f"The masks of image or video {index} are not finite numbers: its pixels are NaN or infinite, "
                        "or the model's weights are (or too large for its dtype: try `dtype=torch.float32`)."
                    )
        return self

    def warn_if_empty(self) -> Self:
        """The same; logs, once per process, that a mask is empty, and what to try. Waits for the device."""
        found = [masks.flatten(1).any(1).tolist() for masks in self.masks]
        empty = [(image, of_image.index(False)) for image, of_image in enumerate(found) if not all(of_image)]
        if empty and is_first("a mask is empty"):
            # Words are not what is wrong with a picture that the checkpoint does not know.
            tips = ["other words"] * (UNLIKE not in SAID) + [MORE_TOKENS] * (self.retained_indices is not None)
            logger.warning(
                "A mask is empty: nothing was found for sentence {1} of image or video {0} (both count from 0), and "
                "its score is 0.".format(*empty[0])
                + (f" Try {', '.join(tips)}." if tips else "")
            )
        return self


def foreground_confidence(mask_logits: torch.Tensor) -> torch.Tensor:
    """Mean probability of the pixels of each mask of (..., H, W) that are inside it, (...); 0 for an empty mask."""
    total: Any = 0.0
    count: Any = 0
    for part in mask_logits.flatten(-2).split(PIXELS_AT_ONCE, dim=-1):
        inside = part > 0
        total, count = total + (part.sigmoid() * inside).sum(-1), count + inside.sum(-1)
    return total / count.clamp(min=1)
