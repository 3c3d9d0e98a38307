"""How a picture is put together: its size, title, panels and legend."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from transformers_litelvlm.utils.image_io import ImageInput, load_rgb_image
from transformers_litelvlm.visualization.colours import GREY, INK, Colour


# Pictures are drawn with the longest side in this range: text and contours stay readable on a 64-pixel image, and the
# overlay of a 50-megapixel photo stays a file that opens at once. The masks themselves keep the size of the image.
LONGEST_SIDE = (768, 1600)
LEGEND_WIDTH = 480  # at least, so that a sentence fits under a narrow picture
GAP = 16  # pixels between panels


class LegendEntry(NamedTuple):
    """A line of a legend: a swatch, a text, and a note at the right edge."""

    colour: Colour
    text: str
    note: str = ""


def canvas_of(image: Image.Image) -> Image.Image:
    """A copy whose longest side lies in LONGEST_SIDE, of a picture in RGB; small ones grow by a whole factor."""
    longest = max(image.size)
    if longest < LONGEST_SIDE[0]:
        factor = float(math.ceil(LONGEST_SIDE[0] / longest))
    else:
        factor = min(1.0, LONGEST_SIDE[1] / longest)
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def canvas_and_size(image: ImageInput) -> tuple[Image.Image, tuple[int, int]]:
    """The canvas of a picture of any kind, and the (width, height) of the picture, upright."""
    upright = load_rgb_image(image)  # a copy, which is not kept while something is drawn
    return canvas_of(upright), upright.size


def to_array(values: Any) -> np.ndarray:
    """An array of a tensor, an array or a sequence."""
    if hasattr(values, "detach"):  # a tensor, without importing torch for it
        values = values.detach().cpu()
        # numpy has no bfloat16 and no floats of 8 bits.
        values = (values.float() if values.is_floating_point() and values.itemsize < 4 else values).numpy()
    elif isinstance(values, list | tuple):  # perhaps of tensors
        values = [to_array(value) for value in values]
    return np.asarray(values)


def side_by_side(pictures: Sequence[Image.Image], title: str = "", columns: int = 3) -> Image.Image:
    """
    Pictures on white in rows, each at the top of its place, under a title.

    Args:
        pictures (`Sequence[PIL.Image.Image]`): At least one, read as by [`load_rgb_image`].
        title (`str`, *optional*): One line; what does not fit is cut.
        columns (`int`, *optional*, defaults to 3): Pictures in a row.

    Returns:
        `PIL.Image.Image`: The drawing, RGB.
    """
    if not pictures:
        raise ValueError("`pictures` is empty: give at least one.")
    pictures = [load_rgb_image(picture) for picture in pictures]
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    widths = [max(row[column].width for row in rows if column < len(row)) for column in range(len(rows[0]))]
    heights = [max(picture.height for picture in row) for row in rows]
    width = sum(widths) + GAP * (len(widths) - 1)
    size = max(24, min(48, width // 40))
    top = 2 * size if title else 0
    drawing = Image.new("RGB", (width, top + sum(heights) + GAP * (len(heights) - 1)), "white")
    if title:
        font = ImageFont.load_default(size)
        text = _shorten(title, font, width - size)
        ImageDraw.Draw(drawing).text((size // 2, top // 2), text, fill=INK, font=font, anchor="lm", stroke_width=0.4)
    y = top
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for picture, column in zip(row, widths):
            drawing.paste(picture, (x, y))
            x += column + GAP
        y += height + GAP
    return drawing


def with_legend(canvas: Image.Image, entries: Sequence[LegendEntry]) -> Image.Image:
    """The picture on white with one line per entry under it."""
    if not entries:
        return canvas
    width = max(canvas.width, LEGEND_WIDTH)
    size = max(16, min(26, width // 36))
    font = ImageFont.load_default(size)
    margin, line = size // 2, round(size * 1.5)
    text_left = margin + size + margin
    rows = []
    for colour, text, note in entries:
        note_width = math.ceil(font.getlength(note)) + margin if note else 0
        rows.append((colour, _wrap(text, font, width - text_left - note_width - margin), note))
    height = canvas.height + 2 * margin + line * sum(len(lines) for _, lines, _ in rows)
    drawing = Image.new("RGB", (width, height), "white")
    drawing.paste(canvas, ((width - canvas.width) // 2, 0))
    draw = ImageDraw.Draw(drawing)
    y = canvas.height + margin
    for colour, lines, note in rows:
        swatch = (margin, y + (line - size) // 2, margin + size, y + (line + size) // 2)
        draw.rounded_rectangle(swatch, radius=size // 5, fill=colour, outline=(120, 120, 120))
        draw.text((width - margin, y + line // 2), note, fill=GREY, font=font, anchor="rm")
        for text in lines:
            draw.text((text_left, y + line // 2), text, fill=INK, font=font, anchor="lm")
            y += line
    return drawing


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Breaks a text into at most three lines that fit; what is longer ends in an ellipsis."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    if len(lines) > 3:
        lines = [*lines[:2], " ".join(lines[2:])]
    return [_shorten(line, font, width) for line in lines]


def _shorten(line: str, font: Any, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    # How many beginnings fit, the empty one included.
    fitting = bisect.bisect_right(range(len(line)), width, key=lambda end: font.getlength(line[:end] + "…"))
    return line[: max(0, fitting - 1)] + "…"
