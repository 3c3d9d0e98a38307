"""The embeddings of a shortened prompt with its visual tokens in place, and its attention mask.

Upstream's `forward` does the same, but asks the device twice on the way: whether there are as many placeholders as
features, and whether the mask masks anything. Each answer has to wait for the vision tower. The first is known from
planning the prompt, and the second need not be known if attention takes a mask of four dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

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
        `inputs_embeds` (B, L', D), `attention_mask` and `position_ids`.
    """
    inputs = prompt.inputs
    embeds = inputs.get("inputs_embeds")
    embeds = model.get_input_embeddings()(inputs["input_ids"]) if embeds is None else embeds
    for modality, is_visual in prompt.is_visual.items():
        features = torch.cat(list(prompt.encoded[modality].pooler_output)).to(embeds.device, embeds.dtype)
        embeds = embeds.masked_scatter(is_visual.unsqueeze(-1).to(embeds.device), features)
    mask = inputs.get("attention_mask")
    if takes_whole_mask(model.language_model):
        mask = create_causal_mask(
            config=model.language_model.config,
            inputs_embeds=embeds,
            attention_mask=mask,
            cache=cache,
            allow_is_causal_skip=False,
        )
    return {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": inputs.get("position_ids")}


def takes_whole_mask(language_model: PreTrainedModel) -> bool:
    """Whether one mask of four dimensions serves all layers: then it need not be known whether it masks anything."""
    decoder = language_model.config
    return decoder._attn_implementation in MASKED_KERNELS and getattr(decoder, "sliding_window", None) is None
