"""Overall IoU: the sum of the intersections over the sum of the unions."""

from __future__ import annotations

from transformers_litelvlm.evaluation.evaluate_modules.encoded_masks import MaskModule


class Ciou(MaskModule):
    """Overall IoU: the sum of the intersections over the sum of the unions.

    `compute(rule=...)` chooses what empty for empty is worth, see [`summarize`].
    """

    def _select(self, summary: dict[str, float]) -> dict[str, float]:
        return {"ciou": summary["ciou"]}
