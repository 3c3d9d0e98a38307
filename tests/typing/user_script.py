"""What a type checker says of a user's script: `make quality` runs mypy on this file with a user's settings.

It has to accept every line, each `assert_type` is what it finds, and each `ignore` an error that it has to report.
"""

from typing import Any, assert_type

from transformers import pipeline

from transformers_litelvlm import (
    DEFAULT_CHECKPOINT,
    AutoModelForReferringSegmentation,
    LlavaLiteForConditionalGeneration,
    LlavaLiteForReferringSegmentation,
    PruningConfig,
    Qwen2_5_VLLite,
    ReferringSegmentationMixin,
    ReferringSegmentationOutput,
)


def segment(inputs: dict[str, Any]) -> None:
    model = AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT, pruning_budget=48)
    assert_type(model, ReferringSegmentationMixin)
    assert_type(model.segment(**inputs), ReferringSegmentationOutput)
    assert_type(model.segment(**inputs, pruning_config=PruningConfig(budget=16)), ReferringSegmentationOutput)
    model.eval()
    model.save_pretrained("mine")
    model.segmnet(**inputs)  # type: ignore[operator]


def settings(path: str, ratio: float) -> None:
    load = AutoModelForReferringSegmentation.from_pretrained
    load(path)
    load(path, dtype="auto", device_map="auto", revision="main", pruning_preset="balanced")
    load(path, pruning_budget=None, pruning_method="vispruner", pruning_method_options={"important_ratio": 0.5})
    load(path, pruning_retention_ratio=ratio, pruning_then={"method": "fastv", "budget": 16})
    load(path, pruning_config=PruningConfig(budget=64), pruning_token_order="raster", pruning_position_ids="original")
    load(path, pruning_budget="many")  # type: ignore[arg-type]
    load(path, pruning_retention_ratio="half")  # type: ignore[arg-type]
    load(path, pruning_method=64)  # type: ignore[arg-type]
    load(path, pruning_method_options=[0.5])  # type: ignore[arg-type]
    load(path, pruning_config=64)  # type: ignore[arg-type]


def classes(path: str, inputs: dict[str, Any]) -> None:
    model = LlavaLiteForReferringSegmentation.from_pretrained(path, pruning_budget=48)
    assert_type(model, LlavaLiteForReferringSegmentation)
    assert_type(model.segment(**inputs), ReferringSegmentationOutput)
    assert_type(Qwen2_5_VLLite.from_pretrained(path, pruning_retention_ratio=0.25), Qwen2_5_VLLite)
    assert_type(LlavaLiteForConditionalGeneration.from_pretrained(path), LlavaLiteForConditionalGeneration)
    LlavaLiteForConditionalGeneration.from_pretrained(path, pruning_budget="many")  # type: ignore[arg-type]
    Qwen2_5_VLLite.from_pretrained(path, pruning_budget=0.25)  # type: ignore[arg-type]


def pipelines() -> None:
    # The overloads of upstream know its own tasks alone.
    segmenter = pipeline("referring-segmentation", model=DEFAULT_CHECKPOINT)  # type: ignore[call-overload]
    segmenter("photo.jpg", "the ball", pruning_budget=16)
