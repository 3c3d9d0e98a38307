"""Masks over HTTP: `POST /pooling` with a picture and sentences."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import AutoProcessor
from vllm import PoolingParams
from vllm.plugins.io_processors.interface import IOProcessor

from transformers_litelvlm.serving.answers import describe_mask
from transformers_litelvlm.serving.errors import ServiceError
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.pictures import digest_of, picture_from_text, read_picture
from transformers_litelvlm.serving.requests import FIELDS, SETTINGS, check_names, checked_sentences
from transformers_litelvlm.serving.vllm.mask_bytes import pack_picture, prompts_of, unpack_masks
from transformers_litelvlm.utils.messages import quoted


class SegmentationIOProcessor(IOProcessor):
    """From `{"image": base64, "sentences": [...]}`, and pruning settings by the names of `POST /v1/segment`, to a
    dialogue with [SEG], and from what the worker decodes to masks."""

    def __init__(self, vllm_config: Any, renderer: Any) -> None:
        super().__init__(vllm_config, renderer)
        self.limits = Limits()
        self.image_token_id = vllm_config.model_config.hf_config.image_token_id
        self.processor = AutoProcessor.from_pretrained(vllm_config.model_config.model)
        # vLLM calls `pre_process` and `merge_pooling_params` of a request one after the other in a thread, and gives
        # the second nothing of what the first found.
        self.request = threading.local()

    def parse_data(self, data: object) -> dict[str, Any]:
        """Check a request. Raises ValueError."""
        if not isinstance(data, dict):
            raise ValueError(f"`data` must be an object with {', '.join(FIELDS)}, got {quoted(data)}.")
        try:
            check_names(data, FIELDS)
            sentences = checked_sentences(data.get("sentences"), self.limits)
            content = picture_from_text(data.get("image"), False, self.limits.max_request_bytes)
            picture = read_picture(content, self.limits.max_pixels)
        except ServiceError as error:
            raise ValueError(str(error)) from error
        pruning = {keyword: data[name] for name, keyword in SETTINGS.items() if name in data}
        return {"image": picture, "sentences": sentences, "pruning": pruning}

    def pre_process(self, prompt: dict[str, Any], request_id: str | None = None, **kwargs: Any) -> list[Any]:
        """The dialogues about the picture, one for all sentences or one each, as the checkpoint was trained."""
        picture, sentences = prompt["image"], prompt["sentences"]
        features = self.processor.segmentation_inputs(images=[picture], expressions=[sentences])
        prompts = prompts_of(features, self.image_token_id)
        questions = [self.processor.guidance_text(sentence) for sentence in sentences]
        guiding = [questions] if len(prompts) == 1 else [[question] for question in questions]
        self.request.extra = pack_picture(features, digest_of(picture))
        return [
            {
                "prompt_token_ids": ids,
                "multi_modal_data": {"image": picture},
                "mm_processor_kwargs": {"expressions": [of_dialogue], **prompt["pruning"]},
            }
            for ids, of_dialogue in zip(prompts, guiding, strict=True)
        ]

    def merge_pooling_params(self, params: PoolingParams | None = None) -> PoolingParams:
        """Send the picture for the mask decoder along."""
        params = params or PoolingParams()
        params.task, params.extra_kwargs = "plugin", self.request.extra
        params.skip_reading_prefix_cache = True  # blocks that were read before have no states to decode
        return params

    def post_process(self, model_output: Sequence[Any], request_id: str | None = None, **kwargs: Any) -> Any:
        """The masks of all sentences, in the order of the request."""
        parts = [unpack_masks(output.outputs.data) for output in model_output]
        masks = np.concatenate([of_dialogue for of_dialogue, _ in parts])
        scores = [score for _, of_dialogue in parts for score in of_dialogue]
        return {
            "width": masks.shape[2],
            "height": masks.shape[1],
            "masks": [describe_mask(mask, score) for mask, score in zip(masks, scores, strict=True)],
        }
