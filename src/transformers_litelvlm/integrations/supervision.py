"""Masks as `Detections` of Supervision, for its annotators, metrics and exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.integrations.sentence_segmenter import found_masks
from transformers_litelvlm.models.masks.output import ReferringSegmentationOutput
from transformers_litelvlm.utils.extras import needs_extra


if TYPE_CHECKING:
    from supervision import Detections


def to_detections(
    result: ReferringSegmentationOutput | Mapping[str, Any], sentences: Sequence[str] | None = None, image: int = 0
) -> Detections:
    """The masks of a picture that are not empty.

    Args:
        result: what `model.segment` returned, or an answer of `litelvlm serve` (the body, as a dict).
        sentences: of the picture. An answer has them.
        image: which picture of a `ReferringSegmentationOutput`, from 0.

    Returns:
        `mask` (n, H, W) booleans; `xyxy` (n, 4) float32, their boxes, the right and the bottom excluded; `confidence`
        (n,), the scores; `class_id` (n,), which sentence, from 0; `data["class_name"]`, the sentences.

    Raises:
        ValueError: there are not as many sentences as masks.
    """
    with needs_extra("supervision", "`to_detections`"):
        from supervision import Detections

    if isinstance(result, ReferringSegmentationOutput):
        masks, scores = result.masks[image].cpu().numpy(), result.scores[image].tolist()
    else:
        found = result["masks"]
        masks = np.stack([decode_mask(each["mask"]) for each in found])
        scores, sentences = [each["score"] for each in found], [each["sentence"] for each in found]
    each = found_masks(masks, scores, sentences or [])
    return Detections(
        xyxy=np.array([mask.box for mask in each], dtype=np.float32).reshape(-1, 4),
        mask=masks[[mask.number for mask in each]],
        confidence=np.array([mask.score for mask in each], dtype=np.float32),
        class_id=np.array([mask.number for mask in each], dtype=int),
        data={"class_name": np.array([mask.sentence for mask in each], dtype=str)},
    )
