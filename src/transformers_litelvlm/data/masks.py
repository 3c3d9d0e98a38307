"""Masks in the encodings that public data sets use: polygons, run lengths, bitmaps."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from transformers_litelvlm.utils.messages import quoted


# Pixels of a mask. A larger one is taken for damage: pictures of photographers have 100 million pixels.
LARGEST_MASK = 1 << 28
MOST_CHARACTERS = 7  # of a run length in COCO's text: 35 bits


def encode_mask(mask: np.ndarray) -> dict:
    """COCO run-length encoding of a mask, `(height, width)` booleans: `size`, the two lengths, and `counts`, which is
    text instead of bytes so that it can be stored as JSON."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(length) for length in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def box_around(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of a mask (H, W), the last two excluded; `None` for an empty one."""
    return Image.fromarray(mask).getbbox()


def decode_mask(encoded: dict) -> np.ndarray:
    """The mask of a COCO run-length encoding, `(height, width)` booleans.

    Args:
        encoded: `size` and `counts`, compressed (`str` or `bytes`) or not (a list of lengths, as COCO stores crowds).

    Raises:
        ValueError: the run lengths do not fill the size, are not run lengths, or are for more than [`LARGEST_MASK`]
            pixels. Nothing of the encoding reaches compiled code.
    """
    if not isinstance(encoded, dict) or not {"size", "counts"} <= set(encoded):
        raise ValueError(f"A run-length encoding must have `size` and `counts`, got {quoted(encoded)}.")
    counts = encoded["counts"]
    height, width = sides = _checked_size(encoded["size"], "a run-length encoding")
    runs = _decompressed(counts) if isinstance(counts, str | bytes) else _whole_numbers(counts, "`counts`")
    if runs.size and (runs.min() < 0 or runs.max() > LARGEST_MASK):
        raise ValueError(f"`counts` of a run-length encoding are no run lengths: {quoted(counts)}.")
    if (total := int(runs.sum())) != height * width:
        raise ValueError(f"A run-length encoding covers {total} pixels, its `size` {sides} has {height * width}.")
    # Runs of 0 and 1 in turn, column by column.
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _decompressed(counts: str | bytes) -> np.ndarray:
    """Run lengths of COCO's text: five bits in a character, lowest first, a bit for "more follows", and, from the
    fourth length on, the difference to the length before the last one."""
    counts = counts.encode("latin-1", errors="replace") if isinstance(counts, str) else counts
    values = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - ord("0")
    is_last = values & 0x20 == 0
    if len(values) == 0 or not is_last[-1] or values.min() < 0 or values.max() > 0x3F:
        raise ValueError(f"`counts` of a run-length encoding is damaged: {quoted(counts)}.")
    starts = np.concatenate(([0], np.flatnonzero(is_last)[:-1] + 1))
    lengths = np.diff(np.append(starts, len(values)))
    if lengths.max() > MOST_CHARACTERS:
        raise ValueError(f"`counts` of a run-length encoding is damaged: {quoted(counts)}.")
    shifts = 5 * (np.arange(len(values)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((values & 0x1F) << shifts, starts)
    runs -= np.where(values[is_last] & 0x10, 1 << 5 * lengths, 0)  # the sign
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask of an object, whatever its annotation looks like.

    Several polygons or run-length encodings are one object in several parts: their union is taken. (Published
    evaluators add them up, which makes a 2 in overlaps; such pixels then count as false positives.)

    Args:
        segmentation: polygons `[[x, y, x, y, ...], ...]` in pixels, one such polygon, a COCO run-length encoding
            (compressed or not), a list of these, a picture or an array (nonzero is the object), also as a list of its
            rows, as tables return it, or `None` or an empty list for an empty mask. A polygon of fewer than three
            points has no area and is left out.
        height, width: pixels of the image.

    Returns:
        `(height, width)` booleans.

    Raises:
        ValueError: the mask has another size than the image, or the annotation is not one of these. Points must lie
            within twice the longer side of the image: data sets have some a little outside.
    """
    height, width = _checked_size([height, width], "an image")  # of a stranger's file, too
    if isinstance(segmentation, Image.Image | np.ndarray):
        mask = np.asarray(segmentation) != 0
    elif isinstance(segmentation, dict):
        mask = decode_mask(segmentation)
    elif segmentation is None or len(parts := _as_list(segmentation, "A segmentation")) == 0:
        mask = np.zeros((height, width), dtype=bool)
    elif _is_array(parts, height, width):
        mask = np.asarray(parts) != 0
    elif isinstance(parts[0], dict):
        decoded = [decode_mask(part) for part in parts]
        if len({part.shape for part in decoded}) > 1:
            raise ValueError(f"Parts of a mask have several sizes: {sorted({part.shape for part in decoded})}.")
        mask = np.logical_or.reduce(decoded)
    else:
        points = [checked_points(p, height, width) for p in ([parts] if np.isscalar(parts[0]) else parts)]
        if len(points) > 2 and all(len(polygon) == 2 for polygon in points):  # not so many parts of one point each
            raise ValueError(f"A polygon must be numbers `[x, y, x, y, ...]`, got pairs: {quoted(segmentation)}.")
        # pycocotools would take two points for a box.
        polygons = [polygon for polygon in points if len(polygon) >= 6]
        if not polygons:
            return np.zeros((height, width), dtype=bool)
        numbers = np.concatenate(polygons)
        is_odd = (numbers % 1).any() or len(polygons) > 1  # one part may be the pixel in the corner
        if is_odd and numbers.min() >= 0 and numbers.max() <= 1 < max(height, width):
            wrong = "fractions of the image, or the rows of a mask of another size"
            raise ValueError(f"A polygon must be in pixels, got {wrong}: {quoted(segmentation)}.")
        encoded = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
        mask = coco_mask.decode(coco_mask.merge(encoded)).astype(bool)
    if mask.shape != (height, width):
        raise ValueError(f"The mask has shape {mask.shape}, the image {(height, width)} (height, width).")
    return mask


def _is_array(parts: list, height: int, width: int) -> bool:
    """Whether it is an array as a list of rows: as large as the image, or of booleans, which no polygon has."""
    if not all(isinstance(row, list | tuple | np.ndarray) for row in parts):
        return False
    is_whole = len(parts) == height and {len(row) for row in parts} == {width}
    return is_whole or any(isinstance(row[0], bool | np.bool_) for row in parts if len(row))


def checked_points(points: Any, height: int, width: int, in_pairs: bool = False) -> np.ndarray:
    """Points of a polygon whose numbers compiled code may see, `[x, y, x, y, ...]` or, `in_pairs`, `[[x, y], ...]`.
    Raises ValueError if they are none, or not within twice the longer side of the image."""
    try:
        numbers = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"A polygon must be numbers, got {quoted(points)}.") from error
    if numbers.ndim == 0 or numbers.shape[1:] != ((2,) if in_pairs else ()) or numbers.size % 2:
        wanted = "[[x, y], ...]" if in_pairs else "[x, y, x, y, ...]"
        raise ValueError(f"A polygon must be numbers `{wanted}`, got {quoted(points)}.")
    if not (np.abs(numbers) <= 2 * max(height, width)).all():  # NaN neither
        raise ValueError(f"A polygon lies outside the image of {height} x {width} pixels: {quoted(points)}.")
    return numbers


def _checked_size(size: Any, of: str) -> list[int]:
    sides = _whole_numbers(size, "`size`", of).tolist()
    if len(sides) != 2 or min(sides) < 1 or sides[0] * sides[1] > LARGEST_MASK:
        raise ValueError(
            f"`size` of {of} must be a height and a width of at most {LARGEST_MASK} pixels, got {quoted(size)}."
        )
    return sides


def _whole_numbers(values: Any, name: str, of: str = "a run-length encoding") -> np.ndarray:
    numbers = np.asarray(_as_list(values, name))
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(f"{name} of {of} must be whole numbers, got {quoted(values)}.")
    return numbers.astype(np.int64)


def _as_list(values: Any, name: str) -> list:
    if not isinstance(values, list | tuple | np.ndarray):
        raise ValueError(f"{name} must be a list, got {quoted(values)}.")
    return list(values)
