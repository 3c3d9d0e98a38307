"""Region similarity and boundary accuracy of videos, mean over expressions."""

from __future__ import annotations

import datasets
import evaluate

from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.evaluation.evaluate_modules.encoded_masks import CITATION
from transformers_litelvlm.evaluation.video_metrics import score_frames, summarize_videos


_FRAMES = datasets.List({"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")})


class JAndF(evaluate.Metric):
    """J, F and J&F per expression, all frames. A prediction is a list of run-length encodings, one per frame."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="J, F and J&F of referring video segmentation, per expression, over all frames.",
            citation=CITATION,
            inputs_description="predictions, references: per expression a list of COCO run-length encodings by frame",
            features=datasets.Features({"predictions": _FRAMES, "references": _FRAMES}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        summary = summarize_videos(
            [
                score_frames(map(decode_mask, found), map(decode_mask, meant))
                for found, meant in zip(predictions, references)
            ]
        )
        return {name: summary[name] for name in ("j", "f", "j_and_f")}
