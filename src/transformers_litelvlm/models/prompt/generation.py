"""`generate` for models that shorten their prompt: encode and prune once, decode, give the full prompt back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.decoder.cache import shortened_prompts
from transformers_litelvlm.models.decoder.forward import kept_in_decoder
from transformers_litelvlm.models.decoder.image_groups import Stage
from transformers_litelvlm.models.outputs import PrunedGenerateBeamOutput, PrunedGenerateOutput, PrunedImageFeatures
from transformers_litelvlm.models.prompt.full_prompt import (
    RUNNING,
    CriteriaOnFullPrompt,
    FullPrompt,
    ProcessorsOnFullPrompt,
    StreamerOnFullPrompt,
    current_full_prompt,
    showing,
)
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedPrompt, placeholder_mask, prune_prompt
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.models.upstream import (
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
    takes_old_cache_name,
)


OUTPUTS = {
    GenerateDecoderOnlyOutput: PrunedGenerateOutput,
    GenerateBeamDecoderOnlyOutput: PrunedGenerateBeamOutput,
}


class PrunedGenerationMixin:
    """Overrides `generate` of a [`~transformers.GenerationMixin`] whose base model has the contract of a family."""

    model: Any
    config: Any
    generation_config: GenerationConfig

    @torch.no_grad()
    @takes_old_cache_name
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        pruning_config: PruningConfig | PruningSettings | dict | None = None,
        **kwargs: Any,
    ):
        """As upstream's `generate`; see there for the arguments.

        Images are encoded and pruned once, and decoding runs on the shortened prompt. The result is that of upstream:
        sequences start with the prompt as it was given, so `out[:, input_ids.shape[1]:]` are the new tokens; logits
        processors, stopping criteria and streamers see that prompt, and `max_length` counts it in full.
        `hidden_states` and `attentions` of the first step have the columns of what entered the language model.

        Args:
            pruning_config: pruning settings of this call alone; a dict changes the fields that it has.

        Returns:
            As upstream; with `return_dict_in_generate=True` a [`PrunedGenerateOutput`] or, of a beam search, a
            [`PrunedGenerateBeamOutput`], which say what was kept: `retained_indices`, `image_outputs`.
        """
        base = self.model
        if isinstance(pruning_config, dict):  # once, not in every step
            pruning_config = self.config.pruning_config.changed_by(pruning_config)
        pruning = self.config.pruning_config if pruning_config is None else pruning_config
        settings = base.settings(pruning)
        if inputs is not None and kwargs.get("input_ids") is not None:
            raise ValueError("`inputs` and `input_ids` are two prompts: pass one of them.")
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        names = [*base.prompt_arguments, *base.guidance_arguments]
        arguments = {name: kwargs.pop(name, None) for name in names}
        arguments = {name: value for name, value in arguments.items() if value is not None}
        if input_ids is not None:
            arguments["input_ids"] = input_ids
        if kwargs.get("cache") is not None:
            shortened_prompts(kwargs["cache"])  # forgets what was reset, which no step has to find out
        self._check_second_turn(arguments, settings, kwargs.get("cache"))
        prompt = prune_prompt(base, arguments, settings, positions=lambda: self._full_positions(arguments))
        given = {name: value for name, value in prompt.plain_inputs().items() if value is not None}
        self._refuse_moved_beginning(prompt, kwargs.get("cache"))
        is_inside = settings.inside_language_model is not None and prompt.encoded
        if is_inside:
            self._refuse_other_prompts(settings, kwargs)
        if is_inside or pruning_config is not None:
            kwargs["pruning_config"] = pruning  # the first step prunes, or does not
        full = None
        if prompt.plan is not None:
            full = FullPrompt(input_ids, prompt.plan.index.shape[1], prompt.plan.num_left_out)
            if kwargs.get("streamer") is not None:
                kwargs["streamer"] = StreamerOnFullPrompt(kwargs["streamer"], full)
        with showing(full) as call:  # also inside another call, as of assisted decoding
            result = super().generate(*args, **given, **kwargs)
        is_tensor = isinstance(result, torch.Tensor)
        filled = kwargs.get("cache") if is_tensor else result.get("cache")
        if prompt.plan is not None and filled is not None:
            prompt.note_in(filled, 0, base.counts_positions, is_numbered=True)
        if is_tensor:
            return result if full is None else full.restore(result)
        if full is not None:
            result.sequences = full.restore(result.sequences)
        if type(result) not in OUTPUTS:
            return result
        kept = {modality: prompt.kept(modality) for modality in base.modalities}
        if is_inside and call.first_media is not None:
            for modality, encoded in prompt.encoded.items():
                counts = partial(_num_placeholders, base, modality, arguments)
                kept[modality] = _of_passed_media(call.first_media[f"{modality}_outputs"], encoded, prompt, counts)
        return OUTPUTS[type(result)](**result, **{f"{modality}_outputs": of for modality, of in kept.items()})

    def _update_model_kwargs_for_generation(self, outputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As upstream. Methods inside the language model say in the first step what they kept."""
        call = RUNNING.get()
        if call is not None and call.first_media is None:  # not its states, which are large
            call.first_media = {name: getattr(outputs, name, None) for name in ("image_outputs", "video_outputs")}
        return super()._update_model_kwargs_for_generation(outputs, *args, **kwargs)

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """As upstream, which leaves out what it encodes media with: `forward` needs the pruning settings, too."""
        pruning = {name: model_kwargs[name] for name in ("pruning_config",) if name in model_kwargs}
        return {**super()._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs), **pruning}

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As upstream. Without a cache, a mask stays even if it masks nothing.

        `generate` drops such a mask, and without mask and cache gaps in the positions mean packed sequences.
        `generate` also looks for `inputs_embeds` in the signature.
        """
        inputs = super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        positions = inputs.get("position_ids")
        has_neither = inputs.get("attention_mask") is None and inputs.get("cache") is None
        if has_neither and positions is not None and current_full_prompt() is not None:
            inputs["attention_mask"] = torch.ones_like(positions if positions.ndim == 2 else positions[0])
        return inputs

    def _prepare_generated_length(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any):
        """Limits are those of the full prompt; upstream's loops count the shortened one."""
        prompt = current_full_prompt()
        if prompt is None:
            return super()._prepare_generated_length(generation_config, *args, **kwargs)
        # Of embeddings, only the length is read, and sequences have the new tokens alone.
        kwargs["inputs_tensor"] = kwargs["inputs_tensor"].new_empty((1, prompt.short_length + prompt.num_removed))
        if prompt.input_ids is None:
            return super()._prepare_generated_length(generation_config, *args, **kwargs)
        kwargs["input_ids_length"] += prompt.num_removed
        config = super()._prepare_generated_length(generation_config, *args, **kwargs)
        return _with_lengths(config, -prompt.num_removed)

    def _validate_generated_length(
        self, generation_config: GenerationConfig, input_ids_length: int, *args: Any, **kwargs: Any
    ):
        prompt = current_full_prompt()
        if prompt is not None and prompt.input_ids is not None:  # messages name the numbers of the full prompt
            generation_config = _with_lengths(generation_config, prompt.num_removed)
            input_ids_length += prompt.num_removed
        super()._validate_generated_length(generation_config, input_ids_length, *args, **kwargs)

    def _get_logits_processor(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any):
        prompt = current_full_prompt()
        if prompt is None or prompt.input_ids is None:
            return super()._get_logits_processor(generation_config, *args, **kwargs)
        config = _with_lengths(generation_config, prompt.num_removed)
        kwargs["input_ids_seq_length"] += prompt.num_removed
        kwargs["encoder_input_ids"] = prompt.input_ids
        return ProcessorsOnFullPrompt(super()._get_logits_processor(config, *args, **kwargs), prompt)

    def _get_stopping_criteria(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any):
        prompt = current_full_prompt()
        if prompt is None or prompt.input_ids is None:
            return super()._get_stopping_criteria(generation_config, *args, **kwargs)
        config = _with_lengths(generation_config, prompt.num_removed)
        return CriteriaOnFullPrompt(super()._get_stopping_criteria(config, *args, **kwargs), prompt)

    def _full_positions(self, arguments: dict[str, Any]) -> torch.Tensor:
        """Upstream's own positions of the full prompt, which respect left padding."""
        name = "input_ids" if "input_ids" in arguments else "inputs_embeds"
        shape, device = arguments[name].shape[:2], arguments[name].device
        given = {"attention_mask": torch.ones(shape, dtype=torch.long, device=device), **arguments}
        return self._prepare_position_ids_for_generation(given.pop(name), given)

    def _check_second_turn(self, arguments: dict[str, Any], settings: PruningSettings, cache: Any) -> None:
        """A cache with visual tokens in it may hold a pruned prompt, which does not fit the full one; new tokens
        alone get their positions. Raises ValueError."""
        if cache is None or cache.get_seq_length() == 0:
            return
        encoded = (arguments.get("mm_encoder_outputs") or {}).values()
        was_short = any(not isinstance(output, PrunedImageFeatures) for output in encoded)  # as in assisted decoding
        prompts = shortened_prompts(cache)
        if not prompts and (was_short or not settings.is_on):
            return
        placeholders = [getattr(self.config, f"{modality}_token_id") for modality in self.model.modalities]
        ids, length = arguments.get("input_ids"), cache.get_seq_length()
        if ids is not None and any((ids[:, :length] == token).any() for token in placeholders):
            raise ValueError(
                f"`cache` holds {length} tokens, and the first {length} of `input_ids` have an image or a video among "
                "them. Which visual tokens are kept depends on the question, so a new turn needs a new cache: call "
                "`generate` without `cache`, or switch pruning off (`model.config.pruning_budget = None`) from the "
                "first turn on."
            )
        if prompts and (ids is None or arguments.get("attention_mask") is None):
            raise ValueError(
                f"`cache` holds {length} tokens of a prompt that pruning shortened. Call `generate` without it, or "
                "with the `input_ids` of new tokens alone and an `attention_mask` over the tokens in it and these."
            )
        if prompts:
            self.model._continue_after(arguments, cache)

    def _refuse_moved_beginning(self, prompt: PrunedPrompt, cache: Any) -> None:
        """Rows that get shorter by different numbers are padded again, and the beginning that `cache` holds moves.
        Raises ValueError."""
        length = 0 if cache is None or prompt.plan is None else cache.get_seq_length()
        columns = torch.arange(length, device=prompt.plan.index.device) if length else None
        if length and not (prompt.plan.is_real[:, :length] & (prompt.plan.index[:, :length] == columns)).all():
            raise ValueError(
                f"`cache` holds {length} tokens, and pruning moves them: rows of the batch are padded, or have images "
                "of different sizes or number. Call `generate` for one row at a time, or without `cache`."
            )

    def _refuse_other_prompts(self, settings: PruningSettings, kwargs: dict[str, Any]) -> None:
        """Assisted decoding puts guesses after the prompt, and chunks are part of one; methods inside the language
        model would choose by what they get. Raises ValueError."""
        config = kwargs.get("generation_config") or self.generation_config
        for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "prefill_chunk_size"):
            if kwargs.get(name, getattr(config, name, None)) is not None:
                what = "divides the prompt" if name == "prefill_chunk_size" else "puts guessed tokens after the prompt"
                raise ValueError(
                    f"`{name}` {what}, and the method {settings.inside_language_model.name!r}, inside the language "
                    "model, chooses by the prompt as a whole. Leave it out, or choose a `pruning_method` that works "
                    "before the language model."
                )


def _with_lengths(config: GenerationConfig, change: int) -> GenerationConfig:
    """A copy whose length limits count so many tokens more."""
    config = copy.copy(config)
    for name in ("max_length", "min_length"):
        if getattr(config, name) is not None:
            setattr(config, name, getattr(config, name) + change)
    return config


def _num_placeholders(base: Any, modality: str, arguments: dict[str, Any]) -> list[int]:
    return placeholder_mask(base, modality, arguments).sum(1).tolist()


def _of_passed_media(
    kept: Any, encoded: Any, prompt: PrunedPrompt, placeholders: Callable[[], list[int]]
) -> PrunedImageFeatures | None:
    """What a method inside the language model kept, for each image (video) that was passed.

    Args:
        kept: of the first step. The language model saw the images of a row again for each of its beams or samples, and
            counts the tokens that entered it.
        encoded: features of what was passed.
        placeholders: of each row of the prompt as it was passed, if they have to be known.
    """
    if not isinstance(kept, PrunedImageFeatures):
        return encoded if isinstance(encoded, PrunedImageFeatures) else None
    entered = [len(tokens) for tokens in encoded.pooler_output]
    repeats = len(kept.num_visual_tokens) // len(entered)
    stages = [Stage(indices) for indices in kept.retained_stages[:-1]]
    stages.append(Stage(kept.retained_indices, kept.merge_weights))
    if repeats > 1:
        is_short = prompt.plan is not None and isinstance(encoded, PrunedImageFeatures)
        sizes = encoded.num_visual_tokens if is_short else entered
        places: list[int] = []
        for count in placeholders():
            first = len(places)
            while count > 0:
                count -= sizes[len(places)]
                places.append(repeats * first + len(places) - first)
        stages = [stage.of_images(places) for stage in stages]
    return kept_in_decoder(stages, encoded, entered)
