"""Several dialogues about one picture or video: what is the same for all of them is computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling


def index_on(device: torch.device, places: Sequence[int]) -> torch.Tensor:
    """`places` as an index on a device, without waiting for what it has to do, as indexing by a list does."""
    return torch.tensor(places, dtype=torch.long).to(device, non_blocking=True)


def rows_of(sizes: Sequence[int], media: Sequence[int]) -> torch.Tensor:
    """Where the rows of some media are, in a tensor that holds the rows of all media one after the other.

    Args:
        sizes: rows of each of them.
        media: which ones, in any order, repeated or not.
    """
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return torch.cat([torch.arange(starts[one], starts[one + 1]) for one in media])


def repeat_encoded(
    encoded: BaseModelOutputWithPooling, num_patches: Sequence[int], about: Sequence[int]
) -> BaseModelOutputWithPooling:
    """The output of a vision tower for M media of any size, as if each of B dialogues had brought its own.

    Args:
        encoded: `pooler_output` has M tensors; every hidden state has the patches of all media, one after the other.
        num_patches: of each medium.
        about: the medium of each dialogue.
    """
    rows = rows_of(num_patches, about)
    states = tuple(
        state if state is None else state[rows.to(state.device, non_blocking=True)]
        for state in encoded.hidden_states or ()
    )
    return BaseModelOutputWithPooling(
        pooler_output=[encoded.pooler_output[medium] for medium in about], hidden_states=states or None
    )
