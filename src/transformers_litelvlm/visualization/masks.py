"""Masks over an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from transformers_litelvlm.utils.image_io import ImageInput
from transformers_litelvlm.visualization.colours import Colour, mask_colour, text_colour
from transformers_litelvlm.visualization.layout import LegendEntry, canvas_and_size, to_array, with_legend


# How much of what no sentence means is white: enough to set it back, little enough to see it.
WHITENING = 0.1


def draw_masks(
    image: ImageInput, masks: Any, labels: Sequence[str] | None = None, scores: Sequence[float] | None = None
) -> Image.Image:
    """
    Draws masks over an image in distinct colours, with contours and numbers, and a legend under it.

    Args:
        image (`ImageInput`): As [`load_rgb_image`] and the processors read it: upright. It is not changed.
        masks (`np.ndarray`, `torch.Tensor` or sequence of them): Shape (num_masks, height, width) of the image;
            bool, or numbers, above 0 inside.
        labels (`Sequence[str]`, *optional*): One sentence per mask for the legend.
        scores (`Sequence[float]`, *optional*): One score per mask for the legend.

    Returns:
        `PIL.Image.Image`: The drawing, RGB, larger than a small image and smaller than a huge one.
    """
    canvas, size = canvas_and_size(image)
    masks = [checked_mask(mask, size) for mask in masks]
    for name, values in (("labels", labels), ("scores", scores)):
        if values is not None and len(values) != len(masks):
            raise ValueError(f"`{name}` must hold one entry per mask: {len(values)} given for {len(masks)} masks.")
    if masks:
        shown = [resize_mask(mask, canvas.size) for mask in masks]
        tint(canvas, ~np.any(shown, axis=0), (255, 255, 255), opacity=WHITENING)
    paint_masks(canvas, masks)
    entries = []
    for index, mask in enumerate(masks):
        text = labels[index] if labels is not None else "mask"
        notes = [] if scores is None else [f"score {float(scores[index]):.2f}"]
        notes += [] if mask.any() else ["nothing found"]
        entries.append(LegendEntry(mask_colour(index), f"{index}  {text}", ", ".join(notes)))
    return with_legend(canvas, entries)


def paint_masks(canvas: Image.Image, masks: Sequence[np.ndarray]) -> None:
    """Paints masks of any size on a picture of the same shape: tinted, with contours and their numbers."""
    large = [resize_mask(mask, canvas.size) for mask in masks]
    for index, mask in enumerate(large):
        tint(canvas, mask, mask_colour(index), opacity=0.4)
    for index, mask in enumerate(large):
        outline(canvas, mask, mask_colour(index))
    _write_numbers(canvas, large)


def checked_mask(mask: Any, size: tuple[int, int], name: str = "masks") -> np.ndarray:
    """A mask of the image of this (width, height) as a bool array: above 0 is inside."""
    mask = np.array(mask) if isinstance(mask, Image.Image) else to_array(mask)
    if mask.shape != size[::-1]:
        raise ValueError(f"`{name}` must have the shape of the upright image, {size[::-1]}, got {mask.shape}.")
    return mask if mask.dtype == bool else mask > 0


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A bool mask at another (width, height)."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR)) >= 128


def tint(canvas: Image.Image, mask: np.ndarray, colour: Colour, opacity: float) -> None:
    """Lays a colour over a mask of the size of the canvas."""
    canvas.paste(colour, mask=Image.fromarray((mask * (255 * opacity)).astype(np.uint8)))


def outline(canvas: Image.Image, mask: np.ndarray, colour: Colour) -> None:
    """A coloured line outside the edge of the mask and a white one inside it: one of them shows on any background."""
    width = max(2, round(max(canvas.size) / 240))
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    grown = np.asarray(picture.filter(ImageFilter.MaxFilter(2 * width + 1))) > 0
    shrunk = np.asarray(picture.filter(ImageFilter.MinFilter(2 * (width // 2) + 1))) > 0
    tint(canvas, mask & ~shrunk, (255, 255, 255), opacity=1.0)
    tint(canvas, grown & ~mask, colour, opacity=1.0)


def _write_numbers(canvas: Image.Image, masks: Sequence[np.ndarray]) -> None:
    """Writes the index of each mask on it; numbers of masks that coincide stand side by side."""
    radius = max(9, max(canvas.size) // 48)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(round(radius * 1.3))
    taken: list[tuple[int, int]] = []
    for index, mask in enumerate(masks):
        ys, xs = np.nonzero(mask)
        if ys.size == 0:
            continue
        # The pixel of the mask nearest to its centre of mass, which itself may lie outside of a ring or crescent.
        nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
        x = min(max(int(xs[nearest]), radius), max(radius, canvas.width - radius - 1))
        y = min(max(int(ys[nearest]), radius), max(radius, canvas.height - radius - 1))
        step = 2 * radius if x < canvas.width / 2 else -2 * radius
        while any((x - left) ** 2 + (y - top) ** 2 < 4 * radius**2 for left, top in taken):
            x += step
        taken.append((x, y))
        circle, colour = (x - radius, y - radius, x + radius, y + radius), mask_colour(index)
        draw.ellipse(circle, fill=colour, outline="white", width=2)
        draw.text((x, y), str(index), fill=text_colour(colour), font=font, anchor="mm", stroke_width=0.5)
