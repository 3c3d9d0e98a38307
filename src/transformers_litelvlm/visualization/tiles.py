"""Visual tokens of an image in tiles, on the raster that all tiles make together; see `processor.grid_on_picture`."""

from __future__ import annotations

from typing import Any

import numpy as np

from transformers_litelvlm.visualization.layout import to_array


def kept_on_picture(indices: Any, places: np.ndarray | None) -> np.ndarray:
    """Places of kept tokens (K,); those of a thumbnail are left out. `places` (N,) has the place of each visual token,
    -1 for none; it is `None` if they are in order."""
    indices = to_array(indices)
    kept = indices if places is None else places[indices]
    return kept[kept >= 0]


def on_picture(values: Any, grid: tuple[int, int], places: np.ndarray | None) -> np.ndarray:
    """Values (..., N) of visual tokens at their places in a grid of rows and columns, (..., rows * columns)."""
    values = to_array(values)
    if places is None:
        return values
    placed = np.zeros((*values.shape[:-1], grid[0] * grid[1]), values.dtype)
    placed[..., places[places >= 0]] = values[..., places >= 0]
    return placed
