"""Mean IoU over sentences."""

from __future__ import annotations

from transformers_litelvlm.evaluation.evaluate_modules.encoded_masks import MaskModule


class Giou(MaskModule):
    """Mean IoU over sentences.

    `compute(rule=...)` chooses what empty for empty is worth, see [`summarize`].
    """

    def _select(self, summary: dict[str, float]) -> dict[str, float]:
        return {"giou": summary["giou"]}
