"""Dialogues about one picture that begin alike: the language model reads what they share once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.models.dialogues import index_on
from transformers_litelvlm.models.prompt.compaction import PromptCounts
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedInputs, prune_inputs


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
        The number, below that of the first column whose state makes a mask; 0 where there is no such prefix, or where
        a row is padded on the left.
    """
    firsts = index_on(input_ids.device, [about.index(picture) for picture in about])
    is_shared = (input_ids == input_ids[firsts]).all(dim=0)
    if attention_mask is not None:
        is_shared = is_shared & attention_mask.bool().all(dim=0)
    is_seg, is_image = ((input_ids == token).any(dim=0) for token in (seg_token_id, image_token_id))
    common = is_shared.long().cumprod(dim=0).sum()
    before_seg = is_seg.long().argmax() - 1
    behind_image = input_ids.shape[1] - is_image.flip(0).long().argmax()
    length, behind_image = torch.stack((torch.minimum(common, before_seg), behind_image)).tolist()
    return length if length >= behind_image else 0


def read_after_shared_prefix(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    features: BaseModelOutputWithPooling,
    about: Sequence[int],
    length: int,
    counts: dict[str, PromptCounts] | None = None,
) -> tuple[PrunedInputs, torch.Tensor]:
    """Run a base model on B dialogues about M pictures: once on the prefix for each picture, then on what is left.

    Args:
        input_ids, attention_mask: (B, L).
        features: of the M pictures.
        length: of [`shared_prefix_length`].
        counts: of [`count_prompt`] by modality, where the device was asked before.

    Returns:
        What is behind the prefix, as a prompt, and its states (B, L - length, D) after the final norm.
    """
    firsts = [about.index(picture) for picture in range(len(features.pooler_output))]
    nothing = [0] * len(firsts)
    pruned = prune_inputs(
        model,
        input_ids=input_ids[index_on(input_ids.device, firsts), :length],
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        mm_encoder_outputs={"image": features},
        image_kwargs={},
        # All placeholders are in the prefix, and it has no padding.
        counts=counts
        and {
            name: PromptCounts([of_rows.placeholders[row] for row in firsts], nothing, nothing, nothing, nothing)
            for name, of_rows in counts.items()
        },
    )
    cache = model(**pruned.model_inputs, pruned=pruned, use_cache=True).cache
    read = cache.get_seq_length()
    cache.batch_select_indices(index_on(input_ids.device, about))
    rest = {"input_ids": input_ids[:, length:], "attention_mask": None, "position_ids": None}
    if attention_mask is not None:
        before = attention_mask.new_ones(len(input_ids), read)
        rest["attention_mask"] = torch.cat((before, attention_mask[:, length:]), dim=1)
    if model.config.resolved_position_ids == "original":
        columns = torch.arange(length, input_ids.shape[1], device=input_ids.device)
        rest["position_ids"] = columns.expand(len(input_ids), -1)
    states = model(**rest, cache=cache).last_hidden_state
    return PrunedInputs(rest, pruned.features and pruned.features.of_images(about)), states
