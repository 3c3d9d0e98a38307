"""`pipeline("referring-segmentation")`: a picture and sentences in, masks out."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation


class ReferringSegmentationPipeline(Pipeline):
    """Segments what sentences refer to.

    ```python
    >>> from transformers import pipeline
    >>> segmenter = pipeline("referring-segmentation", model="path/to/checkpoint")
    >>> segmenter("photo.jpg", ["the dog on the left", "the ball"])
    [{"label": "the dog on the left", "score": 0.98, "mask": <PIL.Image>}, ...]
    ```

    Returns:
        For one picture a list with one dict per sentence: `label`, the sentence; `score`, the mean probability inside
        the mask; `mask`, a PIL image of mode "L" at the size of the picture, 255 inside.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __call__(self, image: Any, sentences: str | list[str] | None = None, **kwargs: Any):
        """
        Args:
            image: path, URL or PIL image; or a list of dicts `{"image": ..., "sentences": ...}`.
            sentences: one sentence or several about the picture.
        """
        if sentences is None:
            return super().__call__(image, **kwargs)
        return super().__call__({"image": image, "sentences": sentences}, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any):
        if kwargs:
            raise ValueError(f"Unknown arguments of the referring-segmentation pipeline: {sorted(kwargs)}.")
        return {}, {}, {}

    def preprocess(self, inputs: dict[str, Any]) -> dict[str, Any]:
        sentences = inputs["sentences"]
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        features = self.processor.segmentation_inputs(images=[inputs["image"]], expressions=[sentences])
        return {"features": features, "sentences": sentences}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        output = self.model.segment(**model_inputs["features"])
        output.require_finite()
        return {"masks": output.masks[0], "scores": output.scores[0], "sentences": model_inputs["sentences"]}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        masks = model_outputs["masks"].to(torch.uint8).mul(255).cpu().numpy()
        return [
            {"label": sentence, "score": score, "mask": Image.fromarray(mask)}
            for sentence, score, mask in zip(model_outputs["sentences"], model_outputs["scores"].tolist(), masks)
        ]


PIPELINE_REGISTRY.register_pipeline(
    "referring-segmentation",
    pipeline_class=ReferringSegmentationPipeline,
    pt_model=AutoModelForReferringSegmentation,
    type="multimodal",
)
