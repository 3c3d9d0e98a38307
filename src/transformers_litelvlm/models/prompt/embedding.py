"""The embeddings of a shortened prompt with its visual tokens in place, and its attention mask.

Upstream's `forward` does the same, but asks the device twice on the way: whether there are as many placeholders as
features, and whether the mask masks anything. Each answer has to wait for the vision tower. The first is known from
planning the prompt, and the second need not be known if attention takes a mask of four dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from transformers_litelvlm.models.outputs import deepstack_of
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedPrompt
from transformers_litelvlm.models.upstream import create_causal_mask


# Attention kernels that take a mask of four dimensions. FlashAttention takes none, and asks the device itself.
MASKED_KERNELS = ("sdpa", "eager")


def embed_prompt(model: PreTrainedModel, prompt: PrunedPrompt, cache: Any = None) -> dict[str, Any]:
    """Inputs of the language model of `model` for a prompt that was shortened.

    Args:
        model: the base model.
        prompt: with a plan.
        cache: the cache that will be filled, if any.

    Returns:
        `inputs_embeds` (B, L', D), `attention_mask` (for a decoder with recurrent layers one for each type of layer)
        and `position_ids`; with DeepStack also what upstream's language
        model takes for it, `visual_pos_masks` and `deepstack_visual_embeds`.
    """
    inputs = prompt.inputs
    embeds = inputs.get("inputs_embeds")
    embeds = model.get_input_embeddings()(inputs["input_ids"]) if embeds is None else embeds
    for modality, is_visual in prompt.is_visual.items():
        features = torch.cat(list(prompt.encoded[modality].pooler_output)).to(embeds.device, embeds.dtype)
        embeds = embeds.masked_scatter(is_visual.unsqueeze(-1).to(embeds.device), features)
    mask = inputs.get("attention_mask")
    if takes_whole_mask(model.language_model):
        causal = create_causal_mask(
            config=model.language_model.config,
            inputs_embeds=embeds,
            attention_mask=mask,
            cache=cache,
            allow_is_causal_skip=False,
        )
        if is_hybrid(model.language_model):
            if prompt.plan.is_ragged and mask.shape[1] > embeds.shape[1]:
                raise ValueError(
                    "Recurrent layers would read the padding that pruning put between the tokens in `cache` and rows "
                    "of different length. Call `forward` for one row at a time, or without `cache`."
                )
            # These need to know which tokens are padding: what they read of it would stay in their state.
            own = mask if mask is None else mask[:, -embeds.shape[1] :]  # without what the cache holds
            mask = {"full_attention": causal, "linear_attention": own}
        else:
            mask = causal
    further = _deepstack_arguments(prompt, embeds, model.num_deepstack)
    return {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": inputs.get("position_ids"), **further}


def deepstack_states(
    encoded: dict[str, Any], is_visual: dict[str, torch.Tensor], embeds: torch.Tensor, count: int
) -> list[torch.Tensor]:
    """What DeepStack adds to the states after each of the first decoder layers, (B, L, D); zeros where text is.

    Args:
        encoded: features of each modality.
        is_visual: (B, L) bool of each modality, where its tokens are.
        embeds: (B, L, D) of the prompt.
        count: of these layers.

    Raises:
        ValueError: if features lack those of a layer: without them the answer would be another one.
    """
    for modality in is_visual:
        given = len(deepstack_of(encoded[modality]))
        if given != count:
            raise ValueError(
                f"`mm_encoder_outputs[{modality!r}]` has `deepstack_features` for {given} layers, and this model "
                f"needs them for {count}: pass what `get_{modality}_features` returns."
            )
    states = []
    for of_layer in zip(*(deepstack_of(encoded[modality]) for modality in is_visual)):
        added = torch.zeros_like(embeds)
        for mask, features in zip(is_visual.values(), of_layer, strict=True):
            rows = torch.cat(features).to(embeds.device, embeds.dtype)
            added = added.masked_scatter(mask.unsqueeze(-1).to(embeds.device), rows)
        states.append(added)
    return states


def _deepstack_arguments(prompt: PrunedPrompt, embeds: torch.Tensor, count: int) -> dict[str, Any]:
    states = deepstack_states(prompt.encoded, prompt.is_visual, embeds, count)
    if not states:
        return {}
    is_visual = torch.stack(list(prompt.is_visual.values())).any(dim=0).to(embeds.device)
    count = sum(len(tokens) for name in prompt.is_visual for tokens in prompt.encoded[name].pooler_output)
    # Indexing with the mask would ask the device how many there are.
    places = (~is_visual).flatten().byte().argsort(stable=True)[:count]
    rows = [added.flatten(0, 1)[places] for added in states]
    return {"visual_pos_masks": is_visual, "deepstack_visual_embeds": rows}


def takes_whole_mask(language_model: PreTrainedModel) -> bool:
    """Whether one mask of four dimensions serves all layers with attention: then it need not be known whether it masks
    anything."""
    decoder = language_model.config
    return decoder._attn_implementation in MASKED_KERNELS and getattr(decoder, "sliding_window", None) is None


def is_hybrid(language_model: PreTrainedModel) -> bool:
    """Whether some decoder layers are recurrent (linear attention)."""
    return "linear_attention" in (getattr(language_model.config, "layer_types", None) or ())
