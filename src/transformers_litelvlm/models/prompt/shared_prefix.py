"""Dialogues about one picture that begin alike: the language model reads what they share once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.models.devices import index_on
from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.models.prompt.compaction import PromptCounts
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedPrompt, prune_prompt
from transformers_litelvlm.models.settings import PruningSettings


def shared_prefix_length(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    about: Sequence[int],
    image_token_id: int,
    seg_token_id: int,
) -> int:
    """How many columns all dialogues about a picture have in common, with all of its placeholders.

    Args:
        input_ids, attention_mask: (B, L).
        about: picture of each dialogue, ascending.

    Returns:
        The number, below that of the first column whose state makes a mask; 0 if there is no such prefix, or if a row
        is padded on the left.
    """
    firsts = index_on(input_ids.device, [about.index(picture) for picture in about])
    is_shared = (input_ids == input_ids[firsts]).all(dim=0)
    if attention_mask is not None:
        is_shared = is_shared & attention_mask.bool().all(dim=0)
    is_seg, is_image = ((input_ids == token).any(dim=0) for token in (seg_token_id, image_token_id))
    common = is_shared.long().cumprod(dim=0).sum()
    before_seg = is_seg.long().argmax() - 1
    after_image = input_ids.shape[1] - is_image.flip(0).long().argmax()
    length, after_image = torch.stack((torch.minimum(common, before_seg), after_image)).tolist()
    return length if length >= after_image else 0


def read_after_shared_prefix(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    features: BaseModelOutputWithPooling,
    about: Sequence[int],
    length: int,
    settings: PruningSettings,
    counts: dict[str, PromptCounts] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, PrunedImageFeatures | None]:
    """Run a base model on B dialogues about M pictures: once on the prefix for each picture, then on what is left.

    Args:
        input_ids, attention_mask: (B, L).
        features: of the M pictures.
        length: of [`shared_prefix_length`].
        counts: of [`count_prompt`] by modality, if the device was asked before.

    Returns:
        Ids after the prefix, their states (B, L - length, D) after the final norm, and what was kept for each
        dialogue.
    """
    firsts = [about.index(picture) for picture in range(len(features.pooler_output))]
    nothing = [0] * len(firsts)
    prefix = prune_prompt(
        model,
        {
            "input_ids": input_ids[index_on(input_ids.device, firsts), :length],
            "mm_encoder_outputs": {"image": features},
        },
        settings,
        # All placeholders are in the prefix, and it has no padding.
        counts=counts
        and {
            name: PromptCounts([of_rows.placeholders[row] for row in firsts], *[nothing] * 5)
            for name, of_rows in counts.items()
        },
    )
    cache = model(pruned=prefix, use_cache=True).cache
    read = cache.get_seq_length()
    cache.batch_select_indices(index_on(input_ids.device, about))
    rest: dict[str, Any] = {"input_ids": input_ids[:, length:]}
    before = prefix.inputs.get("attention_mask")  # where pictures keep different numbers of tokens
    if attention_mask is not None or before is not None:
        ones = torch.ones_like(input_ids)
        after = (ones if attention_mask is None else attention_mask)[:, length:]
        before = ones.new_ones(len(ones), read) if before is None else before[index_on(ones.device, about)]
        rest["attention_mask"] = torch.cat((before, after), dim=1)
    if settings.keeps_positions:
        columns = torch.arange(length, input_ids.shape[1], device=input_ids.device)
        rest["position_ids"] = columns.expand(len(input_ids), -1)
    states = model(pruned=PrunedPrompt(rest, settings), cache=cache).last_hidden_state
    kept = prefix.kept("image")
    return rest["input_ids"], states, kept if kept is None else kept.of_images(about)
