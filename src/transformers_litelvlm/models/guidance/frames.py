"""Frames of images and videos that differ in size: those of one shape and budget are selected from together.

A frame is what the tower attends over at once: an image, or one temporal patch of a video. A video's budget is spread
evenly over its frames, because a ranking across time would leave whole stretches of it without a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FrameGroup:
    """Frames of the same grid and budget, which are selected from as one batch.

    Attributes:
        media: which image or video each of the B frames belongs to.
        frames: index of each frame among all frames.
        grid: (h, w) visual tokens of each of them.
        budget: how many of the h * w tokens of each are kept.
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
    """Groups for media of `grids` (t, h, w) visual tokens, of which `budgets` are kept."""
    groups: dict[tuple[int, int, int], FrameGroup] = {}
    frame = 0
    for media, ((num_frames, height, width), budget) in enumerate(zip(grids, budgets, strict=True)):
        for share in spread_budget(budget, num_frames):
            group = groups.setdefault((height, width, share), FrameGroup([], [], (height, width), share))
            group.media.append(media)
            group.frames.append(frame)
            frame += 1
    return list(groups.values())
