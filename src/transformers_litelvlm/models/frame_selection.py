"""Selection for towers whose images and videos differ in size: frame by frame, frames of one shape together.

A frame is what the tower attends over at once: an image, or one temporal patch of a video. A video's budget is spread
evenly over its frames, because a ranking across time would leave whole stretches of it without a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from transformers_litelvlm.models.pruned_inputs import PrunedImageFeatures
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
    kept: list[torch.Tensor] = [tokens] * num_frames
    indices: list[torch.Tensor] = [tokens] * num_frames
    similarity: list[torch.Tensor | None] = [None] * num_frames
    context: list[torch.Tensor | None] = [None] * num_frames
    for group in groups:
        features = torch.stack([frames[frame] for frame in group.frames])
        selection = _select(group, features, pruner, evidence)
        chosen = selection.indices.sort(dim=-1).values if token_order == "raster" else selection.indices
        for row, (frame, survivors) in enumerate(zip(group.frames, gather_tokens(features, chosen))):
            kept[frame], indices[frame] = survivors, chosen[row]
            similarity[frame] = None if selection.similarity is None else selection.similarity[row]
            context[frame] = None if selection.context is None else selection.context[row]

    counts = [t for t, _, _ in grids]
    offsets = [index * height * width for t, height, width in grids for index in range(t)]
    return PrunedImageFeatures(
        pooler_output=_join(kept, counts, dim=0),
        retained_indices=_join([rows + offset for rows, offset in zip(indices, offsets)], counts),
        similarity=_join(similarity, counts),
        context_scores=_join(context, counts),
        num_visual_tokens=[t * height * width for t, height, width in grids],
    )


def _select(
    group: FrameGroup,
    features: torch.Tensor,
    pruner: TokenPruner,
    evidence: Callable[[FrameGroup, torch.Tensor], VisualEvidence],
) -> Selection:
    """Methods are defined for 1 <= K < N; the rest needs none."""
    if 0 < group.budget < features.shape[1]:
        return pruner.select(evidence(group, features), group.budget)
    everything = torch.arange(group.budget, device=features.device)
    return Selection(everything.expand(len(features), -1))


def _join(of_frames: list, counts: Sequence[int], dim: int = -1) -> list:
    """What belongs to the frames of one image or video, in one tensor; `None` where a frame has nothing."""
    joined, start = [], 0
    for count in counts:
        parts = of_frames[start : start + count]
        joined.append(None if any(part is None for part in parts) else torch.cat(parts, dim=dim))
        start += count
    return joined
