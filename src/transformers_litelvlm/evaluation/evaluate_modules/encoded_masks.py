"""What the modules for masks share: masks travel as COCO run-length encodings, which any table can store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import datasets
import evaluate

from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.evaluation.metrics import SentenceScore, score_masks, summarize


CITATION = "The definitions and whose they are: docs/metrics.md of transformers_litelvlm."
INPUTS = """
Args:
    predictions (`list[dict]`): COCO run-length encodings, `size` and `counts` (text), at the image's original size;
        `transformers_litelvlm.data.encode_mask` makes them.
    references (`list[dict]`): The same of what is meant. Loaded with `config_name="ignore"`, a module also wants
        `ignore` in each: the `counts` of pixels that must not count, "" if there are none.
"""

_MASK = {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")}


class MaskModule(evaluate.Metric, ABC):
    """A module whose predictions and references are masks."""

    @abstractmethod
    def _select(self, summary: dict[str, float]) -> dict[str, float]:
        """Its scores, of those that [`summarize`] gives."""

    def _info(self) -> evaluate.MetricInfo:
        reference = _MASK | ({"ignore": datasets.Value("string")} if self.config_name == "ignore" else {})
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": _MASK, "references": reference}),
        )

    def _compute(self, predictions: list, references: list, rule: str = "lisa") -> dict[str, float]:
        return self._select(summarize(score_encoded(predictions, references), rule))


def score_encoded(predictions: Sequence[dict], references: Sequence[dict]) -> list[SentenceScore]:
    """Compare masks given as run-length encodings, see `INPUTS`."""
    scores = []
    for prediction, reference in zip(predictions, references, strict=True):
        counts = reference.get("ignore")
        ignore = decode_mask({"size": reference["size"], "counts": counts}) if counts else None
        scores += score_masks(decode_mask(prediction)[None], decode_mask(reference)[None], ignore)
    return scores
