"""Share of the sentences whose IoU is at least 0.5, 0.6, 0.7, 0.8, 0.9."""

from __future__ import annotations

from transformers_litelvlm.evaluation.evaluate_modules.encoded_masks import MaskModule


class PrecisionAtIou(MaskModule):
    """Share of the sentences whose IoU is at least 0.5, 0.6, 0.7, 0.8, 0.9.

    `compute(rule=...)` chooses what empty for empty is worth, see [`summarize`].
    """

    def _select(self, summary: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in summary.items() if name.startswith("precision@")}
