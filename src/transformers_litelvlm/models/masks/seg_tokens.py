"""[SEG] in a prompt or an answer: how many there are, the states that make their masks, and whose masks they are."""

from __future__ import annotations

from typing import Any

import torch


def count_seg(input_ids: torch.Tensor, seg_token_id: int, reads_at_seg: bool = False) -> list[int]:
    """How many masks each row of `input_ids` (B, L) asks for, by a [SEG]; one without a token before it counts only
    where states are read at [SEG].

    Raises:
        ValueError: a row asks for none.
    """
    counts = (input_ids[:, 0 if reads_at_seg else 1 :] == seg_token_id).sum(dim=1).tolist()
    if not all(counts):
        raise ValueError(
            "Every row of `input_ids` needs a [SEG] that stands for its mask. Use "
            "`processor.segmentation_inputs`, or `generate_masks` to let the model write its answer."
        )
    return counts


def states_of_seg(
    hidden_states: torch.Tensor,
    input_ids: torch.Tensor,
    seg_token_id: int,
    reads_at_seg: bool = False,
    counts: list[int] | None = None,
) -> tuple[torch.Tensor, list[int]]:
    """Hidden states (B, T, D) that make masks, and how many each row has.

    Args:
        hidden_states: (B, L, D).
        input_ids: (B, L) with `seg_token_id` where masks are asked for; or one more, whose state was not computed.
        reads_at_seg: whether the state at [SEG] makes the mask, not the one before it, which predicts it.
        counts: of [`count_seg`], if it was asked before; then nothing here asks the device.
    """
    is_read = (input_ids[:, 0 if reads_at_seg else 1 :] == seg_token_id)[:, : hidden_states.shape[1]]
    counts = is_read.sum(dim=1).tolist() if counts is None else counts
    positions = (~is_read).byte().argsort(dim=1, stable=True)[:, : max(counts)]
    return hidden_states.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1])), counts


def states_of_new_tokens(generated: Any, num_new: int) -> torch.Tensor:
    """Last of the returned hidden states (B, T, D) that predicted the new tokens: one per decoding step of
    `generate` with `output_hidden_states`, along the chosen beam."""
    states = torch.stack([step[-1][:, -1] for step in generated.hidden_states[:num_new]], dim=1)
    beam_indices = getattr(generated, "beam_indices", None)
    if beam_indices is None:
        return states
    rows = beam_indices[:, : states.shape[1]].clamp(min=0)
    return states[rows, torch.arange(rows.shape[1], device=rows.device)]


def by_image(values: torch.Tensor, about: list[int], num_images: int) -> list[torch.Tensor]:
    """Values (N, ...) of N masks as one tensor (T_i, ...) per image.

    Args:
        about: image of each mask, ascending.
    """
    return list(values.split([about.count(image) for image in range(num_images)]))
