"""Scores of referring image segmentation: cIoU, gIoU, precision at an overlap, from one record per sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)

# IoU of an empty prediction for a sentence that means nothing. All evaluators give 0 to a prediction if nothing is
# meant, and to no prediction if something is.
EMPTY_IOU = {
    "lisa": 1.0,
    "glamm": 1.0,
    "unipixel": 1.0,
    "mttr": 1.0,
    "lavt": 0.0,
    "cris": 0.0,
    "seg-zero": 0.0,
    "pycocotools": 0.0,
}


@dataclass(frozen=True)
class SentenceScore:
    """What is kept of the prediction for one sentence: whole numbers of pixels, from which every score follows.

    Pixels to be ignored are in none of the numbers.

    Args:
        intersection: pixels in both masks.
        union: pixels in at least one.
        prediction_area: pixels predicted.
        target_area: pixels meant.
    """

    intersection: int
    union: int
    prediction_area: int
    target_area: int

    @property
    def empty_prediction(self) -> bool:
        return self.prediction_area == 0

    @property
    def empty_target(self) -> bool:
        return self.target_area == 0

    def iou(self, empty_iou: float = 1.0) -> float:
        """Intersection over union; `empty_iou` if both masks are empty."""
        return self.intersection / self.union if self.union else empty_iou


def score_masks(predictions: Any, targets: Any, ignore: Any = None) -> list[SentenceScore]:
    """Compare predicted masks with the ones meant, on the device they are on.

    Args:
        predictions: `(n, height, width)` booleans at the image's original size.
        targets: `(n, height, width)` booleans of the same kind.
        ignore: `(height, width)` or `(n, height, width)` booleans of pixels that count neither as hit nor as miss.

    Returns:
        One per mask.

    Raises:
        ValueError: shapes differ. No prediction is silently left out, none stretched to fit.
        TypeError: masks that are not boolean; a threshold is the caller's decision.
    """
    named = {"predictions": predictions, "targets": targets} | ({} if ignore is None else {"ignore": ignore})
    for name, masks in named.items():
        if not str(masks.dtype).endswith("bool"):
            raise TypeError(f"`{name}` must be boolean, got {masks.dtype}. Apply your threshold first.")
    if predictions.ndim != 3 or predictions.shape != targets.shape:
        raise ValueError(
            "`predictions` and `targets` must have the same shape (n, height, width), got"
            f" {tuple(predictions.shape)} and {tuple(targets.shape)}."
        )
    if ignore is not None:
        if tuple(ignore.shape) not in {tuple(targets.shape), tuple(targets.shape[1:])}:
            raise ValueError(f"`ignore` has shape {tuple(ignore.shape)}, the masks {tuple(targets.shape)}.")
        predictions, targets = predictions & ~ignore, targets & ~ignore
    columns = (predictions & targets, predictions | targets, predictions, targets)
    # Here alone the host waits for the device.
    counts = zip(*(masks.sum((1, 2)).tolist() for masks in columns), strict=True)
    return [SentenceScore(*numbers) for numbers in counts]


def sentence_ious(intersections: Any, unions: Any, empty_iou: float = 1.0) -> np.ndarray:
    """Intersection over union of every sentence, float64: pixels over pixels of the same shape, whatever it is.

    `empty_iou` is the value if the union is empty.
    """
    intersections, unions = np.asarray(intersections, np.float64), np.asarray(unions, np.float64)
    return np.where(unions > 0, intersections / np.maximum(unions, 1), empty_iou)


def summarize(scores: Sequence[SentenceScore], rule: str = "lisa") -> dict[str, float]:
    """The scores of a split.

    - `ciou`: sum of the intersections over sum of the unions. Large objects weigh more. A prediction if nothing is
      meant counts in the union.
    - `giou`: mean of the sentences' IoU.
    - `precision@t`: share of the sentences whose IoU is at least `t` (LAVT; CRIS and MTTR ask for more than `t`, which
      differs only if an IoU is exactly `t`).

    LISA and GLaMM compute `I / (U + 1e-5)`; without that term an IoU differs by less than 1e-5 / U.

    Args:
        scores: one per sentence, at least one.
        rule: whose value an empty prediction has if nothing is meant, one of `EMPTY_IOU`. It changes `giou` and
            `precision@t`, and `ciou` only if every union is empty.

    Returns:
        `ciou`, `giou`, `precision@0.5` to `precision@0.9`, each between 0 and 1; then `sentences`, `empty_targets`,
        `empty_predictions`, numbers of sentences.

    Raises:
        ValueError: no score, or an unknown rule.
    """
    if rule not in EMPTY_IOU:
        raise ValueError(f"`rule` must be one of {', '.join(EMPTY_IOU)}, got {rule!r}.")
    if not scores:
        raise ValueError("`scores` is empty: there is nothing to average.")
    intersections = np.array([score.intersection for score in scores], np.int64)
    unions = np.array([score.union for score in scores], np.int64)
    ious = sentence_ious(intersections, unions, EMPTY_IOU[rule])
    return {
        "ciou": float(sentence_ious(intersections.sum(), unions.sum(), EMPTY_IOU[rule])),
        "giou": float(ious.mean()),
        **{f"precision@{threshold}": float((ious >= threshold).mean()) for threshold in THRESHOLDS},
        "sentences": len(scores),
        "empty_targets": sum(score.empty_target for score in scores),
        "empty_predictions": sum(score.empty_prediction for score in scores),
    }
