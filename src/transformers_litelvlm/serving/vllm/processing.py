"""From a request to pixels, sentences and placeholders; and the keys of everything that vLLM keeps of it.

vLLM keeps what it processed, what the tower gave, and blocks of keys and values, all by one hash of a picture, and of
the keywords of its processor. Here the kept tokens depend on the sentence and on the settings, so both are keywords.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from transformers import AutoTokenizer
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder as PictureDummyInputs
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.guidance.encoded import Grid
from transformers_litelvlm.models.processing.sentences import last_user_text, nest_expressions
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.serving.vllm.requested import as_key, is_setting, of_key, pack, requested
from transformers_litelvlm.serving.vllm.servable import check_positions, check_settings, image_grid, num_placeholders


__all__ = ["PictureDummyInputs", "PrunedInfoMixin", "PrunedProcessorMixin"]

GUIDANCE_FIELDS = ("guidance_input_ids", "guidance_attention_mask", "guidance_pixel_values")


class PrunedInfoMixin:
    """For what vLLM asks about a family, in front of its own class.

    Attributes:
        processor_class: ours.
        needs_clip_tokens: whether sentences are in the tokens of a CLIP whatever the config says.
        request_keywords: what a request may say besides pruning settings.
    """

    processor_class: ClassVar[Any]
    needs_clip_tokens: ClassVar[bool] = False
    request_keywords: ClassVar[tuple[str, ...]] = ("expressions",)
    ctx: Any
    get_hf_config: Any
    get_image_size_with_most_features: Any

    def get_hf_processor(self, **kwargs: object) -> Any:
        # What belongs to a request: else there would be a processor for each.
        kwargs = {name: value for name, value in kwargs.items() if name not in ("expressions", "pruning")}
        processor = self.ctx.get_hf_processor(self.processor_class, **kwargs)
        source = getattr(self.get_hf_config(), "guidance_model", "")
        if self.needs_clip_tokens and processor.guidance_tokenizer is None and source:  # stock LLaVA
            processor.guidance_tokenizer = AutoTokenizer.from_pretrained(source)
        return processor

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def largest_grid(self) -> Grid:
        """Of the visual tokens of a picture before pruning."""
        return image_grid(self.get_hf_config())

    def max_placeholders(self) -> int:
        """Of a picture; vLLM makes place for so many."""
        return num_placeholders(check_settings(self.get_hf_config()), self.largest_grid())

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": self.max_placeholders()}

    def num_placeholders(self, pruning: PruningConfig, grid_thw: Any = None) -> int:
        """Of a picture, with the settings of the request; `grid_thw` is as for [`image_grid`]. Raises ValueError if
        they are more than vLLM has made place for."""
        config = self.get_hf_config()
        found = num_placeholders(PruningSettings.of(config, pruning), image_grid(config, grid_thw))
        if found > (most := self.max_placeholders()):
            raise ValueError(
                f"With these settings, {found} visual tokens of a picture are kept, and the server was started for at "
                f"most {most}: ask for fewer, or start the server with a larger budget."
            )
        return found


class PrunedProcessorMixin:
    """For a processor of vLLM's, in front of its own class: pictures, each with its sentences.

    Attributes:
        grid_field: what says how many patches a picture has, in families where its size decides.
    """

    grid_field: ClassVar[str | None] = None
    info: Any

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """As upstream, with sentences and pruning settings made explicit before anything is hashed or looked up."""
        num_images = inputs.mm_data_items.get_all_counts().get("image", 0)
        if num_images:
            inputs = replace(inputs, prompt=self._with_beginning(inputs.prompt))
            config = self.info.get_hf_config()
            if (found := inputs.prompt.count(config.image_token_id)) != num_images:
                raise ValueError(
                    f"The prompt needs one image token for each picture, and has {found} for {num_images} pictures."
                )
            kwargs = {k: v for k, v in inputs.hf_processor_mm_kwargs.items() if not is_setting(k)}
            if unknown := sorted(set(kwargs).difference(self.info.request_keywords)):
                names = ", ".join(self.info.request_keywords)
                raise ValueError(f"Unknown {unknown[0]!r} in `mm_processor_kwargs`: there are {names} and settings.")
            expressions = kwargs.get("expressions") or self._question(inputs.prompt)
            kwargs["expressions"] = nest_expressions(expressions, num_images)
            settings = {k: v for k, v in inputs.hf_processor_mm_kwargs.items() if is_setting(k)}
            # All of them: servers with other ones may share a store of keys and values.
            pruning = requested(config, settings)
            longest = self.info.ctx.model_config.max_model_len
            check_positions(config, PruningSettings.of(config, pruning), num_images, longest)
            kwargs["pruning"] = as_key(pruning)
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

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> Mapping[str, object]:
        kwargs = dict(inputs.hf_processor_mm_kwargs)
        if "expressions" in kwargs:
            known = mm_is_cached.get("image", [])
            kwargs["expressions"] = [of for of, is_known in zip(kwargs["expressions"], known) if not is_known]
        return kwargs

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, Any]) -> Any:
        """As upstream, and the settings go along with the pictures. What our processor says of a bad picture or
        sentence is raised as it is."""
        kwargs = dict(hf_kwargs)
        pruning = pack(kwargs.pop("pruning"))
        try:
            processed = super()._call_hf_processor(hf_data, kwargs)  # type: ignore[misc]
        except ValueError as error:
            raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from None
        processed["pruning"] = pruning
        return processed

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        fields = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))  # type: ignore[misc]
        fields |= {name: MultiModalFieldConfig.batched("image") for name in GUIDANCE_FIELDS}
        # Of all pictures of a request. vLLM encodes together what has the same value here.
        num_images = len(hf_processor_mm_kwargs["expressions"])  # type: ignore[arg-type]
        fields["pruning"] = MultiModalFieldConfig.shared("image", num_images, keep_on_cpu=True)
        return {name: field for name, field in fields.items() if name in hf_inputs}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        placeholder = self.info.get_hf_config().image_token_id
        pruning = of_key(hf_processor_mm_kwargs["pruning"])  # type: ignore[arg-type]

        def replacement(item: int) -> list[int]:
            grid = None if self.grid_field is None else out_mm_kwargs["image"][item][self.grid_field].data
            return [placeholder] * self.info.num_placeholders(pruning, grid)

        return [PromptReplacement(modality="image", target=[placeholder], replacement=replacement)]
