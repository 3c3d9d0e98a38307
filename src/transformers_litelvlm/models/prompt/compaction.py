"""The prompt after pruning: placeholders of dropped visual tokens leave ids, masks, labels and positions.

One function plans for every family of models, and the plan is applied to each tensor of the prompt. B rows of length
L hold M images in reading order (first row first), of N_i visual tokens each, of which K_i are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch


class PromptCounts(NamedTuple):
    """What shapes depend on, on the host, by row.

    Attributes:
        placeholders: of visual tokens.
        padding_left, padding_right: masked tokens at both ends.
        masked: masked tokens anywhere.
        text: tokens after the first placeholder that are neither placeholders nor masked.
        at_end: 1 if the last token that is not masked is a placeholder, else 0.
    """

    placeholders: list[int]
    padding_left: list[int]
    padding_right: list[int]
    masked: list[int]
    text: list[int]
    at_end: list[int]


@dataclass(frozen=True)
class CompactionPlan:
    """Where each token of the shortened prompt comes from.

    Attributes:
        index: (B, L') long, column of the full prompt; arbitrary where `is_real` is False.
        is_real: (B, L') bool, False if rows of different length were padded again.
        padding: by row, on the host, how much of `index` is padding on the left and on the right.
        placeholders: by row, on the host, how many stay of those that were planned.
        full_length: L.
    """

    index: torch.Tensor
    is_real: torch.Tensor
    padding: tuple[list[int], list[int]]
    placeholders: list[int]
    full_length: int

    @property
    def is_ragged(self) -> bool:
        """Whether `is_real` holds any False, known on the host."""
        return any(map(any, self.padding))

    @property
    def num_left_out(self) -> int:
        """L - L'."""
        return self.full_length - self.index.shape[1]

    def apply(self, full: torch.Tensor, padding: int) -> torch.Tensor:
        """`full` (..., B, L) at the tokens that stay, (..., B, L'); `padding` elsewhere."""
        index = self.index.expand(*full.shape[:-1], -1)
        return full.gather(-1, index).masked_fill(~self.is_real, padding)

    def apply_to_embeddings(self, full: torch.Tensor) -> torch.Tensor:
        """`full` (B, L, D) at the tokens that stay, (B, L', D); zeros elsewhere."""
        kept = full.gather(1, self.index.unsqueeze(-1).expand(-1, -1, full.shape[-1]))
        return kept.masked_fill(~self.is_real.unsqueeze(-1), 0.0)

    def then(self, later: CompactionPlan) -> CompactionPlan:
        """This plan, followed by another one for the prompt that it makes."""
        return CompactionPlan(
            index=self.index.gather(1, later.index),
            is_real=self.is_real.gather(1, later.index) & later.is_real,
            padding=later.padding,
            placeholders=later.placeholders,
            full_length=self.full_length,
        )

    def attention_mask(self, full: torch.Tensor | None) -> torch.Tensor | None:
        """The attention mask of the shortened prompt; `None` if there was none and none is needed."""
        if full is None:
            return self.is_real.long() if self.is_ragged else None
        return self.apply(full, 0)

    def expand(self, short: torch.Tensor) -> torch.Tensor:
        """States (B, L', D) at their columns of the full prompt, (B, L, D); zeros at the others."""
        return at_columns_of_full(short, self._columns, self.full_length)

    def take(self, short: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The same at some `columns` (n,) of the full prompt alone, (B, n, D)."""
        nothing = short.shape[1]
        places = torch.arange(nothing, device=self.index.device).expand_as(self.index)
        inverse = self.index.new_full((len(short), self.full_length + 1), nothing).scatter(1, self._columns, places)
        places = inverse[:, columns.to(inverse.device)].to(short.device)
        padded = torch.nn.functional.pad(short, (0, 0, 0, 1))  # what no column has
        return padded.gather(1, places.unsqueeze(-1).expand(-1, -1, short.shape[-1]))

    @property
    def _columns(self) -> torch.Tensor:
        """Column of the full prompt of each token, (B, L'); `full_length` for padding."""
        return self.index.masked_fill(~self.is_real, self.full_length)

    def counts(self, full: PromptCounts) -> PromptCounts:
        """What is known of the shortened prompt on the host, from what is known of the full one."""
        left, right = self.padding
        ends = zip(full.masked, full.padding_left, full.padding_right, left, right)
        masked = [
            all_ - old_left - old_right + new_left + new_right
            for all_, old_left, old_right, new_left, new_right in ends
        ]
        return full._replace(placeholders=self.placeholders, padding_left=left, padding_right=right, masked=masked)


def at_columns_of_full(short: torch.Tensor, columns: torch.Tensor, full_length: int) -> torch.Tensor:
    """States (B, L', D) at `columns` (B, L') of a prompt of `full_length` L, (B, L, D); zeros at the others.

    What has column L goes nowhere.
    """
    full = short.new_zeros(len(short), full_length + 1, short.shape[-1])
    return full.scatter(1, columns.to(short.device).unsqueeze(-1).expand_as(short), short)[:, :-1]


def count_prompt(
    is_placeholder: torch.Tensor, attention_mask: torch.Tensor | None = None, is_media: torch.Tensor | None = None
) -> PromptCounts:
    """What pruning has to know on the host. This asks the device: best before it has much to do.

    Args:
        is_placeholder, attention_mask, is_media: see [`plan_compaction`].
    """
    left, right = _end_padding(attention_mask, is_placeholder if is_media is None else is_media)
    masked = torch.zeros_like(is_placeholder) if attention_mask is None else attention_mask == 0
    text = text_after_images(is_placeholder, attention_mask)
    columns = torch.arange(is_placeholder.shape[1], device=is_placeholder.device)
    last = (columns * ~masked).argmax(1, keepdim=True)
    counted = [each.sum(1) for each in (is_placeholder, left, right, masked, text)]
    return PromptCounts(*torch.stack([*counted, is_placeholder.gather(1, last)[:, 0]]).tolist())


def text_after_images(is_placeholder: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Where the text after the first image of each row is, bool (B, L)."""
    is_text = ~is_placeholder & (is_placeholder.cumsum(1) > 0)
    return is_text if attention_mask is None else is_text & attention_mask.bool()


def plan_compaction(
    is_placeholder: torch.Tensor,
    retained_indices: Sequence[torch.Tensor] | torch.Tensor,
    num_tokens: Sequence[int],
    attention_mask: torch.Tensor | None = None,
    modality: str = "image",
    counts: PromptCounts | None = None,
    is_media: torch.Tensor | None = None,
) -> CompactionPlan | None:
    """Plan the removal of the placeholders of pruned visual tokens.

    Padding at the ends of rows is dropped too, and put back if the shortened rows need it, on the side it was on (on
    the left if there was none).

    Args:
        is_placeholder: (B, L) bool, the image placeholders of the full prompt.
        retained_indices: for every image its K_i kept tokens, 0-based; their order is the order of the features.
        num_tokens: N_i of every image.
        attention_mask: (B, L), as given with the prompt.
        modality: what the placeholders stand for, `"image"` or `"video"`, for the message of an error.
        counts: of [`count_prompt`], if they are known. Then nothing here asks the device.
        is_media: (B, L) bool, the placeholders of all modalities, none of which is padding; default: there is one.

    Returns:
        The plan, or `None` if the prompt already holds exactly the K_i placeholders of the kept tokens.

    Raises:
        ValueError: for any other number of placeholders; the message names the numbers.
    """
    length = is_placeholder.shape[1]
    is_media = is_placeholder if is_media is None else is_media
    padding_left, padding_right = _end_padding(attention_mask, is_media)
    counts = count_prompt(is_placeholder, attention_mask, is_media) if counts is None else counts

    num_kept = [len(indices) for indices in retained_indices]
    images_of_rows = _images_of_rows(counts.placeholders, num_tokens, num_kept, modality)
    if images_of_rows is None:
        return None
    dropped = [sum(num_tokens[i] - num_kept[i] for i in images) for images in images_of_rows]
    ends = [left + right for left, right in zip(counts.padding_left, counts.padding_right)]
    lengths = [length - end - drop for end, drop in zip(ends, dropped)]
    pad_right = any(counts.padding_right) and not any(counts.padding_left)

    # Columns of all placeholders, in reading order, which is the order of the visual tokens of all images.
    places = (~is_placeholder).flatten().byte().argsort(stable=True)[: sum(num_tokens)]
    offsets = [0, *accumulate(num_tokens)]
    kept = torch.cat([indices + offset for indices, offset in zip(retained_indices, offsets)])
    kept_places = places[kept]
    stays = ~(is_placeholder | padding_left | padding_right)
    stays.view(-1)[kept_places] = True

    # The tokens that stay, in order, at the start of the rows or at their end.
    order = (~stays if pad_right else stays).byte().argsort(dim=1, stable=True)
    index = order[:, : max(lengths)] if pad_right else order[:, length - max(lengths) :]
    is_real = stays.gather(1, index)
    # The j-th remaining placeholder of an image stands for its j-th feature, in whatever order those come.
    is_slot = is_placeholder.gather(1, index) & is_real
    index = index.masked_scatter(is_slot, kept_places % length)
    none, padding = [0] * len(lengths), [max(lengths) - own for own in lengths]
    return CompactionPlan(
        index,
        is_real,
        padding=(none, padding) if pad_right else (padding, none),
        placeholders=[sum(num_kept[image] for image in images) for images in images_of_rows],
        full_length=length,
    )


def _end_padding(attention_mask: torch.Tensor | None, is_media: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked tokens before the first and after the last token of each row that is attended or a placeholder, bool
    (B, L) each: an image may be masked, too."""
    if attention_mask is None:
        nothing = torch.zeros_like(is_media)
        return nothing, nothing
    attended = (attention_mask.bool() | is_media).long()
    left = attended.cumsum(1) == 0
    return left, (attended.flip(1).cumsum(1) == 0).flip(1) & ~left


def _images_of_rows(
    counts: list[int], num_tokens: Sequence[int], num_kept: Sequence[int], modality: str
) -> list[range] | None:
    """Which images each row holds, from its number of placeholders; `None` if the prompt is already short."""
    for sizes, is_full in ((num_tokens, True), (num_kept, False)):
        ends = {end: image for image, end in enumerate([0, *accumulate(sizes)])}
        row_ends = [0, *accumulate(counts)]
        if row_ends[-1] == sum(sizes) and all(end in ends for end in row_ends):
            return [range(ends[a], ends[b]) for a, b in zip(row_ends, row_ends[1:])] if is_full else None
    raise ValueError(
        f"The prompt has {counts} {modality} placeholders per row, but its {len(num_tokens)} {modality}s have "
        f"{sum(num_tokens)} visual tokens ({sum(num_kept)} after pruning). Every {modality} needs all placeholders of "
        f"its own, {list(num_tokens)[:4]}, as the processor writes them, or exactly those of its kept tokens, "
        f"{list(num_kept)[:4]}."
    )
