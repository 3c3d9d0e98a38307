"""Which tokens a mask covers, counted pixel by pixel."""

import numpy as np
import pytest

from transformers_litelvlm.analysis.coverage import distance_from_centre, moved, ring_around, token_coverage


def counted(mask, region, grid, scale=20):
    """Coverage by sampling each cell at many points."""
    left, top, right, bottom = region
    y = top + (np.arange(grid[0] * scale) + 0.5) / (grid[0] * scale) * (bottom - top)
    x = left + (np.arange(grid[1] * scale) + 0.5) / (grid[1] * scale) * (right - left)
    rows, columns = np.floor(y).astype(int), np.floor(x).astype(int)
    inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))
    picked = mask[rows.clip(0, mask.shape[0] - 1)][:, columns.clip(0, mask.shape[1] - 1)] & inside
    return picked.reshape(grid[0], scale, grid[1], scale).mean(axis=(1, 3)).reshape(-1)


@pytest.mark.parametrize("region", [(0, 0, 60, 40), (10, 0, 50, 40), (-6, -4, 66, 44), (0.5, 3.25, 47.5, 39)])
@pytest.mark.parametrize("grid", [(4, 6), (7, 5), (24, 24)])
def test_coverage_is_the_share_of_covered_points(region, grid):
    mask = np.random.default_rng(0).random((40, 60)) < 0.4
    mask[10:30, 20:50] = True
    np.testing.assert_allclose(token_coverage(mask, region, grid), counted(mask, region, grid, 40), atol=0.04)
    assert token_coverage(np.ones((40, 60), bool), (0, 0, 60, 40), grid) == pytest.approx(1)


def test_whole_cells_are_exact():
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:20, 0:30] = True
    mask[20:25, 30:40] = True
    expected = np.zeros((4, 6))
    expected[1, :3], expected[2, 3] = 1, 0.5
    np.testing.assert_array_equal(token_coverage(mask, (0, 0, 60, 40), (4, 6)).reshape(4, 6), expected)


def test_the_ring_is_what_is_near_and_not_inside():
    referent = np.zeros((6, 6), dtype=bool)
    referent[0, 0] = True
    expected = np.zeros((6, 6), dtype=bool)
    expected[:3, :3] = True
    expected[0, 0] = False
    np.testing.assert_array_equal(ring_around(referent.reshape(-1), (6, 6)).reshape(6, 6), expected)


def test_distances_and_moved_masks():
    distance = distance_from_centre((3, 5)).reshape(3, 5)
    assert distance[1, 2] == 0 and distance.max() == distance[0, 0] == distance[2, 4] < 1
    mask = np.random.default_rng(0).random((9, 7)) < 0.3
    other = moved(mask, np.random.default_rng(1))
    assert other.sum() == mask.sum() and (other != mask).any()
    np.testing.assert_array_equal(other, moved(mask, np.random.default_rng(1)))
