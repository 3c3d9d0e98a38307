"""Which visual tokens were kept, over the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from transformers_litelvlm.utils.image_io import ImageInput
from transformers_litelvlm.utils.resizing import resized
from transformers_litelvlm.visualization.colours import INK, KEPT, NEVER_SEEN, PRUNED, WHITE, Colour, mask_colour
from transformers_litelvlm.visualization.layout import LegendEntry, canvas_and_size, to_array, with_legend
from transformers_litelvlm.visualization.masks import checked_mask, outline, resize_mask


ROWS_AT_ONCE = 256

Region = tuple[float, float, float, float]


def seen_region(
    image_size: tuple[int, int],
    image_processor: Any,
    grid: tuple[int, int] | None = None,
    patch_size: int | None = None,
) -> Region:
    """
    The part of an image that the vision tower saw, from the settings of its image processor.

    CLIP's image processor resizes the shortest edge and crops the centre: of a picture that is not square, the ends of
    the longer side never reach the model. Qwen's image processors resize all of the image.

    Args:
        image_size (`tuple[int, int]`): (width, height) of the upright picture, as `load_rgb_image(image).size`.
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
    if size and {"shortest_edge", "longest_edge"} <= size.keys():  # Qwen's: limits of the area, and nothing is cropped
        return 0.0, 0.0, float(width), float(height)
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


def region_of(processor: Any, image_size: tuple[int, int], grid: tuple[int, int]) -> Region:
    """
    The part of an image that the visual tokens cover, for a processor of this package.

    Args:
        processor: It says whether it crops.
        image_size (`tuple[int, int]`): (width, height) of the upright picture.
        grid (`tuple[int, int]`): (rows, columns) of visual tokens.

    Returns:
        `tuple[float, float, float, float]`: As [`seen_region`].
    """
    if processor.sees_whole_picture:
        return 0.0, 0.0, float(image_size[0]), float(image_size[1])
    return seen_region(image_size, processor.image_processor, grid, processor.patch_size)


def draw_retained_tokens(
    image: ImageInput,
    retained_indices: Any,
    grid: tuple[int, int],
    region: Region | None = None,
    masks: Any = None,
    merge_weights: Any = None,
    labels: Sequence[str | None] | None = None,
    chosen_by: Any = None,
) -> Image.Image:
    """
    Draws which visual tokens were kept: their patches as they are, pruned ones dimmed, the rest hatched.

    A token has a frame in the colour of the sentence that chose it (one in the other, if several did), and a white one
    if it is context, where the method says so. If tokens were merged, a patch is as bright as the square root of its
    share in the kept token it has the largest share in: half of a token is still easy to see, one of hundreds is not.

    Args:
        image: As in [`draw_masks`].
        retained_indices (`Sequence[int]`, `np.ndarray`, `torch.Tensor` or `None`): 0-based raster indices (row by row)
            of the tokens kept; `None` means that none were pruned.
        grid (`tuple[int, int]`): (rows, columns) of visual tokens.
        region (`tuple[float, float, float, float]`, *optional*): What the vision tower saw, (left, top, right, bottom)
            in pixels of the image, see [`seen_region`]. Defaults to the whole image.
        masks (*optional*): As in [`draw_masks`]; their contours are drawn.
        merge_weights (`np.ndarray` or `torch.Tensor`, *optional*): How much of each visual token is in each kept one,
            shape (kept tokens, visual tokens).
        labels (`Sequence[str]`, *optional*): One sentence per mask, for the legend, or `None` to leave one out.
        chosen_by (`np.ndarray` or `torch.Tensor`, *optional*): Which of the visual tokens each sentence chose, bool of
            shape (sentences, visual tokens), see [`Pruner.chosen_by`]; kept tokens that none chose are context.

    Returns:
        `PIL.Image.Image`: The drawing, RGB.
    """
    total = grid[0] * grid[1]
    is_kept = np.ones(total, dtype=bool)
    if retained_indices is not None:
        is_kept = np.isin(np.arange(total), checked_indices(retained_indices, grid))
    level = is_kept.astype(float)
    if merge_weights is not None:
        weights = _rows(merge_weights, "merge_weights", "kept tokens", total).astype(float)
        level = np.sqrt((weights / weights.sum(axis=1, keepdims=True).clip(min=1e-9)).max(axis=0, initial=0))
    sources = None if chosen_by is None else is_kept & _rows(chosen_by, "chosen_by", "sentences", total).astype(bool)
    canvas, size = canvas_and_size(image)
    region = region or (0.0, 0.0, float(size[0]), float(size[1]))
    cell = cells_of(canvas.size, size, grid, region)
    canvas.paste(paint_tokens(np.asarray(canvas), cell, level))
    if sources is not None and not is_kept.all():
        _frame_tokens(canvas, sources, is_kept, boxes_of(canvas.size, size, grid, region))
    for index, mask in enumerate(masks if masks is not None else ()):
        outline(canvas, resize_mask(checked_mask(mask, size), canvas.size), mask_colour(index))
    entries = _sentences(labels or [], sources) + _counts(is_kept, sources, merged=merge_weights is not None)
    if (cell < 0).any():
        entries.append(LegendEntry(NEVER_SEEN, "never seen by the vision tower (cropped away before it)"))
    return with_legend(canvas, entries)


def checked_indices(retained_indices: Any, grid: tuple[int, int]) -> np.ndarray:
    indices = np.asarray(to_array(retained_indices), dtype=np.int64).reshape(-1)
    total = grid[0] * grid[1]
    if indices.size and not (0 <= indices.min() and indices.max() < total):
        raise ValueError(
            f"`retained_indices` must lie in [0, {total}) for a grid of {grid[0]} x {grid[1]} visual tokens, got"
            f" {indices.min()} to {indices.max()}."
        )
    return indices


def _rows(values: Any, name: str, rows: str, total: int) -> np.ndarray:
    values = to_array(values)
    if values.ndim != 2 or values.shape[1] != total:
        raise ValueError(f"`{name}` must be of shape ({rows}, {total} visual tokens), got {values.shape}.")
    return values


def _sentences(labels: Sequence[str | None], sources: np.ndarray | None) -> list[LegendEntry]:
    """Each sentence in the colour of its mask, with how many tokens it chose."""
    notes = [""] * len(labels) if sources is None else [_tokens(int(of_one.sum())) for of_one in sources]
    return [
        LegendEntry(mask_colour(index), f"{index}  {text}", notes[index])
        for index, text in enumerate(labels)
        if text is not None
    ]


def _counts(is_kept: np.ndarray, sources: np.ndarray | None, merged: bool) -> list[LegendEntry]:
    """Kept tokens, or only those of context where the others stand beside their sentences, and pruned ones."""
    total, kept = len(is_kept), int(is_kept.sum())
    if sources is None or kept == total:
        entries = [LegendEntry(KEPT, f"{kept} of {total} visual tokens kept", f"{kept / total:.0%}")]
    else:
        context = int((is_kept & ~sources.any(axis=0)).sum())
        entries = [LegendEntry(KEPT, "context: kept for the whole scene", _tokens(context))] if context else []
    if kept < total:
        what = "merged into them (the brighter, the more) or pruned" if merged else "pruned"
        entries.append(LegendEntry(PRUNED, what, _tokens(total - kept)))
    return entries


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"


def _frame_tokens(canvas: Image.Image, sources: np.ndarray, is_kept: np.ndarray, boxes: np.ndarray) -> None:
    """Frames inside the kept patches: one for each sentence that chose the token, white on black for context."""
    draw = ImageDraw.Draw(canvas)
    for token in np.flatnonzero(is_kept):
        colours: list[Colour] = [mask_colour(int(index)) for index in np.flatnonzero(sources[:, token])]
        _frame(draw, boxes[token], colours or [WHITE, INK])


def _frame(draw: ImageDraw.ImageDraw, box: np.ndarray, colours: Sequence[Colour]) -> None:
    left, top, right, bottom = (int(side) for side in box)
    side = min(right - left, bottom - top)
    width = max(2, side // 12) if len(colours) < 3 else max(1, side // (3 * len(colours)))
    for colour in colours:
        if right - left < 2 * width or bottom - top < 2 * width:
            return
        thickness = 1 if colour == INK else width
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=thickness)
        left, top, right, bottom = left + thickness, top + thickness, right - thickness, bottom - thickness


def _as_dict(size: Any) -> dict[str, int]:
    return {key: value for key, value in dict(size or {}).items() if value}


def _crop_start(length: int, cropped: int) -> int:
    """Where a centre crop starts; negative if the picture was padded on both sides instead."""
    return int((length - cropped) / 2) if length >= cropped else -((cropped - length) // 2)


def cells_of(
    canvas_size: tuple[int, int], image_size: tuple[int, int], grid: tuple[int, int], region: Region
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


def boxes_of(
    canvas_size: tuple[int, int], image_size: tuple[int, int], grid: tuple[int, int], region: Region
) -> np.ndarray:
    """Where each visual token lies on the canvas: (tokens, 4) pixels, left, top, right, bottom, ends not included."""
    left, top, right, bottom = region
    xs = (left + (right - left) * np.arange(grid[1] + 1) / grid[1]) * canvas_size[0] / image_size[0]
    ys = (top + (bottom - top) * np.arange(grid[0] + 1) / grid[0]) * canvas_size[1] / image_size[1]
    # A pixel belongs to the token that its centre lies in, as in `cells_of`.
    xs, ys = np.ceil(xs - 0.5).astype(int), np.ceil(ys - 0.5).astype(int)
    return np.array([(xs[x], ys[y], xs[x + 1], ys[y + 1]) for y in range(grid[0]) for x in range(grid[1])])


def paint_tokens(pixels: np.ndarray, cell: np.ndarray, level: np.ndarray) -> Image.Image:
    """Patches of a canvas (height, width, 3) between dimmed (level 0) and as they are (level 1); hatched where no
    token is. `cell` is from [`cells_of`], and `level` has one number per visual token."""
    seen, level = cell >= 0, level[cell.clip(min=0)]
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
