"""Pictures for people: masks over the image, and which visual tokens were kept."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from transformers_litelvlm.utils.resizing import resized


Colour = tuple[int, int, int]

# Pictures are drawn with the longest side in this range: text and contours stay readable on a 64-pixel image, and the
# overlay of a 50-megapixel photo stays a file that opens at once. The masks themselves keep the size of the image.
LONGEST_SIDE = (768, 1600)
ROWS_AT_ONCE = 256
LEGEND_WIDTH = 480  # at least, so that a sentence fits under a narrow picture

# Okabe and Ito's colours (told apart by colour-blind readers), strongest contrast first.
PALETTE: tuple[Colour, ...] = (
    (230, 97, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 75, 160),
    (240, 200, 20),
    (86, 180, 233),
    (140, 80, 30),
)
INK: Colour = (32, 33, 36)
NEVER_SEEN: Colour = (176, 178, 184)


def mask_colour(index: int) -> Colour:
    """The colour of the mask with this index; no two of the first hundred are the same."""
    if index < len(PALETTE):
        return PALETTE[index]
    hue = ((index - len(PALETTE)) * 0.618034 + 0.03) % 1.0  # golden ratio: neighbours lie far apart
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95 if index % 2 else 0.7)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_masks(
    image: Image.Image,
    masks: Any,
    labels: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
) -> Image.Image:
    """
    Draws masks over an image in distinct colours, with contours, and a legend under it.

    Args:
        image (`PIL.Image.Image`): The picture, in any mode and size. It is not changed.
        masks (`np.ndarray`, `torch.Tensor` or sequence of them): Shape (num_masks, height, width) of the image;
            bool, or numbers, above 0 inside.
        labels (`Sequence[str]`, *optional*): One sentence per mask for the legend.
        scores (`Sequence[float]`, *optional*): One score per mask for the legend.

    Returns:
        `PIL.Image.Image`: The drawing, RGB, larger than a small image and smaller than a huge one.
    """
    masks = [_to_bool_array(mask) for mask in masks]
    for name, values in (("labels", labels), ("scores", scores)):
        if values is not None and len(values) != len(masks):
            raise ValueError(f"`{name}` must hold one entry per mask: {len(values)} given for {len(masks)} masks.")
    for mask in masks:
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"`masks` must have the shape of the image, {(image.height, image.width)}, got {mask.shape}."
            )
    canvas = _canvas(image)
    large = [_resize_mask(mask, canvas.size) for mask in masks]
    if large:
        _tint(canvas, ~np.any(large, axis=0), (255, 255, 255), opacity=0.3)
    for index, mask in enumerate(large):
        _tint(canvas, mask, mask_colour(index), opacity=0.4)
    for index, mask in enumerate(large):
        _outline(canvas, mask, mask_colour(index))
    if len(large) > 1:
        _write_numbers(canvas, large)
    entries = []
    for index, mask in enumerate(masks):
        text = labels[index] if labels is not None else f"mask {index}"
        notes = [] if scores is None else [f"score {float(scores[index]):.2f}"]
        notes += [] if mask.any() else ["nothing found"]
        entries.append((mask_colour(index), f"{index}  {text}" if len(masks) > 1 else text, ", ".join(notes)))
    return _with_legend(canvas, entries)


def seen_region(
    image_size: tuple[int, int],
    image_processor: Any,
    grid: tuple[int, int] | None = None,
    patch_size: int | None = None,
) -> tuple[float, float, float, float]:
    """
    The part of an image that the vision tower saw, from the settings of its image processor.

    CLIP's image processor resizes the shortest edge and crops the centre: of a picture that is not square, the ends of
    the longer side never reach the model.

    Args:
        image_size (`tuple[int, int]`): (width, height) of the picture, as `PIL.Image.Image.size`.
        image_processor: Any image processor with `do_resize`, `size`, `do_center_crop`, `crop_size`.
        grid (`tuple[int, int]`, *optional*): (rows, columns) of visual tokens, and
        patch_size (`int`, *optional*): side of a patch in pixels: what lies beyond the last whole patch is not seen.

    Returns:
        `tuple[float, float, float, float]`: (left, top, right, bottom) in pixels of the picture. It reaches beyond the
        picture if the image processor padded it.
    """
    width, height = image_size
    resized_width, resized_height = width, height
    size = _as_dict(getattr(image_processor, "size", None))
    if getattr(image_processor, "do_resize", True) and size:
        after = resized(width, height, size)
        if after is None:
            raise ValueError(
                "`image_processor.size` must hold one of 'shortest_edge' and 'longest_edge', or 'height' and 'width', "
                f"got {size}."
            )
        resized_width, resized_height = after
    seen_width, seen_height, crop_left, crop_top = resized_width, resized_height, 0, 0
    crop = _as_dict(getattr(image_processor, "crop_size", None))
    if getattr(image_processor, "do_center_crop", False) and crop:
        seen_width, seen_height = crop["width"], crop["height"]
        crop_left, crop_top = _crop_start(resized_width, seen_width), _crop_start(resized_height, seen_height)
    if grid is not None and patch_size is not None:
        seen_height, seen_width = min(seen_height, grid[0] * patch_size), min(seen_width, grid[1] * patch_size)
    scale_x, scale_y = width / resized_width, height / resized_height
    return (
        crop_left * scale_x,
        crop_top * scale_y,
        (crop_left + seen_width) * scale_x,
        (crop_top + seen_height) * scale_y,
    )


def draw_retained_tokens(
    image: Image.Image,
    retained_indices: Any,
    grid: tuple[int, int],
    region: tuple[float, float, float, float] | None = None,
    masks: Any = None,
    merge_weights: Any = None,
) -> Image.Image:
    """
    Draws which visual tokens were kept: their patches as they are, pruned ones dimmed, the rest hatched.

    If tokens were merged, a patch is as bright as the square root of its share in the kept token it has the largest
    share in: half of a token is still easy to see, one of hundreds is not.

    Args:
        image (`PIL.Image.Image`): The picture, in any mode and size. It is not changed.
        retained_indices (`Sequence[int]`, `np.ndarray`, `torch.Tensor` or `None`): 0-based raster indices (row by row)
            of the tokens kept; `None` means that none were pruned.
        grid (`tuple[int, int]`): (rows, columns) of visual tokens.
        region (`tuple[float, float, float, float]`, *optional*): What the vision tower saw, (left, top, right, bottom)
            in pixels of the image, see [`seen_region`]. Defaults to the whole image.
        masks (*optional*): As in [`draw_masks`]; their contours are drawn.
        merge_weights (`np.ndarray` or `torch.Tensor`, *optional*): How much of each visual token is in each kept one,
            shape (kept tokens, visual tokens).

    Returns:
        `PIL.Image.Image`: The drawing, RGB.
    """
    rows, columns = grid
    total = num_kept = rows * columns
    level = np.ones(total)
    if retained_indices is not None:
        indices = np.asarray(_to_array(retained_indices), dtype=np.int64).reshape(-1)
        if indices.size and not (0 <= indices.min() and indices.max() < total):
            raise ValueError(
                f"`retained_indices` must lie in [0, {total}) for a grid of {rows} x {columns} visual tokens, got"
                f" {indices.min()} to {indices.max()}."
            )
        num_kept = len(np.unique(indices))
        level = np.isin(np.arange(total), indices).astype(float)
    if merge_weights is not None:
        weights = _to_array(merge_weights).astype(float)
        level = np.sqrt((weights / weights.sum(axis=1, keepdims=True).clip(min=1e-9)).max(axis=0))
    canvas = _canvas(image)
    cell = _cells(canvas.size, image.size, grid, region or (0, 0, *image.size))
    seen = cell >= 0
    canvas.paste(_token_picture(np.asarray(canvas), cell, seen, level[cell.clip(min=0)]))
    for index, mask in enumerate(masks if masks is not None else ()):
        _outline(canvas, _resize_mask(_to_bool_array(mask), canvas.size), mask_colour(index))
    entries = [((250, 250, 250), f"{num_kept} of {total} visual tokens kept", f"{num_kept / total:.0%}")]
    if num_kept < total:
        what = "pruned" if merge_weights is None else "merged into them (the brighter, the more) or pruned"
        entries.append(((52, 54, 60), f"{total - num_kept} {what}", ""))
    if not seen.all():
        entries.append((NEVER_SEEN, "never seen by the vision tower (cropped away before it)", ""))
    return _with_legend(canvas, entries)


def _to_array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor, without importing torch for it
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _to_bool_array(mask: Any) -> np.ndarray:
    mask = np.array(mask) if isinstance(mask, Image.Image) else _to_array(mask)
    return mask if mask.dtype == bool else mask > 0


def _as_dict(size: Any) -> dict[str, int]:
    return {key: value for key, value in dict(size or {}).items() if value}


def _crop_start(length: int, cropped: int) -> int:
    """Where a centre crop starts; negative if the picture was padded on both sides instead."""
    return int((length - cropped) / 2) if length >= cropped else -((cropped - length) // 2)


def _canvas(image: Image.Image) -> Image.Image:
    """A copy in RGB whose longest side lies in LONGEST_SIDE; small pictures grow by a whole factor."""
    longest = max(image.size)
    if longest < LONGEST_SIDE[0]:
        factor = float(math.ceil(LONGEST_SIDE[0] / longest))
    else:
        factor = min(1.0, LONGEST_SIDE[1] / longest)
    width, height = (max(1, round(side * factor)) for side in image.size)
    in_rgb = image if image.mode == "RGB" else image.convert("RGB")  # which would copy all of a large picture
    return in_rgb.resize((width, height), Image.Resampling.BICUBIC)


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR)) >= 128


def _tint(canvas: Image.Image, mask: np.ndarray, colour: Colour, opacity: float) -> None:
    canvas.paste(colour, mask=Image.fromarray((mask * (255 * opacity)).astype(np.uint8)))


def _outline(canvas: Image.Image, mask: np.ndarray, colour: Colour) -> None:
    """A coloured line outside the edge of the mask and a white one inside it: one of them shows on any background."""
    width = max(2, round(max(canvas.size) / 320))
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    grown = np.asarray(picture.filter(ImageFilter.MaxFilter(2 * width + 1))) > 0
    shrunk = np.asarray(picture.filter(ImageFilter.MinFilter(2 * (width // 2) + 1))) > 0
    _tint(canvas, mask & ~shrunk, (255, 255, 255), opacity=1.0)
    _tint(canvas, grown & ~mask, colour, opacity=1.0)


def _write_numbers(canvas: Image.Image, masks: Sequence[np.ndarray]) -> None:
    """Writes the index of each mask on it; numbers of masks that coincide stand side by side."""
    radius = max(9, max(canvas.size) // 60)
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
        circle = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(circle, fill=mask_colour(index), outline="white", width=2)
        draw.text((x, y), str(index), fill="white", font=font, anchor="mm", stroke_width=1)


def _cells(
    canvas_size: tuple[int, int],
    image_size: tuple[int, int],
    grid: tuple[int, int],
    region: tuple[float, float, float, float],
) -> np.ndarray:
    """Raster index of the visual token that saw each pixel of the canvas, -1 if none did: (height, width)."""
    left, top, right, bottom = region
    axes = []
    for pixels, length, start, end, count in (
        (canvas_size[1], image_size[1], top, bottom, grid[0]),
        (canvas_size[0], image_size[0], left, right, grid[1]),
    ):
        centres = (np.arange(pixels) + 0.5) * length / pixels
        index = np.floor((centres - start) / (end - start) * count).astype(np.int64)
        axes.append(np.where((index >= 0) & (index < count), index, -1))
    row, column = axes[0][:, None], axes[1][None, :]
    return np.where((row >= 0) & (column >= 0), row * grid[1] + column, -1)


def _token_picture(pixels: np.ndarray, cell: np.ndarray, seen: np.ndarray, level: np.ndarray) -> Image.Image:
    """Patches between dimmed (level 0) and as they are (level 1)."""
    # Borders between cells: bright where a kept patch meets a pruned one, faint elsewhere.
    edge, front = _borders(cell) & seen, _borders(seen & (level > 0.5))
    drawn = np.empty_like(pixels)
    for top in range(0, len(pixels), ROWS_AT_ONCE):  # floating-point copies of the whole take hundreds of megabytes
        rows = slice(top, top + ROWS_AT_ONCE)
        grey = pixels[rows].mean(axis=-1, keepdims=True)
        dimmed = 0.28 * (0.6 * grey + 0.4 * pixels[rows]) + 14
        picture = dimmed + level[rows, :, None] * (pixels[rows] - dimmed)
        y, x = np.indices(cell[rows].shape)
        stripe = (((x + y + top) // 6) % 2 == 0)[..., None]
        hatched = np.where(stripe, 0.4 * grey + 90, 0.4 * grey + 140)
        picture = np.where(seen[rows, :, None], picture, hatched)
        picture = np.where(edge[rows, :, None], 0.82 * picture + 0.18 * 255, picture)
        picture = np.where(front[rows, :, None], 255, picture)
        drawn[rows] = np.clip(picture, 0, 255).astype(np.uint8)
    return Image.fromarray(drawn)


def _borders(values: np.ndarray) -> np.ndarray:
    """Where a pixel differs from the one above it, or from the one to its left."""
    below = np.diff(values, axis=0, prepend=values[:1]) != 0
    right = np.diff(values, axis=1, prepend=values[:, :1]) != 0
    return below | right


def _with_legend(canvas: Image.Image, entries: Sequence[tuple[Colour, str, str]]) -> Image.Image:
    """The picture on white with one line per entry under it: a swatch, a text, and a note at the right edge."""
    if not entries:
        return canvas
    width = max(canvas.width, LEGEND_WIDTH)
    size = max(16, min(26, width // 40))
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
        draw.text((width - margin, y + line // 2), note, fill=(95, 99, 104), font=font, anchor="rm")
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
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
