"""The language model's part of `forward` where a method prunes inside it."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from transformers_litelvlm.models.decoder.cache import check_cache, holds_pruned_prompt
from transformers_litelvlm.models.decoder.image_groups import Stage
from transformers_litelvlm.models.decoder.loop import DecoderOutput, decode, prefill, whole_prompt
from transformers_litelvlm.models.outputs import PrunedImageFeatures, token_lists
from transformers_litelvlm.models.prompt.compaction import count_prompt
from transformers_litelvlm.models.prompt.embedding import deepstack_states
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedPrompt, placeholder_mask
from transformers_litelvlm.models.settings import PruningSettings


def forward_in_decoder(
    model: PreTrainedModel,
    prompt: PrunedPrompt,
    *,
    cache: Cache | None = None,
    output_attentions: bool | None = None,
    output_router_logits: bool | None = None,
    **kwargs: Any,
) -> dict[str, Any] | None:
    """Run `model.language_model` on a prompt that is pruned inside it, or on what comes after such a prompt.

    Args:
        model: a base model with the contract of a family.
        prompt: with encoded media; as it came, or shortened by the first of two methods.
        cache: the cache that will be filled, or that holds such a prompt.
        kwargs: as for the language model.

    Returns:
        Fields of the model's output; or `None` if upstream's `forward` does all there is to do.

    Raises:
        ValueError: for a cache, a mask, a decoder or a budget that the method cannot work with.
    """
    inputs, settings = prompt.inputs, prompt.settings.then or prompt.settings
    encoded = {name: output for name, output in prompt.encoded.items() if output is not None}
    if not holds_pruned_prompt(cache):
        sizes = [len(tokens) for output in encoded.values() for tokens in output.pooler_output]
        if not settings.cuts(sizes):
            return None
    for name, is_wanted in (("output_attentions", output_attentions), ("output_router_logits", output_router_logits)):
        if is_wanted:
            raise ValueError(f"`{name}` is not available if a method prunes inside the language model.")
    embeds, position_ids = inputs.get("inputs_embeds"), inputs.get("position_ids")
    embeds = model.get_input_embeddings()(inputs["input_ids"]) if embeds is None else embeds
    if position_ids is None:
        position_ids = model.decoder_positions(prompt, embeds, cache)
    if position_ids is not None:
        # Of M-RoPE's rows (text, time, row, column) the first is for masks; new tokens are the last.
        position_ids = (position_ids[-3:] if position_ids.ndim == 3 else position_ids)[..., -embeds.shape[1] :]
    kwargs.update(attention_mask=inputs.get("attention_mask"), position_ids=position_ids, cache=cache)
    if not encoded:
        output = decode(model.language_model, inputs_embeds=embeds, **kwargs)
        kept: dict[str, PrunedImageFeatures] = {}
    else:
        check_cache(cache)
        output, kept = _prefill(model, prompt, settings, embeds, encoded, **kwargs)
    return {
        "last_hidden_state": output.last_hidden_state,
        "cache": output.cache,
        "hidden_states": output.hidden_states,
        **kept,
    }


def _prefill(
    model: PreTrainedModel,
    prompt: PrunedPrompt,
    settings: PruningSettings,
    embeds: torch.Tensor,
    encoded: dict[str, Any],
    **kwargs: Any,
) -> tuple[DecoderOutput, dict[str, PrunedImageFeatures]]:
    """The output, and `image_outputs` and `video_outputs`. Unless the prompt was counted and has one modality, the
    device is asked, which has to finish encoding first."""
    masks, features = {}, {}
    known = prompt.counts.get(next(iter(encoded))) if len(encoded) == 1 else None
    if known is not None and prompt.plan is not None:
        known = prompt.plan.counts(known)
    for modality, output in encoded.items():
        features[modality] = torch.cat(list(output.pooler_output)).to(embeds.device, embeds.dtype)
        if known is not None and sum(known.placeholders) == len(features[modality]):
            masks[modality] = placeholder_mask(model, modality, prompt.inputs).unsqueeze(-1)
            continue
        # Upstream's, which also checks the number of placeholders.
        mask = model.get_placeholder_mask(
            prompt.inputs.get("input_ids"), embeds, **{f"{modality}_features": features[modality]}
        )
        masks[modality] = mask if isinstance(mask, torch.Tensor) else mask[model.modalities.index(modality)]
    for modality, mask in masks.items():
        embeds = embeds.masked_scatter(mask, features[modality])
    is_placeholder = {modality: mask[..., 0] for modality, mask in masks.items()}
    sizes = {modality: [len(tokens) for tokens in output.pooler_output] for modality, output in encoded.items()}
    order = reading_order(is_placeholder, sizes)
    num_visual = [sizes[modality][index] for modality, index in order]
    is_visual = torch.stack(list(is_placeholder.values())).any(dim=0)
    whole = whole_prompt(
        embeds,
        is_visual,
        num_visual,
        kwargs.pop("attention_mask"),
        kwargs.pop("position_ids"),
        known,
        deepstack_states(encoded, is_placeholder, embeds, model.num_deepstack),
    )
    budgets = settings.budgets(num_visual)
    counts = known or count_prompt(is_visual, whole.mask)
    image_at = {end: image for image, end in enumerate(accumulate(num_visual))}
    lasts = [image_at[end] for end, is_last in zip(accumulate(counts.placeholders), counts.at_end) if is_last]
    if any(budgets[image] < num_visual[image] for image in lasts):
        raise ValueError(
            f"A prompt ends in an image or a video, and the method {settings.pruner.name!r}, inside the language "
            "model, may take its last token away, from which the answer begins. End every prompt in text, or choose a "
            "`pruning_method` that works before the language model."
        )
    output = prefill(model.language_model, settings, whole, budgets, **kwargs)
    stages = [_by_modality(stage, order, sizes) for stage in output.stages]
    return output, {
        f"{modality}_outputs": kept_in_decoder([stage[modality] for stage in stages], encoded[modality], counts)
        for modality, counts in sizes.items()
    }


def kept_in_decoder(stages: list[Stage], encoded: Any, sizes: list[int]) -> PrunedImageFeatures:
    """What is left of the images or videos of a modality.

    Args:
        stages: after each layer that pruned, in terms of the tokens that entered the language model.
        encoded: features that entered it; [`PrunedImageFeatures`] if tokens were cut before.
        sizes: their number for each image or video.
    """
    first = encoded if isinstance(encoded, PrunedImageFeatures) else PrunedImageFeatures(num_visual_tokens=sizes)
    if first.retained_indices is not None:
        before = Stage(first.retained_indices, first.merge_weights)
        stages = [stage.after(before, first.num_visual_tokens) for stage in stages]
    return PrunedImageFeatures.of_lists(
        token_lists(encoded),
        retained_indices=stages[-1].indices,
        merge_weights=stages[-1].weights,
        retained_stages=tuple(stage.indices for stage in stages),
        similarity=first.similarity,
        context_scores=first.context_scores,
        num_visual_tokens=first.num_visual_tokens,
    )


def reading_order(is_placeholder: dict[str, torch.Tensor], sizes: dict[str, list[int]]) -> list[tuple[str, int]]:
    """The images and videos as they stand in the prompt, by modality and place among those.

    Args:
        is_placeholder: for each modality (B, L) bool.
        sizes: visual tokens of each image and video.
    """
    media = [(modality, index) for modality, counts in sizes.items() for index in range(len(counts))]
    if len(sizes) == 1:
        return media
    firsts = []
    for modality, counts in sizes.items():
        places = (~is_placeholder[modality]).flatten().byte().argsort(stable=True)
        firsts += [places[end - count] for count, end in zip(counts, accumulate(counts))]
    return [media[index] for index in torch.stack(firsts).argsort().tolist()]


def _by_modality(stage: Stage, order: list[tuple[str, int]], sizes: dict[str, list[int]]) -> dict[str, Stage]:
    """A stage of all images and videos in reading order, as one of each modality in its own order."""
    if len(sizes) == 1:
        return dict.fromkeys(sizes, stage)
    return {
        modality: stage.of_images([order.index((modality, index)) for index in range(len(counts))])
        for modality, counts in sizes.items()
    }
