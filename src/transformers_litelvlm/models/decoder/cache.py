"""Keys and values of a decoder whose later layers saw fewer tokens of the prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import Cache, DynamicCache

from transformers_litelvlm.models.upstream import DynamicLayer


# What a cache says about the prompts in it that were shortened before the decoder.
_NOTES = "litelvlm_shortened_prompts"


class ShortenedPrompt(NamedTuple):
    """Of a prompt in a cache.

    Attributes:
        end: tokens in the cache up to its end.
        left_out: positions that no token has.
        is_padded: whether rows of different length were padded in it, which its user does not know.
        needs_positions: whether the position after it differs from row to row.
        columns: (B, tokens of it) column of each in the full prompt.
    """

    end: int
    left_out: int
    is_padded: bool
    needs_positions: bool
    columns: torch.Tensor

    def in_first(self, length: int) -> ShortenedPrompt | None:
        """What of it is in the first `length` tokens of the cache; `None` if nothing is."""
        num_gone = self.end - length
        rest = self.columns.shape[1] - num_gone
        if num_gone <= 0 or rest <= 0:
            return self if num_gone <= 0 else None
        cropped = self._replace(end=length, columns=self.columns[:, :rest])
        if self.left_out == 0:
            return cropped
        # What comes next takes the place of the first token that is gone.
        left_out = (self.columns[:, rest] - rest).tolist()
        is_one = len(set(left_out)) == 1 and not self.is_padded
        return cropped._replace(left_out=left_out[0], needs_positions=not is_one)


def note_shortened(cache: Cache, past: int, prompt: ShortenedPrompt) -> None:
    """Remember in a cache that a prompt in it, after `past` tokens, was shortened."""
    notes = [earlier for earlier in getattr(cache, _NOTES, []) if earlier.end <= past]
    setattr(cache, _NOTES, [*notes, prompt])


def shortened_prompts(cache: Cache) -> list[ShortenedPrompt]:
    """Those in a cache; what was cropped or reset is forgotten. If there are any, the device may be asked."""
    notes = getattr(cache, _NOTES, [])
    if notes:
        length = int(cache.get_seq_length())
        notes = [prompt for each in notes if (prompt := each.in_first(length)) is not None]
        setattr(cache, _NOTES, notes)
    return notes


def positions_left_out(cache: Cache) -> int:
    """How much larger than the number of tokens in a cache the position after them is."""
    return sum(prompt.left_out for prompt in shortened_prompts(cache))


def check_rows(cache: Cache, inputs: dict[str, Any]) -> None:
    """Raises ValueError if padding that pruning changed in a cache would be read or counted by what comes after it."""
    prompts = shortened_prompts(cache)
    needed = {"attention_mask": any(prompt.is_padded for prompt in prompts)}
    needed["position_ids"] = any(prompt.needs_positions for prompt in prompts)
    if missing := [name for name, is_needed in needed.items() if is_needed and inputs.get(name) is None]:
        raise ValueError(
            f"`cache` holds a prompt whose padding pruning changed, so new tokens need `{missing[0]}`, which covers "
            f"{'the tokens in it' if missing[0] == 'attention_mask' else 'each row as it is'}. Call `generate` "
            "without `cache`, or `forward` for one row at a time."
        )


class PrunedPromptLayer(DynamicLayer):
    """[`~transformers.cache_utils.DynamicLayer`] of a decoder layer that got part of the prompt only.

    Args:
        mask: (B, P) bool, which of the P entries that the prompt leaves here are no padding; `None` if all are.
        length: P.
        first: the first decoder layer that got this part of the prompt.
        is_compact: (B, 1) bool, whether positions of a row count its entries in this layer, or those of the unpruned
            sequence; `None` if those of no row do.
    """

    def __init__(
        self, mask: torch.Tensor | None, length: int, *, first: int, is_compact: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.mask, self.length, self.first, self.is_compact = mask, length, first, is_compact

    def attention_mask(self, full: torch.Tensor | None, num_new: int) -> torch.Tensor | None:
        """Mask over the entries here and `num_new` to come, from `full`, (B, unpruned length), of the caller."""
        if full is None and self.mask is None:
            return None
        num_later = self.get_seq_length() + num_new - self.length
        prompt = self.mask
        if prompt is None:
            prompt = full.new_ones(len(full), self.length, dtype=torch.bool)
        later = (
            prompt.new_ones(len(prompt), num_later) if full is None else full[:, full.shape[1] - num_later :].bool()
        )
        return torch.cat((prompt, later.to(prompt.device)), dim=1)

    def positions(self, mask: torch.Tensor | None, unpruned: torch.Tensor) -> torch.Tensor:
        """Positions of new tokens here, from [`attention_mask`] and their positions in the unpruned sequence."""
        if self.is_compact is None:
            return unpruned
        num_new = unpruned.shape[1]
        if mask is None:
            entries = torch.arange(num_new, device=unpruned.device).unsqueeze(0) + self.get_seq_length()
        else:
            entries = mask.long().cumsum(dim=1)[:, -num_new:].to(unpruned.device) - 1
        return torch.where(self.is_compact.to(unpruned.device), entries, unpruned)

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.length = min(self.length, self.get_seq_length())  # text of the prompt may go, too
        self.mask = None if self.mask is None else self.mask[:, : self.length]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._change_rows(lambda of_rows: of_rows.repeat_interleave(repeats, dim=0))

    def _select(self, rows: torch.Tensor) -> None:
        self._change_rows(lambda of_rows: of_rows[rows.to(of_rows.device)])

    def _change_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.mask = None if self.mask is None else change(self.mask)
        self.is_compact = None if self.is_compact is None else change(self.is_compact)


def holds_pruned_prompt(cache: Cache | None) -> bool:
    """Whether a prompt that was shortened inside the decoder is in `cache`."""
    return isinstance(cache, DynamicCache) and any(isinstance(layer, PrunedPromptLayer) for layer in cache.layers)


def check_cache(cache: Cache | None) -> None:
    """Raises ValueError unless decoder layers may put prompts of different length into `cache`."""
    if cache is None:
        return
    if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        kinds = sorted({type(layer).__name__ for layer in cache.layers})
        raise ValueError(
            "A method that prunes inside the language model needs a DynamicCache of full attention, since layers keep "
            f"different numbers of tokens; `cache` is a {type(cache).__name__} of {kinds}. Leave "
            "`cache_implementation` and `cache` out."
        )
    if cache.get_seq_length() > 0:
        raise ValueError(
            f"`cache` already holds {cache.get_seq_length()} tokens. A method that prunes inside the "
            "language model needs the whole prompt with its images in one call, and a new cache."
        )


def replace_layer(cache: Cache | None, index: int, layer: PrunedPromptLayer) -> None:
    """Put an empty layer into the place that decoder layer `index` will write to."""
    if cache is None:
        return
    while len(cache.layers) <= index:  # a cache made without a config grows as it is used
        cache.layers.append(DynamicLayer())
    cache.layers[index] = layer


def shorten_layer(cache: Cache | None, index: int, places: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Leave of what decoder layer `index` wrote the entries at `places` (B, P) alone, as [`PrunedPromptLayer`].

    Keys keep the positions they were turned by, so positions of new tokens there are those of the unpruned sequence.
    """
    if cache is None:
        return
    full = cache.layers[index]
    kept = PrunedPromptLayer(mask, places.shape[1], first=1)
    index_of = places.to(full.keys.device)[:, None, :, None]
    kept.update(
        *(part.gather(2, index_of.expand(-1, part.shape[1], -1, part.shape[3])) for part in (full.keys, full.values))
    )
    cache.layers[index] = kept
