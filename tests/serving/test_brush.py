"""Run lengths of Label Studio: read back bit by bit, and equal to those of its own package."""

import numpy as np
import pytest

from tests.support.brush import decoded
from transformers_litelvlm.serving.brush import brush_rle


def masks():
    """Noise, stripes, and runs that are longer than the longest that one length holds."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        yield rng.random(rng.integers(1, 40, 2)) > rng.random()
    large = np.zeros((300, 260), dtype=bool)
    large[100:250, 50:130] = large[290:] = True
    yield from (large, ~large, np.zeros_like(large), np.ones((128, 128), dtype=bool), np.ones((1, 1), dtype=bool))


@pytest.mark.parametrize("mask", list(masks()))
def test_what_is_written_can_be_read(mask):
    np.testing.assert_array_equal(decoded(brush_rle(mask), mask.shape), mask)


def test_the_bytes_are_those_of_label_studio():
    # label_studio_sdk 2.1.2: converter.brush.mask2rle
    mask = np.array([[False, True, True], [True, False, False]])
    assert brush_rle(mask) == [0, 0, 0, 24, 57, 27, 252, 96, 22, 255, 231, 0, 0]
    theirs = pytest.importorskip("label_studio_sdk.converter.brush")
    for mask in masks():
        assert brush_rle(mask) == theirs.mask2rle(mask.astype(np.uint8) * 255)
        read = theirs.decode_rle(brush_rle(mask)).reshape(*mask.shape, 4)[..., 3]
        np.testing.assert_array_equal(read > 0, mask)
