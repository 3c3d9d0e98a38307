"""Selection for towers whose images and videos differ in size: frame by frame, frames of one shape together.

A frame is what the tower attends over at once: an image, or one temporal patch of a video. A video's budget is spread
evenly over its frames, because a ranking across time would leave whole stretches of it without a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.selection import gather_tokens


@dataclass(frozen=True)
class FrameGroup:
    """Frames of the same grid and budget, which are selected from as one batch.

    Attributes:
        media: which image or video each of the B frames belongs to.
        frames: index of each frame among all frames.
        grid: (h, w) visual tokens of each of them.
        budget: how many of the h * w tokens of each survive.
    """

    media: list[int]
    frames: list[int]
    grid: tuple[int, int]
    budget: int


def spread_budget(budget: int, num_frames: int) -> list[int]:
    """`budget` tokens over the frames of a video, evenly; what is left over goes to frames that are evenly spaced.

    Fewer tokens than frames leave frames without a token; the first frame always has one.
    """
    ends = [-(-index * budget // num_frames) for index in range(num_frames + 1)]
    return [end - start for start, end in zip(ends, ends[1:])]


def group_frames(grids: Sequence[tuple[int, int, int]], budgets: Sequence[int]) -> list[FrameGroup]:
    """Groups for media of `grids` (t, h, w) visual tokens, of which `budgets` survive."""
    groups: dict[tuple[int, int, int], FrameGroup] = {}
    frame = 0
    for media, ((num_frames, height, width), budget) in enumerate(zip(grids, budgets, strict=True)):
        for share in spread_budget(budget, num_frames):
            group = groups.setdefault((height, width, share), FrameGroup([], [], (height, width), share))
            group.media.append(media)
            group.frames.append(frame)
            frame += 1
    return list(groups.values())


def select_frames(
    tokens: torch.Tensor,
    grids: Sequence[tuple[int, int, int]],
    budgets: Sequence[int],
    pruner: TokenPruner,
    evidence: Callable[[FrameGroup, torch.Tensor], VisualEvidence],
    token_order: str,
) -> PrunedImageFeatures:
    """Select the visual tokens that survive of several images or videos.

    Args:
        tokens: (sum of N_i, D), the visual tokens of all media, frame after frame in raster order.
        grids: (t, h, w) of each image or video, in visual tokens; N_i = t * h * w.
        budgets: K_i of each, with 1 <= K_i <= N_i.
        pruner: the method.
        evidence: what the method may ask about the frames of a group, given them and their tokens (B, h * w, D).
        token_order: `"raster"`, or `"reference"` for the method's own order within a frame.

    Returns:
        [`PrunedImageFeatures`] without `last_hidden_state`.
    """
    groups = group_frames(grids, budgets)
    num_frames = sum(len(group.frames) for group in groups)
    frames = tokens.split([height * width for t, height, width in grids for _ in range(t)])
    chosen: list[Selection] = [Selection(tokens)] * num_frames
    for group in groups:
        features = torch.stack([frames[frame] for frame in group.frames])
        for frame, selection in zip(group.frames, _one_by_one(_select(group, features, pruner, evidence))):
            chosen[frame] = selection.in_raster_order() if token_order == "raster" else selection
    kept = [
        gather_tokens(frame[None], selection.indices) if selection.features is None else selection.features
        for frame, selection in zip(frames, chosen)
    ]

    counts = [t for t, _, _ in grids]
    offsets = [index * height * width for t, height, width in grids for index in range(t)]
    return PrunedImageFeatures(
        pooler_output=_join(kept, counts, partial(torch.cat, dim=0)),
        retained_indices=_join([part.indices + offset for part, offset in zip(chosen, offsets)], counts),
        similarity=_join([part.similarity for part in chosen], counts),
        context_scores=_join([part.context for part in chosen], counts),
        merge_weights=_join([part.weights for part in chosen], counts, lambda parts: torch.block_diag(*parts)),
        num_visual_tokens=[t * height * width for t, height, width in grids],
    )


def _select(
    group: FrameGroup,
    features: torch.Tensor,
    pruner: TokenPruner,
    evidence: Callable[[FrameGroup, torch.Tensor], VisualEvidence],
) -> Selection | list[Selection]:
    """Methods are defined for 1 <= K < N; the rest needs none."""
    if 0 < group.budget < features.shape[1]:
        return pruner.select(evidence(group, features), group.budget)
    everything = torch.arange(group.budget, device=features.device)
    return Selection(everything.expand(len(features), -1))


_CAT = partial(torch.cat, dim=-1)


def _one_by_one(selection: Selection | list[Selection]) -> Iterator[Selection]:
    """The selections of single frames, each a batch of one."""
    if isinstance(selection, list):
        yield from selection
        return
    for row in range(len(selection.indices)):
        yield Selection(*(None if value is None else value[row : row + 1] for value in selection))


def _join(of_frames: list, counts: Sequence[int], join: Callable[[list], torch.Tensor] = _CAT) -> list | None:
    """What belongs to the frames of one image or video (each a batch of one), in one tensor.

    `None` where a frame has nothing, and for all where none has anything.
    """
    if all(part is None for part in of_frames):
        return None
    joined, start = [], 0
    for count in counts:
        parts = of_frames[start : start + count]
        joined.append(None if any(part is None for part in parts) else join([part[0] for part in parts]))
        start += count
    return joined
