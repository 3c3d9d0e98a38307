"""The size of a picture after the resizing of an image processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def resized(width: int, height: int, size: Mapping[str, int | None]) -> tuple[int, int] | None:
    """(width, height) of a picture after resizing, with the rounding of Transformers' image processors.

    Args:
        width, height: of the picture, in pixels.
        size: `size` of the image processor: "shortest_edge", as CLIP has it, "longest_edge", as SAM has it, or
            "height" and "width".

    Returns:
        `None` for any other rule.
    """
    rule: dict[str, Any] = {key: value for key, value in dict(size).items() if value}
    if rule.keys() == {"shortest_edge"}:
        long = int(rule["shortest_edge"] * max(width, height) / min(width, height))
        return (rule["shortest_edge"], long) if width <= height else (long, rule["shortest_edge"])
    if rule.keys() == {"longest_edge"}:
        scale = rule["longest_edge"] / max(width, height)
        return int(width * scale + 0.5), int(height * scale + 0.5)
    if rule.keys() == {"height", "width"}:
        return rule["width"], rule["height"]
    return None
