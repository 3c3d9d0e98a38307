"""A stock decoder run layer by layer, so that visual tokens can leave on the way.

Its own layers, norm and rotary embedding are called. What is left of the prompt, its mask and its positions go into
the next layer, and the cache of each layer holds what that layer got.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from transformers_litelvlm.models.decoder_evidence import DecoderLayerEvidence, PromptEmbeddings, PromptInDecoder
from transformers_litelvlm.models.prompt_compaction import plan_compaction
from transformers_litelvlm.models.pruned_cache import PrunedPromptLayer, check_cache, replace_layer
from transformers_litelvlm.pruning.base import Selection
from transformers_litelvlm.pruning.layers import LayerPruner
from transformers_litelvlm.pruning.selection import one_hot


# Decoders whose layers are called as Llama's are, with the same rotary embedding.
DECODERS = ("llama", "mistral", "qwen2")


@dataclass
class DecoderOutput:
    """What came out of a decoder, at the full length L of the prompt: tokens that left have zeros.

    Attributes:
        last_hidden_state: (B, L, D) after the final norm.
        past_key_values: the cache, or `None`.
        hidden_states: what entered each layer and what came out in the end, (B, L, D) each, where asked for.
        image_hidden_states: (M * N, D), the visual tokens as they came, on a prompt with images.
        stages: for each layer that pruned, the tokens left of each image as `indices` (M, K') into its N, and
            `weights` (M, K', N) where some were merged.
    """

    last_hidden_state: torch.Tensor
    past_key_values: Any
    hidden_states: tuple[torch.Tensor, ...] | None
    stages: list[Selection]
    image_hidden_states: torch.Tensor | None = None


def check_decoder(language_model: PreTrainedModel) -> None:
    """Raises ValueError if methods inside the language model are not defined for this one."""
    config = language_model.config
    if config.model_type not in DECODERS or getattr(config, "sliding_window", None) is not None:
        raise ValueError(
            f"Pruning inside the language model is defined for {', '.join(DECODERS)} with full attention, this one is "
            f"a {config.model_type!r} (sliding_window={getattr(config, 'sliding_window', None)}). Choose a "
            "`pruning_method` that works before the language model."
        )


def prefill(
    language_model: PreTrainedModel,
    pruner: LayerPruner,
    budget: int,
    *,
    inputs_embeds: torch.Tensor,
    is_visual: torch.Tensor,
    num_images: int,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: DynamicCache | None = None,
    use_cache: bool | None = None,
    in_raster_order: bool = True,
    is_compact: bool = False,
    output_hidden_states: bool = False,
    num_visual: int,
    **kwargs: Any,
) -> DecoderOutput:
    """Run a prompt with images through a decoder while `pruner` takes visual tokens away.

    Args:
        inputs_embeds: (B, L, D) with the visual tokens in it.
        is_visual: (B, L) bool; `num_visual` (N) for each of `num_images` (M), in reading order.
        attention_mask: (B, L), 1 for real tokens.
        past_key_values: an empty cache to fill; made where it is `None` and `use_cache` is on.
        in_raster_order: of the tokens that stay, else as the method puts them.
        is_compact: renumber positions behind a layer that prunes, by mask; else they stay.
        kwargs: for the decoder layers.

    Raises:
        ValueError: for a decoder, a cache, a mask or a budget that this does not work with.
    """
    check_decoder(language_model)
    check_cache(past_key_values)
    layers, num_layers = language_model.layers, len(language_model.layers)
    counts = pruner.tokens_after(num_visual, budget, num_layers)
    use_cache = language_model.config.use_cache if use_cache is None else use_cache
    if use_cache and past_key_values is None:
        past_key_values = DynamicCache(config=language_model.config)
    prompt = _whole_prompt(inputs_embeds, is_visual, attention_mask, position_ids)
    embeddings = PromptEmbeddings(prompt, num_images, num_visual)
    stages, hidden_states = [_everything(embeddings.visual)], []
    mask, rotary = _mask_and_rotary(language_model, prompt.states, prompt.mask, prompt.positions, past_key_values, 0)
    for index, layer in enumerate(layers):
        hidden_states += [_at_full_length(prompt.states, prompt)] if output_hidden_states else []
        output = layer(
            prompt.states,
            attention_mask=mask,
            position_embeddings=rotary,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        if index not in counts:
            prompt = replace(prompt, states=output)
            continue
        evidence = DecoderLayerEvidence(
            layer, prompt, output, rotary, embeddings, stages[-1].indices.shape[1], layer=index, num_layers=num_layers
        )
        selection = pruner.select(evidence, budget)
        selection = selection.in_raster_order() if in_raster_order else selection
        prompt = _shorten(replace(prompt, states=output), selection, evidence, is_compact)
        stages.append(_in_unpruned_image(selection, stages[-1], num_visual))
        for later in range(index + 1, num_layers):
            kept = PrunedPromptLayer(prompt.mask, prompt.columns.shape[1], first=index + 1, is_compact=is_compact)
            replace_layer(past_key_values, later, kept)
        mask, rotary = _mask_and_rotary(
            language_model, prompt.states, prompt.mask, prompt.positions, past_key_values, index + 1
        )
    last = _at_full_length(language_model.norm(prompt.states), prompt)
    return DecoderOutput(last, past_key_values, (*hidden_states, last) if output_hidden_states else None, stages[1:])


def decode(
    language_model: PreTrainedModel,
    *,
    inputs_embeds: torch.Tensor,
    past_key_values: DynamicCache,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    use_cache: bool | None = None,
    output_hidden_states: bool = False,
    **kwargs: Any,
) -> DecoderOutput:
    """Run new tokens (B, q, D) through a decoder whose cache [`prefill`] filled; arguments as there.

    `attention_mask` and `position_ids` are those of the unpruned sequence, as upstream's `generate` counts it.
    """
    num_new = inputs_embeds.shape[1]
    if position_ids is None:
        position_ids = torch.arange(num_new, device=inputs_embeds.device) + past_key_values.get_seq_length()
        position_ids = position_ids.unsqueeze(0)
    states, hidden_states, first = inputs_embeds, [], None
    for index, layer in enumerate(language_model.layers):
        hidden_states += [states] if output_hidden_states else []
        held = past_key_values.layers[index]
        is_pruned = isinstance(held, PrunedPromptLayer)
        if index == 0 or (is_pruned and held.first != first):
            padding, positions = attention_mask, position_ids
            if is_pruned:
                first = held.first
                padding = held.attention_mask(attention_mask, num_new)
                positions = held.positions(padding, position_ids)
            mask, rotary = _mask_and_rotary(language_model, states, padding, positions, past_key_values, index)
        states = layer(
            states,
            attention_mask=mask,
            position_embeddings=rotary,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
    states = language_model.norm(states)
    return DecoderOutput(states, past_key_values, (*hidden_states, states) if output_hidden_states else None, [])


def _whole_prompt(
    inputs_embeds: torch.Tensor,
    is_visual: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> PromptInDecoder:
    if attention_mask is not None and attention_mask.shape != is_visual.shape:
        raise ValueError(
            "A method that prunes inside the language model needs an `attention_mask` of shape (batch, length), "
            f"{tuple(is_visual.shape)}, got {tuple(attention_mask.shape)}."
        )
    mask = None if attention_mask is None else attention_mask.bool()
    columns = torch.arange(is_visual.shape[1], device=is_visual.device).expand_as(is_visual)
    is_text = ~is_visual & (is_visual.cumsum(dim=1) > 0)
    return PromptInDecoder(
        states=inputs_embeds,
        mask=mask,
        positions=columns if position_ids is None else position_ids.expand_as(is_visual),
        columns=columns,
        full_length=is_visual.shape[1],
        is_visual=is_visual,
        is_text=is_text if mask is None else is_text & mask,
    )


def _shorten(
    prompt: PromptInDecoder, selection: Selection, evidence: DecoderLayerEvidence, is_compact: bool
) -> PromptInDecoder:
    """The prompt without the visual tokens that `selection` leaves out, padded again where rows differ."""
    states = prompt.states
    if selection.features is not None:
        # A merged token enters at the place of the token that stands for it.
        places = evidence.rows.gather(1, selection.indices), evidence.columns.gather(1, selection.indices)
        states = states.index_put(places, selection.features.to(states.dtype))
    num_images, num_visual = evidence.columns.shape
    mask = None if prompt.mask is None else prompt.mask.long()
    plan = plan_compaction(prompt.is_visual, selection.indices, [num_visual] * num_images, mask)
    mask = plan.attention_mask(mask)
    mask = None if mask is None else mask.bool()
    positions = plan.apply(prompt.positions, 0)
    if is_compact:
        is_real = plan.is_real if mask is None else mask
        positions = (is_real.long().cumsum(dim=1) - 1).clamp(min=0)
    return PromptInDecoder(
        states=plan.apply_to_embeddings(states),
        mask=mask,
        positions=positions,
        columns=plan.apply(prompt.columns, prompt.full_length),
        full_length=prompt.full_length,
        is_visual=plan.apply(prompt.is_visual, False),
        is_text=plan.apply(prompt.is_text, False),
    )


def _everything(visual: torch.Tensor) -> Selection:
    return Selection(torch.arange(visual.shape[1], device=visual.device).expand(len(visual), -1))


def _in_unpruned_image(selection: Selection, previous: Selection, num_visual: int) -> Selection:
    """A selection among the tokens of an earlier one, in terms of the N tokens that the image had."""
    weights = None
    if selection.weights is not None or previous.weights is not None:
        own, before = selection.weights, previous.weights
        own = one_hot(selection.indices, previous.indices.shape[1]) if own is None else own
        weights = own @ (one_hot(previous.indices, num_visual) if before is None else before)
    return Selection(previous.indices.gather(1, selection.indices), weights=weights)


def _at_full_length(states: torch.Tensor, prompt: PromptInDecoder) -> torch.Tensor:
    """States (B, L', D) of what is left at their columns of the whole prompt, (B, L, D)."""
    full = states.new_zeros(len(states), prompt.full_length + 1, states.shape[-1])  # the last for what has no column
    columns = prompt.columns.to(states.device).unsqueeze(-1).expand_as(states)
    return full.scatter(1, columns, states)[:, :-1]


def _mask_and_rotary(
    language_model: PreTrainedModel,
    states: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor,
    cache: DynamicCache | None,
    layer: int,
) -> tuple[Any, tuple[torch.Tensor, torch.Tensor]]:
    """The attention mask in the form that the attention kernel takes, and the rotary embedding of `positions`."""
    # Positions stay out of it: upstream takes gaps in them for several sequences packed into one row.
    causal = create_causal_mask(
        config=language_model.config,
        inputs_embeds=states,
        attention_mask=mask,
        past_key_values=cache,
        layer_idx=layer,
    )
    return causal, language_model.rotary_emb(states, position_ids=positions)
