"""From a request to pixels, sentences and placeholders; and the keys of everything that vLLM keeps of it.

vLLM keeps what it processed, what the tower gave, and blocks of keys and values, all by one hash of a picture. Here
the kept tokens depend on the sentence and on the settings, so both are part of that hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from transformers import AutoTokenizer
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder as PictureDummyInputs
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement

from transformers_litelvlm.models.processing.sentences import last_user_text, nest_expressions
from transformers_litelvlm.serving.vllm.servable import check_settings, image_grid, num_placeholders


__all__ = ["PictureDummyInputs", "PrunedInfoMixin", "PrunedProcessorMixin"]

GUIDANCE_FIELDS = ("guidance_input_ids", "guidance_attention_mask", "guidance_pixel_values")


class PrunedInfoMixin:
    """For what vLLM asks about a family, in front of its own class.

    Attributes:
        processor_class: ours.
    """

    processor_class: ClassVar[Any]
    ctx: Any
    get_hf_config: Any
    get_image_size_with_most_features: Any

    def get_hf_processor(self, **kwargs: object) -> Any:
        # Sentences belong to a request: else there would be a processor for each of them.
        kwargs.pop("expressions", None)
        processor = self.ctx.get_hf_processor(self.processor_class, **kwargs)
        source = getattr(self.get_hf_config(), "guidance_model", "")
        if self.needs_clip_tokens and processor.guidance_tokenizer is None and source:  # stock LLaVA
            processor.guidance_tokenizer = AutoTokenizer.from_pretrained(source)
        return processor

    @property
    def needs_clip_tokens(self) -> bool:
        """Whether sentences are in the tokens of a CLIP whatever the config says."""
        return False

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def num_placeholders(self, grid_thw: Any = None) -> int:
        """Of a picture; `grid_thw` (3,) are its patches, in families where its size decides."""
        config = self.get_hf_config()
        return num_placeholders(check_settings(config), image_grid(config, grid_thw))

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """An upper bound for a picture."""
        raise NotImplementedError


class PrunedProcessorMixin:
    """For a processor of vLLM's, in front of its own class: pictures, each with its sentences.

    Attributes:
        grid_field: what says how many patches a picture has, in families where its size decides.
    """

    grid_field: ClassVar[str | None] = None
    info: Any

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """As upstream, with the sentences made explicit before anything is hashed or looked up."""
        num_images = inputs.mm_data_items.get_all_counts().get("image", 0)
        if num_images:
            inputs = replace(inputs, prompt=self._with_beginning(inputs.prompt))
            kwargs = dict(inputs.hf_processor_mm_kwargs)
            expressions = kwargs.get("expressions") or self._question(inputs.prompt)
            kwargs["expressions"] = nest_expressions(expressions, num_images)
            inputs = replace(inputs, hf_processor_mm_kwargs=kwargs)
        return super().apply(inputs, timing_ctx)  # type: ignore[misc]

    def _with_beginning(self, prompt: list[int]) -> list[int]:
        """A prompt that starts as our processors start it: chat templates leave it to the tokenizer to put `<s>` in
        front, and vLLM asks it not to when it renders a chat."""
        beginning = self.info.get_tokenizer().encode("")
        return prompt if prompt[: len(beginning)] == beginning else [*beginning, *prompt]

    def _question(self, prompt: list[int]) -> str:
        """The last user turn of a prompt, as our processors read it from a text."""
        processor, tokenizer = self.info.get_hf_processor(), self.info.get_tokenizer()
        special = (*processor.media_tokens, *processor.turn_tokens, *tokenizer.all_special_tokens)
        text = tokenizer.decode(prompt)
        return last_user_text(text, processor.user_marker, processor.assistant_marker, *special) or "image"

    def _get_mm_hashes(self, inputs: Any) -> Any:
        # Settings are in the key, too: servers with other ones may share a store of keys and values.
        pruning = self.info.get_hf_config().pruning_config.to_dict()
        key = {"pruning_config": json.dumps(pruning, sort_keys=True), **inputs.hf_processor_mm_kwargs}
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=key))  # type: ignore[misc]

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> Mapping[str, object]:
        kwargs = dict(inputs.hf_processor_mm_kwargs)
        if "expressions" in kwargs:
            known = mm_is_cached.get("image", [])
            kwargs["expressions"] = [of for of, is_known in zip(kwargs["expressions"], known) if not is_known]
        return kwargs

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        fields = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))  # type: ignore[misc]
        fields |= {name: MultiModalFieldConfig.batched("image") for name in GUIDANCE_FIELDS}
        return {name: field for name, field in fields.items() if name in hf_inputs}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        placeholder = self.info.get_hf_config().image_token_id

        def replacement(item: int) -> list[int]:
            grid = None if self.grid_field is None else out_mm_kwargs["image"][item][self.grid_field].data
            return [placeholder] * self.info.num_placeholders(grid)

        return [PromptReplacement(modality="image", target=[placeholder], replacement=replacement)]
