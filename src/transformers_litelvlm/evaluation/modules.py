"""The scores as modules of the `evaluate` library, without a network.

Masks travel as COCO run-length encodings, which any table can store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.evaluation.metrics import THRESHOLDS, score_masks, summarize
from transformers_litelvlm.evaluation.video_metrics import score_frames, summarize_videos
from transformers_litelvlm.utils.extras import needs_extra


with needs_extra("eval", "A module of `evaluate`"):
    import datasets
    import evaluate


MODULES = ("ciou", "giou", "precision_at_iou", "j_and_f")
CITATION = "The definitions and whose they are: docs/metrics.md of transformers_litelvlm."
INPUTS = """
Args:
    predictions (`list[dict]`): COCO run-length encodings, `size` and `counts` (text), at the image's original size;
        `transformers_litelvlm.data.encode_mask` makes them.
    references (`list[dict]`): The same of what is meant. Loaded with `config_name="ignore"`, a module also wants
        `ignore` in each: the `counts` of pixels that must not count, "" if there are none.
"""

_MASK = {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")}


def module_path(name: str) -> str:
    """The file of a module, one of `MODULES`, for `evaluate.load(module_path("giou"))`. Raises ValueError if it is
    none of them."""
    if name not in MODULES:
        raise ValueError(f"`name` must be one of {', '.join(MODULES)}, got {name!r}.")
    return str(Path(__file__).parent / "evaluate_modules" / f"{name}.py")


def load_module(name: str, **options: Any) -> Any:
    """A module, to be used alone or in `evaluate.combine`.

    Args:
        name: one of `MODULES`.
        options: of `evaluate.load`: `config_name="ignore"` for references with ignore regions, `num_process`,
            `process_id`, `experiment_id` for several processes, ...

    Returns:
        The module.

    Example:
        >>> import evaluate
        >>> from transformers_litelvlm.data import encode_mask, generate_scene
        >>> mask = encode_mask(generate_scene("test", 0).mask(0))
        >>> both = evaluate.combine([load_module("ciou"), load_module("giou")])
        >>> both.compute(predictions=[mask], references=[mask])
        {'ciou': 1.0, 'giou': 1.0}
    """
    return evaluate.load(module_path(name), **options)


class Ciou(evaluate.Metric):
    """Overall IoU: the sum of the intersections over the sum of the unions.

    `compute(rule=...)` chooses what empty for empty is worth, see [`summarize`].
    """

    scores: tuple[str, ...] = ("ciou",)  # those of `summarize` that are its own

    def _info(self) -> evaluate.MetricInfo:
        reference = _MASK | ({"ignore": datasets.Value("string")} if self.config_name == "ignore" else {})
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": _MASK, "references": reference}),
        )

    def _compute(self, predictions: list[dict], references: list[dict], rule: str = "lisa") -> dict[str, float]:
        found = []
        for prediction, reference in zip(predictions, references, strict=True):
            counts = reference.get("ignore")
            ignore = decode_mask({"size": reference["size"], "counts": counts}) if counts else None
            found += score_masks(decode_mask(prediction)[None], decode_mask(reference)[None], ignore)
        summary = summarize(found, rule)
        return {name: summary[name] for name in self.scores}


class Giou(Ciou):
    """Mean IoU over sentences.

    `compute(rule=...)` chooses what empty for empty is worth, see [`summarize`].
    """

    scores = ("giou",)


class PrecisionAtIou(Ciou):
    """Share of the sentences whose IoU is at least 0.5, 0.6, 0.7, 0.8, 0.9.

    `compute(rule=...)` chooses what empty for empty is worth, see [`summarize`].
    """

    scores = tuple(f"precision@{threshold}" for threshold in THRESHOLDS)


class JAndF(evaluate.Metric):
    """J, F and J&F of referring video segmentation, per expression, over all frames."""

    def _info(self) -> evaluate.MetricInfo:
        frames = datasets.List(_MASK)
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=CITATION,
            inputs_description="predictions, references: per expression a list of COCO run-length encodings by frame",
            features=datasets.Features({"predictions": frames, "references": frames}),
        )

    def _compute(self, predictions: list[list[dict]], references: list[list[dict]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        scores = [score_frames(map(decode_mask, found), map(decode_mask, meant)) for found, meant in pairs]
        return {name: value for name, value in summarize_videos(scores).items() if name != "expressions"}
