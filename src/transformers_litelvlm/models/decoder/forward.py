"""The language model's part of `forward` where a method prunes inside it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from transformers_litelvlm.models.decoder.cache import check_cache, holds_pruned_prompt
from transformers_litelvlm.models.decoder.image_groups import Stage
from transformers_litelvlm.models.decoder.loop import DecoderOutput, decode, prefill
from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.models.prompt.compaction import PromptCounts
from transformers_litelvlm.models.prompt.pruned_prompt import PIXELS, PrunedInputs, placeholder_mask
from transformers_litelvlm.pruning.selection import resolve_budget


def forward_in_decoder(
    model: PreTrainedModel,
    pruned: PrunedInputs,
    cache: Cache | None,
    positions: Callable[[torch.Tensor], torch.Tensor | None] | None = None,
    **kwargs: Any,
) -> DecoderOutput | None:
    """Run `model.language_model` on a prompt that is pruned inside it, or on what comes after such a prompt.

    Args:
        model: a base model like [`~transformers.LlavaModel`], with `config.pruning_config`.
        pruned: the prompt as it came, and its encoded images.
        positions: gives positions where the prompt has none, from the embeddings; default: one after the other.
        kwargs: as for the language model.

    Returns:
        Its output, with `features`; or `None` where upstream's `forward` does all there is to do.

    Raises:
        ValueError: for a cache, a mask, a decoder or a budget that the method cannot work with.
    """
    inputs = pruned.model_inputs
    encoded = {name: output for name, output in (inputs["mm_encoder_outputs"] or {}).items() if output is not None}
    pruning, is_later = model.config.pruning_config, holds_pruned_prompt(cache)
    if not is_later:
        sizes = [len(tokens) for output in encoded.values() for tokens in output.pooler_output]
        is_cut = any(pruning.resolve(size) is not None for size in sizes)
        if not is_cut or not pruning.build_pruner().is_inside_language_model:
            return None
    kwargs.pop("return_dict", None)
    if kwargs.pop("output_attentions", None):
        raise ValueError("`output_attentions` is not available where a method prunes inside the language model.")
    embeds, position_ids = inputs["inputs_embeds"], inputs["position_ids"]
    embeds = model.get_input_embeddings()(inputs["input_ids"]) if embeds is None else embeds
    if position_ids is None and positions is not None:
        position_ids = positions(embeds)
    if position_ids is not None:
        # Of M-RoPE's rows (text, time, row, column) the first is for masks; new tokens are the last.
        position_ids = (position_ids[-3:] if position_ids.ndim == 3 else position_ids)[..., -embeds.shape[1] :]
    kwargs.update(attention_mask=inputs["attention_mask"], position_ids=position_ids, cache=cache)
    if not encoded:
        return decode(model.language_model, inputs_embeds=embeds, **kwargs)
    check_cache(cache)
    known = (pruned.counts or {}).get(*encoded) if len(encoded) == 1 else None
    return _prefill(model, inputs["input_ids"], embeds, encoded, known, **kwargs)


def _prefill(
    model: PreTrainedModel,
    input_ids: torch.Tensor | None,
    embeds: torch.Tensor,
    encoded: dict[str, Any],
    known: PromptCounts | None,
    **kwargs: Any,
) -> DecoderOutput:
    """`known` of the one modality there is: without it, the device is asked, which has to finish encoding first."""
    pruning, features, masks = model.config.pruning_config, {}, {}
    for modality, output in encoded.items():
        features[modality] = torch.cat(list(output.pooler_output)).to(embeds.device, embeds.dtype)
        if known is not None and sum(known.placeholders) == len(features[modality]):
            masks[modality] = placeholder_mask(model, modality, input_ids, embeds).unsqueeze(-1)
            continue
        # Upstream's, which also checks the number of placeholders.
        mask = model.get_placeholder_mask(input_ids, embeds, **{f"{modality}_features": features[modality]})
        masks[modality] = mask if isinstance(mask, torch.Tensor) else mask[list(PIXELS).index(modality)]
    for modality, mask in masks.items():
        embeds = embeds.masked_scatter(mask, features[modality])
    is_placeholder = {modality: mask[..., 0] for modality, mask in masks.items()}
    sizes = {modality: [len(tokens) for tokens in output.pooler_output] for modality, output in encoded.items()}
    order = reading_order(is_placeholder, sizes)
    num_visual = [sizes[modality][index] for modality, index in order]
    output = prefill(
        model.language_model,
        pruning.build_pruner(),
        [resolve_budget(size, pruning.budget, pruning.retention_ratio) for size in num_visual],
        inputs_embeds=embeds,
        is_visual=torch.stack(list(is_placeholder.values())).any(dim=0),
        num_visual=num_visual,
        in_raster_order=model.config.resolved_token_order == "raster",
        is_compact=model.config.resolved_position_ids == "compact",
        known=known,
        **kwargs,
    )
    stages = [_by_modality(stage, order, sizes) for stage in output.stages]
    for modality, counts in sizes.items():
        own = [stage[modality] for stage in stages]
        output.features[modality] = PrunedImageFeatures(
            pooler_output=list(encoded[modality].pooler_output),
            retained_indices=own[-1].indices,
            merge_weights=own[-1].weights,
            retained_stages=tuple(stage.indices for stage in own),
            num_visual_tokens=counts,
        )
    return output


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
