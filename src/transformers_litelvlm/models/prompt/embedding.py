"""The embeddings of a shortened prompt with its visual tokens in place, and its attention mask.

Upstream's `forward` does the same, but asks the device twice on the way: whether there are as many placeholders as
features, and whether the mask masks anything. Each answer has to wait for the vision tower. The first is known from
planning the prompt, and the second need not be known where attention takes a mask of four dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from transformers_litelvlm.models.prompt.pruned_prompt import PrunedInputs
from transformers_litelvlm.models.upstream import create_causal_mask


# Attention kernels that take a mask of four dimensions. FlashAttention takes none, and asks the device itself.
MASKED_KERNELS = ("sdpa", "eager")


def merge_features(model: PreTrainedModel, pruned: PrunedInputs, cache: Any = None) -> dict[str, Any]:
    """Inputs of the language model of `model` for a prompt that was shortened.

    Args:
        model: the base model.
        pruned: what [`prune_inputs`] returned, with a plan.
        cache: the cache that will be filled, if any.

    Returns:
        `inputs_embeds` (B, L', D), `attention_mask` and `position_ids`.
    """
    inputs = pruned.model_inputs
    embeds = inputs["inputs_embeds"]
    embeds = model.get_input_embeddings()(inputs["input_ids"]) if embeds is None else embeds
    features = torch.cat(list(inputs["mm_encoder_outputs"]["image"].pooler_output)).to(embeds.device, embeds.dtype)
    embeds = embeds.masked_scatter(pruned.is_visual.unsqueeze(-1).to(embeds.device), features)
    mask = inputs["attention_mask"]
    if takes_whole_mask(model.language_model):
        mask = create_causal_mask(
            config=model.language_model.config,
            inputs_embeds=embeds,
            attention_mask=mask,
            cache=cache,
            allow_is_causal_skip=False,
        )
    return {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": inputs["position_ids"]}


def takes_whole_mask(language_model: PreTrainedModel) -> bool:
    """Whether one mask of four dimensions serves all layers: then it need not be known whether it masks anything."""
    decoder = language_model.config
    return decoder._attn_implementation in MASKED_KERNELS and getattr(decoder, "sliding_window", None) is None
