"""Masks in the encodings that public data sets use: polygons, run lengths, bitmaps."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


def encode_mask(mask: np.ndarray) -> dict:
    """COCO run-length encoding of a mask, with text instead of bytes so that it can be stored as JSON.

    Args:
        mask: `(height, width)` booleans.

    Returns:
        `size`, the two lengths, and `counts`.
    """
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(length) for length in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_mask(encoded: dict) -> np.ndarray:
    """The mask of a COCO run-length encoding.

    Args:
        encoded: `size` and `counts`, compressed (`str` or `bytes`) or not (a list of lengths, as COCO stores crowds).

    Returns:
        `(height, width)` booleans.

    Raises:
        ValueError: the run lengths do not fill the size.
    """
    counts, size = encoded["counts"], [int(length) for length in encoded["size"]]
    if not isinstance(counts, str | bytes):
        if (total := int(np.sum(counts))) != size[0] * size[1]:
            raise ValueError(
                f"A run-length encoding covers {total} pixels, its `size` {size} has {size[0] * size[1]}."
            )
        return coco_mask.decode(coco_mask.frPyObjects({"size": size, "counts": list(counts)}, *size)).astype(bool)
    counts = counts.encode("ascii") if isinstance(counts, str) else counts
    return coco_mask.decode({"size": size, "counts": counts}).astype(bool)


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask of an object, whatever its annotation looks like.

    Several polygons or run-length encodings are one object in several parts: their union is taken. (Published
    evaluators add them up, which makes a 2 in overlaps; such pixels then count as false positives.)

    Args:
        segmentation: polygons `[[x, y, x, y, ...], ...]` in pixels, one such polygon, a COCO run-length encoding
            (compressed or not), a list of these, a picture or an array (nonzero is the object), or `None` or an empty
            list for an empty mask. A polygon of fewer than three points has no area and is left out.
        height, width: pixels of the image.

    Returns:
        `(height, width)` booleans.

    Raises:
        ValueError: the mask has another size than the image.
    """
    if isinstance(segmentation, Image.Image | np.ndarray):
        mask = np.asarray(segmentation) != 0
    elif isinstance(segmentation, dict):
        mask = decode_mask(segmentation)
    elif segmentation is None or len(segmentation) == 0:
        mask = np.zeros((height, width), dtype=bool)
    elif isinstance(segmentation[0], dict):
        mask = np.logical_or.reduce([decode_mask(part) for part in segmentation])
    else:
        polygons = [segmentation] if np.isscalar(segmentation[0]) else segmentation
        # pycocotools would take two points for a box.
        polygons = [[float(value) for value in polygon] for polygon in polygons if len(polygon) >= 6]
        if not polygons:
            return np.zeros((height, width), dtype=bool)
        mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)
    if mask.shape != (height, width):
        raise ValueError(f"The mask has shape {mask.shape}, the image {(height, width)} (height, width).")
    return mask
