"""`generate` for models that shorten their prompt: encode and prune once, decode, give the full prompt back."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from transformers import GenerationConfig

from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.models.prompt.pruned_prompt import PIXELS, PrunedInputs, prune_inputs


class PrunedGenerationMixin:
    """Overrides `generate` of a [`~transformers.GenerationMixin`] whose base model prunes visual tokens.

    Attributes:
        _prompt_arguments: arguments of `generate` that [`prune_inputs`] reads and replaces.
        _encoder_arguments: further arguments of `get_image_features` and `get_video_features`.
    """

    _prompt_arguments: ClassVar[tuple[str, ...]] = (
        "attention_mask",
        "position_ids",
        "pixel_values",
        "inputs_embeds",
        "mm_encoder_outputs",
    )
    _encoder_arguments: ClassVar[tuple[str, ...]] = (
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "image_sizes",
        "guidance_input_ids",
        "guidance_attention_mask",
    )

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any):
        """As upstream's `generate`; see there for the arguments.

        Images are encoded and pruned once, and decoding runs on the shortened prompt. The result is that of upstream:
        sequences start with the prompt as it was given, so `out[:, input_ids.shape[1]:]` are the new tokens, and
        `max_length` counts that prompt in full.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        prompt = {name: kwargs.pop(name, None) for name in self._prompt_arguments}
        encoder_kwargs = {name: kwargs.pop(name, None) for name in self._encoder_arguments}
        self._refuse_a_second_turn(input_ids, prompt, kwargs.get("cache"))
        pruned = self._prune_for_generation(input_ids, prompt, encoder_kwargs)
        given = {name: value for name, value in pruned.model_inputs.items() if value is not None}
        self._refuse_guesses(given, kwargs)
        if pruned.plan is None or input_ids is None:
            return super().generate(**given, **kwargs)

        removed = input_ids.shape[1] - given["input_ids"].shape[1]
        result = super().generate(**given, **_shorten_limits(kwargs, removed))
        return _with_full_prompt(result, input_ids, given["input_ids"].shape[1])

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As upstream. Without a cache, a mask stays even where it masks nothing.

        `generate` drops such a mask, and without mask and cache gaps in the positions mean packed sequences.
        """
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        positions = inputs.get("position_ids")
        has_neither = inputs.get("attention_mask") is None and inputs.get("cache") is None
        if has_neither and positions is not None and self.config.pruning_config.is_on:
            inputs["attention_mask"] = torch.ones_like(positions if positions.ndim == 2 else positions[0])
        return inputs

    def _refuse_a_second_turn(self, input_ids: torch.Tensor | None, prompt: dict[str, Any], cache: Any) -> None:
        """A cache that holds a pruned prompt does not fit the full one. Raises ValueError."""
        if cache is None or not self.config.pruning_config.is_on or cache.get_seq_length() == 0:
            return
        encoded = (prompt["mm_encoder_outputs"] or {}).values()
        if any(not isinstance(output, PrunedImageFeatures) for output in encoded):
            return  # a prompt that was shortened before, as in assisted decoding
        placeholders = [getattr(self.config, f"{name}_token_id", self.config.image_token_id) for name in PIXELS]
        if input_ids is not None and any((input_ids == token).any() for token in placeholders):
            raise ValueError(
                "`cache` already holds tokens of a pruned prompt. Which visual tokens were kept depends on "
                "the question they were kept for, so a new turn needs a new cache: call `generate` without "
                "`cache`, or switch pruning off (`model.config.pruning_budget = None`)."
            )

    def _refuse_guesses(self, given: dict[str, Any], kwargs: dict[str, Any]) -> None:
        """Assisted decoding puts guesses behind the prompt, and methods inside the language model would read them.
        Raises ValueError."""
        pruning = self.config.pruning_config
        if not given.get("mm_encoder_outputs") or not pruning.is_on:
            return
        config = kwargs.get("generation_config") or self.generation_config
        guesses = [
            name
            for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
            if kwargs.get(name, getattr(config, name, None)) is not None
        ]
        if guesses and pruning.build_pruner().is_inside_language_model:
            raise ValueError(
                f"`{guesses[0]}` puts guessed tokens behind the prompt, and the method {pruning.method!r}, inside the "
                "language model, would choose by them. Leave it out, or choose a `pruning_method` that works before "
                "the language model."
            )

    def _prune_for_generation(
        self, input_ids: torch.Tensor | None, prompt: dict[str, Any], encoder_kwargs: dict[str, Any]
    ) -> PrunedInputs:
        def full_positions() -> torch.Tensor:
            """Upstream's own positions of the full prompt, which respect left padding."""
            given = {name: value for name, value in {**prompt, **encoder_kwargs}.items() if value is not None}
            given.setdefault("attention_mask", torch.ones_like(input_ids))
            return self._prepare_position_ids_for_generation(input_ids, given)

        return self._prune(
            input_ids=input_ids,
            prompt=prompt,
            encoder_kwargs=encoder_kwargs,
            full_positions=None if input_ids is None else full_positions,
        )

    def _prune(self, *, prompt: dict[str, Any], encoder_kwargs: dict[str, Any], **kwargs: Any) -> PrunedInputs:
        return prune_inputs(self.base_model, **prompt, image_kwargs=encoder_kwargs, **kwargs)


def _shorten_limits(kwargs: dict[str, Any], removed: int) -> dict[str, Any]:
    """Length limits count the prompt: take the `removed` placeholders off those that the caller set."""
    kwargs = dict(kwargs)
    config = kwargs.get("generation_config")
    if isinstance(config, GenerationConfig):
        kwargs["generation_config"] = config = copy.deepcopy(config)
        for name in ("max_length", "min_length"):
            if getattr(config, name) is not None:
                setattr(config, name, max(getattr(config, name) - removed, 0))
    for name in ("max_length", "min_length"):
        if kwargs.get(name) is not None:
            kwargs[name] = max(kwargs[name] - removed, 0)
    return kwargs


def _with_full_prompt(result: Any, input_ids: torch.Tensor, short_length: int) -> Any:
    """Put the prompt (B, L) in front of what was generated, for every returned sequence of a row."""
    sequences = result if isinstance(result, torch.Tensor) else result.sequences
    prompt = input_ids.repeat_interleave(sequences.shape[0] // input_ids.shape[0], dim=0)
    sequences = torch.cat((prompt.to(sequences.device), sequences[:, short_length:]), dim=1)
    if isinstance(result, torch.Tensor):
        return sequences
    result.sequences = sequences
    return result
