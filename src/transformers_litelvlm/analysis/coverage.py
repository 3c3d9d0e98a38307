"""Which visual tokens a mask covers, and which surround it."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation


Region = tuple[float, float, float, float]

# Chebyshev distance in tokens up to which a token is in the ring around the referent.
RING_WIDTH = 2


def token_coverage(mask: np.ndarray, region: Region, grid: tuple[int, int]) -> np.ndarray:
    """How much of each visual token's cell a mask covers.

    Args:
        mask: (H, W) booleans, at the size of the image.
        region: (left, top, right, bottom) in pixels of the image that the grid covers, see
            [`~visualization.seen_region`]; what of it lies outside the image is not covered.
        grid: (rows, columns) of visual tokens.

    Returns:
        (rows * columns,) float64 in [0, 1], row by row.
    """
    height, width = mask.shape
    left, top, right, bottom = region
    # A pixel is covered as a whole, so the integral of the mask is linear between the borders of pixels.
    down = _interpolated(np.cumsum(np.pad(mask, ((1, 0), (0, 0))), axis=0, dtype=np.float64), top, bottom, grid[0])
    both = _interpolated(np.cumsum(np.pad(down.T, ((1, 0), (0, 0))), axis=0), left, right, grid[1])
    cell = (bottom - top) / grid[0] * (right - left) / grid[1]
    return (both.T / cell).clip(0.0, 1.0).reshape(-1)


def _interpolated(integral: np.ndarray, start: float, end: float, count: int) -> np.ndarray:
    """What an integral (n + 1, m) along its first axis gains in each of `count` equal steps, (count, m)."""
    borders = np.linspace(start, end, count + 1).clip(0, len(integral) - 1)
    lower = np.floor(borders).astype(int).clip(max=len(integral) - 2)
    share = (borders - lower)[:, None]
    return np.diff((1 - share) * integral[lower] + share * integral[lower + 1], axis=0)


def ring_around(is_referent: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Tokens at most [`RING_WIDTH`] rows and columns away from a referent token, which are none themselves; both are
    (rows * columns,) booleans."""
    square = np.ones((2 * RING_WIDTH + 1,) * 2, dtype=bool)
    return (binary_dilation(is_referent.reshape(grid), square) & ~is_referent.reshape(grid)).reshape(-1)


def distance_from_centre(grid: tuple[int, int]) -> np.ndarray:
    """(rows * columns,) distances of the tokens' centres from the middle of the grid, 1 at its corners."""
    rows, columns = (np.linspace(-1 + 1 / count, 1 - 1 / count, count) for count in grid)
    return (np.hypot(rows[:, None], columns) / np.sqrt(2)).reshape(-1)


def moved(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The mask moved by a random distance; what leaves the image comes in again on the other side."""
    shift = (int(generator.integers(mask.shape[0])), int(generator.integers(mask.shape[1])))
    return np.roll(mask, shift, axis=(0, 1))
