"""A stock decoder run layer by layer, so that visual tokens can leave on the way.

Its own layers, norm and rotary embedding are called. What is left of the prompt, its mask and its positions go into
the next layer, and the cache of each layer holds what that layer got.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from transformers import DynamicCache, PreTrainedModel

from transformers_litelvlm.models.decoder.cache import (
    PrunedPromptLayer,
    check_cache,
    positions_left_out,
    replace_layer,
    shorten_layer,
)
from transformers_litelvlm.models.decoder.evidence import DecoderLayerEvidence, LayerAttention, PromptInDecoder
from transformers_litelvlm.models.decoder.hidden_states import HiddenStates, at_full_length
from transformers_litelvlm.models.decoder.image_groups import ImageGroup, Stage, stage_of
from transformers_litelvlm.models.prompt.compaction import (
    CompactionPlan,
    PromptCounts,
    plan_compaction,
    text_after_images,
)
from transformers_litelvlm.models.prompt.embedding import takes_whole_mask
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.models.upstream import create_causal_mask
from transformers_litelvlm.pruning.layers import LayerPruner
from transformers_litelvlm.pruning.selection import merge_tokens


# Decoders whose layers are called as Llama's are, and turn queries and keys as Llama does (Qwen3's after a norm).
DECODERS = ("llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text")


@dataclass
class DecoderOutput:
    """What came out of a decoder, at the full length L of the prompt: tokens that left have zeros.

    Attributes:
        last_hidden_state: (B, L, D) after the final norm.
        cache: the cache, or `None`.
        hidden_states: what entered each layer and what came out in the end, (B, L, D) each, if asked for.
        stages: for each layer that pruned, what is left of the images, in reading order.
    """

    last_hidden_state: torch.Tensor
    cache: DynamicCache | None
    hidden_states: tuple[torch.Tensor | None, ...] | None
    stages: list[Stage]


def check_decoder(language_model: PreTrainedModel) -> None:
    """Raises ValueError if methods inside the language model are not defined for this one."""
    config = language_model.config
    if config.model_type not in DECODERS or getattr(config, "sliding_window", None) is not None:
        raise ValueError(
            f"Pruning inside the language model is defined for {', '.join(DECODERS)} with full attention, this one is "
            f"a {config.model_type!r} (sliding_window={getattr(config, 'sliding_window', None)}). Choose a "
            "`pruning_method` that works before the language model."
        )


def recomputes_layers(language_model: PreTrainedModel) -> bool:
    """Whether its layers will run again for the backward pass, so that upstream gives them no cache."""
    return language_model.training and torch.is_grad_enabled() and language_model.is_activation_checkpointing


def prefill(
    language_model: PreTrainedModel,
    settings: PruningSettings,
    prompt: PromptInDecoder,
    budgets: Sequence[int],
    *,
    cache: DynamicCache | None = None,
    use_cache: bool | None = None,
    output_hidden_states: bool | int | list[int] = False,
    **kwargs: Any,
) -> DecoderOutput:
    """Run a prompt with images through a decoder while a method takes visual tokens away.

    Args:
        settings: the method, the order of the tokens that it leaves, and whether positions are renumbered after it.
        prompt: of [`whole_prompt`].
        budgets: K_i for each of M images, in reading order; an image of no more tokens is kept whole.
        cache: an empty cache to fill; made if it is `None` and `use_cache` is on.
        output_hidden_states: all, or those of some indices, as upstream.
        kwargs: for the decoder layers.

    Raises:
        ValueError: for a decoder, a cache or a budget that this does not work with.
    """
    check_decoder(language_model)
    check_cache(cache)
    pruner = cast(LayerPruner, settings.pruner)
    num_text, num_layers = prompt.longest_text(), len(language_model.layers)
    groups = ImageGroup.of_prompt(prompt, num_text, budgets, pruner, num_layers)
    use_cache = language_model.config.use_cache if use_cache is None else use_cache
    if recomputes_layers(language_model):
        cache, use_cache = None, False  # as upstream: layers that run again would write twice
    if use_cache and cache is None:
        cache = DynamicCache(config=language_model.config)
    hidden_states, stages = HiddenStates(language_model, output_hidden_states), []
    num_real = None if settings.keeps_positions else _num_real(prompt)
    mask, rotary = _mask_and_rotary_of(language_model, prompt, cache, 0)
    for index, layer in enumerate(language_model.layers):
        hidden_states.add(prompt.states, prompt)  # as upstream, without what DeepStack adds
        prompt = prompt.with_deepstack() if index else prompt
        output = layer(
            prompt.states, attention_mask=mask, position_embeddings=rotary, cache=cache, use_cache=use_cache, **kwargs
        )
        attention = LayerAttention(language_model, index, prompt, rotary, num_text)
        prompt = replace(prompt, states=output)
        if not any(index in group.tokens_after for group in groups):
            continue
        prompt, plan = _prune(settings, groups, prompt, attention)
        stages.append(stage_of(groups))
        if pruner.prunes_earlier_caches:
            for earlier in range(1, index + 1):
                shorten_layer(cache, earlier, plan.index, prompt.mask)
        is_compact = None if num_real is None else _num_real(prompt) < num_real
        for later in range(index + 1, num_layers):
            kept = PrunedPromptLayer(prompt.mask, prompt.columns.shape[1], first=index + 1, is_compact=is_compact)
            replace_layer(cache, later, kept)
        mask, rotary = _mask_and_rotary_of(language_model, prompt, cache, index + 1)
    whole = prompt.with_deepstack()
    normalised = at_full_length(language_model.norm(whole.states), whole)
    states = hidden_states.result(prompt.states, normalised, prompt)
    return DecoderOutput(normalised, cache, states, stages)


def decode(
    language_model: PreTrainedModel,
    *,
    inputs_embeds: torch.Tensor,
    cache: DynamicCache,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    use_cache: bool | None = None,
    output_hidden_states: bool | int | list[int] = False,
    **kwargs: Any,
) -> DecoderOutput:
    """Run new tokens (B, q, D) through a decoder whose cache [`prefill`] filled; arguments as there.

    `attention_mask` and `position_ids` are those of the unpruned sequence, as upstream's `generate` counts it.
    """
    num_new = inputs_embeds.shape[1]
    if position_ids is None:
        position_ids = torch.arange(num_new, device=inputs_embeds.device) + cache.get_seq_length()
        position_ids = position_ids + positions_left_out(cache)
        position_ids = position_ids.unsqueeze(0)
    states, first = inputs_embeds, None
    hidden_states = HiddenStates(language_model, output_hidden_states)
    for index, layer in enumerate(language_model.layers):
        hidden_states.add(states)
        held = cache.layers[index]
        is_pruned = isinstance(held, PrunedPromptLayer)
        if index == 0 or (is_pruned and held.first != first):
            padding, positions = attention_mask, position_ids
            if is_pruned:
                first = held.first
                padding = held.attention_mask(attention_mask, num_new)
                positions = held.positions(padding, position_ids)
            mask, rotary = _mask_and_rotary(language_model, states, padding, positions, cache, index)
        states = layer(
            states, attention_mask=mask, position_embeddings=rotary, cache=cache, use_cache=use_cache, **kwargs
        )
    normalised = language_model.norm(states)
    return DecoderOutput(normalised, cache, hidden_states.result(states, normalised), [])


def whole_prompt(
    inputs_embeds: torch.Tensor,
    is_visual: torch.Tensor,
    num_visual: Sequence[int],
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    known: PromptCounts | None = None,
    deepstack: Sequence[torch.Tensor] = (),
) -> PromptInDecoder:
    """A prompt before the first decoder layer.

    Args:
        inputs_embeds: (B, L, D) with the visual tokens in it.
        is_visual: (B, L) bool; N_i tokens of each image, as `num_visual` says.
        attention_mask: (B, L), 1 for real tokens.
        position_ids: (..., B, L), for the rotary embedding.
        known: of the prompt, if the device was asked before; then nothing here asks it again.
        deepstack: what is added to the states after each of the first layers, (B, L, D).

    Raises:
        ValueError: for a mask of another shape.
    """
    if known is not None and not any(known.masked):
        attention_mask = None
    if attention_mask is not None and attention_mask.shape != is_visual.shape:
        raise ValueError(
            "A method that prunes inside the language model needs an `attention_mask` of shape (batch, length), "
            f"{tuple(is_visual.shape)}, got {tuple(attention_mask.shape)}."
        )
    mask = None if attention_mask is None else attention_mask.bool()
    columns = torch.arange(is_visual.shape[1], device=is_visual.device).expand_as(is_visual)
    return PromptInDecoder(
        states=inputs_embeds,
        mask=mask,
        positions=columns if position_ids is None else position_ids.expand(*position_ids.shape[:-2], *columns.shape),
        columns=columns,
        full_length=is_visual.shape[1],
        is_visual=is_visual,
        num_visual=num_visual,
        is_text=text_after_images(is_visual, mask),
        known=known,
        deepstack=tuple(deepstack),
    )


def _prune(
    settings: PruningSettings, groups: Sequence[ImageGroup], prompt: PromptInDecoder, attention: LayerAttention
) -> tuple[PromptInDecoder, CompactionPlan]:
    """What the method keeps of the prompt after a layer, padded again if rows differ, and where it comes from."""
    kept: dict[int, torch.Tensor] = {}
    states, deepstack, pruner = prompt.states, prompt.deepstack, cast(LayerPruner, settings.pruner)
    for group in groups:
        rows, columns = prompt.visual_places(group.images)
        indices = torch.arange(columns.shape[1], device=columns.device).expand_as(columns)
        if attention.layer in group.tokens_after:
            evidence = DecoderLayerEvidence(attention, prompt, group.images, group.embeddings)
            selection = group.prune(pruner, evidence, settings.in_raster_order)
            indices = selection.indices
            # A merged token enters at the place of the token that stands for it.
            places = rows.gather(1, indices), columns.gather(1, indices)
            if selection.features is not None:
                states = states.index_put(places, selection.features.to(states.dtype))
            if selection.weights is not None:
                deepstack = tuple(
                    added.index_put(places, merge_tokens(selection.weights, added[rows, columns]))
                    for added in deepstack
                )
        kept.update(zip(group.images, indices))
    merged = replace(prompt, states=states, deepstack=deepstack)
    return _shorten(merged, [kept[image] for image in range(len(kept))], settings)


def _shorten(
    prompt: PromptInDecoder, kept: Sequence[torch.Tensor], settings: PruningSettings
) -> tuple[PromptInDecoder, CompactionPlan]:
    """The prompt with the visual tokens `kept` (n_i,) of each image alone."""
    mask = None if prompt.mask is None else prompt.mask.long()
    plan = plan_compaction(prompt.is_visual, kept, prompt.num_visual, mask, counts=prompt.known)
    mask = plan.attention_mask(mask)
    mask = None if mask is None else mask.bool()
    positions = plan.apply(prompt.positions, 0)
    if not settings.keeps_positions:
        is_real = plan.is_real if mask is None else mask
        renumbered = (is_real.long().cumsum(dim=1) - 1).clamp(min=0)
        # A row that loses nothing is as it would be alone.
        is_shorter = is_real.sum(dim=1, keepdim=True) < _num_real(prompt)
        positions = torch.where(is_shorter, renumbered, positions)
    shortened = PromptInDecoder(
        states=plan.apply_to_embeddings(prompt.states),
        mask=mask,
        positions=positions,
        columns=plan.apply(prompt.columns, prompt.full_length),
        full_length=prompt.full_length,
        is_visual=plan.apply(prompt.is_visual, False),
        num_visual=[len(indices) for indices in kept],
        is_text=plan.apply(prompt.is_text, False),
        known=prompt.known and plan.counts(prompt.known),
        deepstack=tuple(plan.apply_to_embeddings(added) for added in prompt.deepstack),
    )
    return shortened, plan


def _num_real(prompt: PromptInDecoder) -> torch.Tensor:
    """Tokens of each row that are no padding, (B, 1)."""
    real = torch.ones_like(prompt.is_visual) if prompt.mask is None else prompt.mask
    return real.sum(dim=1, keepdim=True)


def _mask_and_rotary_of(
    language_model: PreTrainedModel, prompt: PromptInDecoder, cache: DynamicCache | None, layer: int
) -> tuple[Any, tuple[torch.Tensor, torch.Tensor]]:
    """[`_mask_and_rotary`] for what is left of a prompt."""
    is_known = prompt.known is not None
    return _mask_and_rotary(
        language_model, prompt.states, prompt.mask, prompt.positions, cache, layer, is_known=is_known
    )


def _mask_and_rotary(
    language_model: PreTrainedModel,
    states: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor,
    cache: DynamicCache | None,
    layer: int,
    is_known: bool = False,
) -> tuple[Any, tuple[torch.Tensor, torch.Tensor]]:
    """The attention mask in the form that the attention kernel takes, and the rotary embedding of `positions`.

    Args:
        is_known: that `mask` masks something, which upstream would ask the device.
    """
    # Positions stay out of it: upstream takes gaps in them for several sequences packed into one row.
    causal = create_causal_mask(
        config=language_model.config,
        inputs_embeds=states,
        attention_mask=mask,
        cache=cache,
        layer_idx=layer,
        allow_is_causal_skip=mask is None or not (is_known and takes_whole_mask(language_model)),
    )
    return causal, language_model.rotary_emb(states, position_ids=positions)
