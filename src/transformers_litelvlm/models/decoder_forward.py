"""The language model's part of `forward` where a method prunes inside it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from transformers_litelvlm.models.decoder_pruning import DecoderOutput, decode, prefill
from transformers_litelvlm.models.pruned_cache import check_cache, holds_pruned_prompt


def forward_in_decoder(
    model: PreTrainedModel, inputs: dict[str, Any], past_key_values: Cache | None, **kwargs: Any
) -> DecoderOutput | None:
    """Run `model.language_model` on a prompt that is pruned inside it, or on what comes after such a prompt.

    Args:
        model: a base model like [`~transformers.LlavaModel`], with `config.pruning_config`.
        inputs: `model_inputs` of [`PrunedInputs`].
        kwargs: as for the language model.

    Returns:
        Its output, or `None` where upstream's `forward` does all there is to do.

    Raises:
        ValueError: for a cache, a mask, a decoder or a budget that the method cannot work with.
    """
    encoded = (inputs["mm_encoder_outputs"] or {}).get("image")
    pruning, is_later = model.config.pruning_config, holds_pruned_prompt(past_key_values)
    if encoded is None and not is_later:
        return None
    pruner = pruning.build_pruner()
    budget = None if encoded is None else pruning.resolve(len(encoded.pooler_output[0]))
    if not is_later and (budget is None or not pruner.is_inside_language_model):
        return None
    kwargs.pop("return_dict", None)
    if kwargs.pop("output_attentions", None):
        raise ValueError("`output_attentions` is not available where a method prunes inside the language model.")
    kwargs.update(
        {name: inputs[name] for name in ("attention_mask", "position_ids")},
        past_key_values=past_key_values,
        output_hidden_states=bool(kwargs.get("output_hidden_states")),
    )
    embeds = inputs["inputs_embeds"]
    embeds = model.get_input_embeddings()(inputs["input_ids"]) if embeds is None else embeds
    if encoded is None:
        return decode(model.language_model, inputs_embeds=embeds, **kwargs)
    check_cache(past_key_values)
    features = torch.cat(list(encoded.pooler_output)).to(embeds.device, embeds.dtype)
    is_visual = model.get_placeholder_mask(inputs["input_ids"], inputs_embeds=embeds, image_features=features)
    output = prefill(
        model.language_model,
        pruner,
        budget,
        inputs_embeds=embeds.masked_scatter(is_visual, features),
        is_visual=is_visual[..., 0],
        num_images=len(encoded.pooler_output),
        num_visual=len(encoded.pooler_output[0]),
        in_raster_order=pruning.resolved_token_order == "raster",
        is_compact=pruning.resolved_position_ids == "compact",
        **kwargs,
    )
    output.image_hidden_states = features
    return output
