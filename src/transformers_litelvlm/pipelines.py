"""`pipeline("referring-segmentation")`: a picture and sentences in, masks out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation
from transformers_litelvlm.models.masks.box_segmentation import (
    BoxSegmentation,
    BoxSegmentationOutput,
    ChatModel,
    chat_classes,
)
from transformers_litelvlm.models.masks.segmentation import ReferringSegmentationMixin
from transformers_litelvlm.models.processing.processor import GuidedProcessorMixin
from transformers_litelvlm.models.processing.sentences import nest_expressions
from transformers_litelvlm.models.pruned_config import PRUNING_KEYWORDS, PrunedConfigMixin, change_pruning
from transformers_litelvlm.utils.image_io import load_rgb_image
from transformers_litelvlm.utils.messages import did_you_mean, quoted


class ReferringSegmentationPipeline(Pipeline):
    """Segments what sentences refer to.

    ```python
    >>> from transformers import pipeline
    >>> segmenter = pipeline("referring-segmentation", model="path/to/checkpoint")
    >>> segmenter("photo.jpg", ["the dog on the left", "the ball"])
    [{"label": "the dog on the left", "score": 0.98, "mask": <PIL.Image>}, ...]
    >>> segmenter = pipeline("referring-segmentation", model="path/to/checkpoint", pruning_budget=48)
    >>> segmenter("photo.jpg", "the ball", pruning_budget=16)  # this call alone
    >>> segmenter = pipeline("referring-segmentation", model="path/to/chat", mask_model="path/to/sam")
    >>> segmenter("photo.jpg", "the ball")
    [{..., "boxes": [(12.0, 40.5, 96.0, 130.0)], "answer": '[{"bbox_2d": [...], "label": "ball"}]'}]
    ```

    Args:
        mask_model (`str`, *optional*): folder or Hub id of a stock mask model, for a `model` that answers with boxes,
            see [`BoxSegmentation`].
        pruning_config, pruning_preset, pruning_method, pruning_budget, pruning_retention_ratio,
        pruning_method_options, pruning_then, pruning_token_order, pruning_position_ids: as in `from_pretrained` of the
            models. They hold for the calls of this pipeline, and change those of the model's config, which remains as
            it is: `save_pretrained` saves the model's own. `model_kwargs={"pruning_budget": 48}` changes the model's.

    Returns:
        For one picture a list with one dict per sentence: `label`, the sentence; `score`, the mean probability inside
        the mask; `mask`, a PIL image of mode "L" at the size of the picture, 255 inside. With a `mask_model` also
        `answer`, the text that the model wrote; `boxes`, one for each object with a box, in pixels; `object_masks`,
        images as `mask`, one for each object; and `says_none`, whether the answer says that nothing matches.
    """

    model: Any
    processor: Any
    tokenizer: Any
    _load_processor = None  # of a stock chat model it may be impossible, and is not needed
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pruning = {name: kwargs.pop(name) for name in PRUNING_KEYWORDS if name in kwargs}
        mask_model = kwargs.pop("mask_model", None)
        super().__init__(*args, **kwargs)
        source = self.model.config._name_or_path
        if self.processor is None and not source:
            raise ValueError("`model` was not loaded from a checkpoint: pass its `processor`, too.")
        if mask_model is not None:
            place = {"revision": getattr(self.model.config, "_commit_hash", None)}
            if not isinstance(self.processor, GuidedProcessorMixin):
                self.processor = chat_classes(source, **place)["AutoProcessor"].from_pretrained(source, **place)
            self.model = BoxSegmentation.join(self.model, self.processor, mask_model)
            self.processor = self.model.processor
        elif not isinstance(self.model, ReferringSegmentationMixin):
            raise ValueError(
                f"{type(self.model).__name__} answers in text: name a mask model that its boxes prompt, such as "
                "`mask_model='facebook/sam2.1-hiera-large'`."
                if getattr(self.model.config, "mask_config", None) is None
                else f"The mask decoder of {source} cannot be loaded: "
                "`AutoModelForReferringSegmentation.from_pretrained` says why."
            )
        elif self.processor is None:  # says what is wrong
            self.processor = AutoProcessor.from_pretrained(source)
        self.tokenizer = self.processor.tokenizer  # upstream makes no batches without

    def __call__(self, image: Any, sentences: str | list[str] | None = None, **kwargs: Any):
        """
        Args:
            image: path, URL, base64 or PIL image; or, without `sentences`, a list (generator, data set) of dicts
                `{"image": ..., "sentences": ...}`, which is segmented in batches of `batch_size`.
            sentences: one sentence or several about the picture.
            kwargs: `batch_size`, `num_workers`, and pruning settings for this call alone: the same as of the pipeline,
                whose own they change.

        Raises:
            ValueError: if a picture has no sentences, or one of both cannot be read; for unknown arguments and pruning
                settings that do not exist or contradict each other.
        """
        if sentences is None:
            if hasattr(image, "column_names"):  # of the library datasets: upstream takes it for a single input
                image = (row for row in image)
            return super().__call__(image, **kwargs)
        return super().__call__({"image": image, "sentences": sentences}, **kwargs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {type(self.model).__name__}, {self.model.dtype} on {self.device}"

    def _sanitize_parameters(self, **kwargs: Any):
        if unknown := sorted(set(kwargs) - set(PRUNING_KEYWORDS)):
            known = ("batch_size", "num_workers", *PRUNING_KEYWORDS)
            raise ValueError(
                f"Unknown arguments of the referring-segmentation pipeline: {quoted(unknown)}."
                f"{did_you_mean(unknown, known)} There are: {', '.join(known)}."
            )
        config = self.model.config
        if not isinstance(config, PrunedConfigMixin):
            raise ValueError(f"{type(self.model).__name__} is no model of this package: pass a checkpoint.")
        pruning = change_pruning(change_pruning(config.pruning_config, self._pruning), kwargs)
        config.check_pruning(pruning)
        return {}, {"pruning_config": pruning}, {}

    def preprocess(self, inputs: dict[str, Any]) -> dict[str, Any]:
        is_pair = isinstance(inputs, Mapping) and {"image", "sentences"} <= inputs.keys()
        if not is_pair or isinstance(inputs["image"], list | tuple):
            got = f"a dict of {sorted(inputs)}" if isinstance(inputs, Mapping) else quoted(inputs)
            got = f"{len(inputs['image'])} pictures with `sentences`" if is_pair else got
            raise ValueError(
                "The referring-segmentation pipeline needs a picture and what to find in it: pass `sentences`, or for "
                f'several pictures, a list of dicts {{"image": ..., "sentences": ...}}; got {got}.'
            )
        [sentences] = nest_expressions(inputs["sentences"], num_images=1)
        return {"image": load_rgb_image(inputs["image"]), "sentences": sentences}

    def _forward(self, model_inputs: dict[str, Any], pruning_config: PruningConfig) -> dict[str, Any]:
        # Upstream batches these dicts to a dict of lists. What has one row per picture is padded by the processor.
        is_batch = isinstance(model_inputs["image"], list)
        images, sentences = (model_inputs[n] if is_batch else [model_inputs[n]] for n in ("image", "sentences"))
        features = self.processor.segmentation_inputs(images=images, expressions=sentences).to(self.device)
        output = self.model.segment(**features, pruning_config=pruning_config).require_finite().warn_if_empty()
        results = [
            dict(zip(("masks", "scores", "sentences"), of)) for of in zip(output.masks, output.scores, sentences)
        ]
        if isinstance(output, BoxSegmentationOutput):
            for result, answers, masks in zip(results, output.answers, output.object_masks):
                result |= {"answers": answers, "object_masks": masks}
        return {"results": results if is_batch else results[0]}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        results = model_outputs["results"]
        found = [
            {"label": sentence, "score": score, "mask": mask}
            for sentence, score, mask in zip(
                results["sentences"], results["scores"].tolist(), _as_images(results["masks"]), strict=True
            )
        ]
        for entry, answer, masks in zip(found, results.get("answers", ()), results.get("object_masks", ())):
            boxes = [each.box for each in answer.objects if each.box is not None]
            entry |= {"answer": answer.text, "says_none": answer.says_none, "boxes": boxes}
            entry["object_masks"] = _as_images(masks)
        return found

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and processor; the folder is one that `pipeline` loads.

        Upstream's would save parts of the processor, and write into the config of the model where the code of this
        pipeline is. Who loads the folder has this package, which registers it.
        """
        if isinstance(self.model, BoxSegmentation):
            raise ValueError("`mask_model` and `model` are two checkpoints: save `model.chat` and `model.mask_model`.")
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def _as_images(masks: torch.Tensor) -> list[Image.Image]:
    """Masks (n, H, W) as images of mode "L", 255 inside."""
    return [Image.fromarray(mask) for mask in masks.to(torch.uint8).mul(255).cpu().numpy()]


PIPELINE_REGISTRY.register_pipeline(
    "referring-segmentation",
    pipeline_class=ReferringSegmentationPipeline,
    pt_model=(AutoModelForReferringSegmentation, ChatModel),
    type="multimodal",
)
