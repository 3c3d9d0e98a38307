"""Mean IoU over sentences."""

from __future__ import annotations

import evaluate

from transformers_litelvlm.evaluation.evaluate_modules.encoded_masks import mask_module_info, score_encoded
from transformers_litelvlm.evaluation.metrics import summarize


class Giou(evaluate.Metric):
    """Mean IoU over sentences.

    `compute(rule=...)` chooses what empty for empty is worth, see [`summarize`].
    """

    def _info(self) -> evaluate.MetricInfo:
        return mask_module_info(self)

    def _compute(self, predictions: list, references: list, rule: str = "lisa") -> dict[str, float]:
        summary = summarize(score_encoded(predictions, references), rule)
        return {"giou": summary["giou"]}
