"""Scores of the visual tokens as a heat map."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from transformers_litelvlm.utils.image_io import ImageInput
from transformers_litelvlm.visualization.colours import INK, Colour, heat_colours
from transformers_litelvlm.visualization.layout import LegendEntry, canvas_and_size, to_array, with_legend
from transformers_litelvlm.visualization.masks import checked_mask, outline, resize_mask
from transformers_litelvlm.visualization.tokens import Region, boxes_of, cells_of, checked_indices


def draw_scores(
    image: ImageInput,
    scores: Any,
    grid: tuple[int, int],
    region: Region | None = None,
    retained_indices: Any = None,
    mask: Any = None,
    label: LegendEntry | None = None,
) -> Image.Image:
    """
    Draws one score per visual token as a heat map with a colour bar; kept tokens have a white frame.

    Args:
        image: As in [`draw_masks`]. The map has its size, and is grey where no token is.
        scores (`np.ndarray`, `torch.Tensor` or sequence): One number per visual token, row by row.
        grid (`tuple[int, int]`): (rows, columns) of visual tokens.
        region (`tuple[float, float, float, float]`, *optional*): As in [`draw_retained_tokens`].
        retained_indices (*optional*): As in [`draw_retained_tokens`]; without it, no token has a frame.
        mask (*optional*): One mask as in [`draw_masks`], whose contour is drawn in the colour of the label.
        label (`LegendEntry`, *optional*): What the scores are, with the colour of the sentence.

    Returns:
        `PIL.Image.Image`: The drawing, RGB. Its colours lie between the lowest and the highest score.
    """
    values = np.asarray(to_array(scores), dtype=np.float64).reshape(-1)
    if values.size != grid[0] * grid[1] or not np.isfinite(values).all():
        raise ValueError(
            f"`scores` must be {grid[0] * grid[1]} finite numbers for a grid of {grid[0]} x {grid[1]} visual tokens,"
            f" got {values.size}{'' if np.isfinite(values).all() else ', not all finite'}."
        )
    low, high = float(values.min()), float(values.max())
    canvas, size = canvas_and_size(image)
    region = region or (0.0, 0.0, float(size[0]), float(size[1]))
    cell = cells_of(canvas.size, size, grid, region)
    colours = heat_colours((values - low) / ((high - low) or 1.0))
    picture = np.where((cell >= 0)[..., None], colours[cell.clip(min=0)], 200.0)
    canvas.paste(Image.fromarray(picture.round().astype(np.uint8)))
    draw = ImageDraw.Draw(canvas)
    boxes = boxes_of(canvas.size, size, grid, region)
    for token in () if retained_indices is None else checked_indices(retained_indices, grid):
        left, top, right, bottom = (int(side) for side in boxes[token])
        if min(right - left, bottom - top) < 3:
            continue  # of a narrow picture: no room for a frame
        width = max(2, (right - left) // 20)
        draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline="black", width=width + 1)
        draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline="white", width=width)
    colour: Colour = INK if label is None else label.colour
    if mask is not None:
        outline(canvas, resize_mask(checked_mask(mask, size, "mask"), canvas.size), colour)
    return _with_bar(with_legend(canvas, [] if label is None else [label]), canvas.width, low, high)


def _with_bar(drawing: Image.Image, width: int, low: float, high: float) -> Image.Image:
    """The drawing with a colour bar under it, between the lowest and the highest score."""
    size = max(16, min(26, width // 36))
    font = ImageFont.load_default(size)
    margin, numbers = size // 2, (f"{low:.3g}", f"{high:.3g}")
    taller = Image.new("RGB", (drawing.width, drawing.height + 2 * size), "white")
    taller.paste(drawing)
    draw = ImageDraw.Draw(taller)
    middle = drawing.height + size
    start = round(2 * margin + font.getlength(numbers[0]))
    end = max(start + 2, round(drawing.width - 2 * margin - font.getlength(numbers[1])))
    bar = heat_colours(np.linspace(0, 1, end - start))[None].repeat(size, axis=0)
    taller.paste(Image.fromarray(bar.round().astype(np.uint8)), (start, middle - size // 2))
    draw.text((margin, middle), numbers[0], fill=INK, font=font, anchor="lm")
    draw.text((drawing.width - margin, middle), numbers[1], fill=INK, font=font, anchor="rm")
    return taller
