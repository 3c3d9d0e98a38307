"""Every encoding of a mask against masks drawn by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from transformers_litelvlm.data.masks import decode_mask, decode_segmentation, encode_mask
from transformers_litelvlm.data.reason_seg import draw_shapes


def box(top: int, left: int, bottom: int, right: int, shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


LEFT = [0, 1, 4, 1, 4, 5, 0, 5]  # x from 0 to 4, y from 1 to 5
RIGHT = [2, 2, 7, 2, 7, 4, 2, 4]  # overlaps it


def test_overlapping_polygons_are_a_union():
    mask = decode_segmentation([LEFT, RIGHT], 6, 8)
    np.testing.assert_array_equal(mask, box(1, 0, 5, 4) | box(2, 2, 4, 7))
    assert mask.dtype == bool and mask.sum() == 16 + 10 - 4


def test_one_polygon_without_its_list():
    np.testing.assert_array_equal(decode_segmentation(LEFT, 6, 8), box(1, 0, 5, 4))


def test_a_polygon_of_two_points_is_not_a_box():
    assert decode_segmentation([[1, 1, 4, 4]], 6, 8).sum() == 0
    np.testing.assert_array_equal(decode_segmentation([[1, 1, 4, 4], LEFT], 6, 8), box(1, 0, 5, 4))


@pytest.mark.parametrize("nothing", [None, []])
def test_no_annotation_is_an_empty_mask(nothing):
    mask = decode_segmentation(nothing, 6, 8)
    assert mask.shape == (6, 8) and mask.sum() == 0


def test_run_lengths_of_a_crowd_are_column_by_column():
    # 7 off, 2 on, 39 off: the second column (6 pixels each), its rows 1 and 2.
    crowd = {"size": [6, 8], "counts": [7, 2, 39]}
    np.testing.assert_array_equal(decode_segmentation(crowd, 6, 8), box(1, 1, 3, 2))


def test_a_list_of_run_lengths_is_a_union():
    parts = [encode_mask(box(0, 0, 2, 2)), {"size": [6, 8], "counts": [7, 2, 39]}]
    np.testing.assert_array_equal(decode_segmentation(parts, 6, 8), box(0, 0, 2, 2) | box(1, 1, 3, 2))


def test_run_lengths_that_do_not_fill_the_image_are_an_error():
    with pytest.raises(ValueError, match="covers 12 pixels"):
        decode_mask({"size": [6, 8], "counts": [7, 2, 3]})


def test_one_pixel_survives_every_encoding():
    mask = box(5, 7, 6, 8)
    for encoded in (mask, encode_mask(mask), Image.fromarray(mask.astype(np.uint8) * 255), [encode_mask(mask)]):
        np.testing.assert_array_equal(decode_segmentation(encoded, 6, 8), mask)


def test_a_mask_of_another_size_is_an_error():
    with pytest.raises(ValueError, match=r"\(6, 8\), the image \(8, 6\)"):
        decode_segmentation(encode_mask(box(0, 0, 2, 2)), 8, 6)


def test_the_smaller_polygon_of_reason_seg_is_on_top_whatever_the_order():
    def square(label: str, start: float, stop: float) -> dict:
        return {"label": label, "points": [[start, start], [stop, start], [stop, stop], [start, stop]]}

    # Decimals are cut off and the outline belongs to the polygon: 10 x 10 pixels, 4 x 4 of them ignored.
    shapes = [square("target", 0, 9.9), square("ignore area", 2.9, 5.2), square("an Ignored", 10, 11)]
    for order in (shapes, shapes[::-1]):
        labels = draw_shapes(order, 12, 14)
        assert ((labels == 1).sum(), (labels == 255).sum()) == (100 - 16, 16 + 4)
        assert (labels[2:6, 2:6] == 255).all() and labels[9, 9] == 1 and labels[0, 13] == 0


def test_without_opencv_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)  # an import of it fails
    with pytest.raises(ImportError, match=r"transformers-litelvlm\[reasonseg\]"):
        draw_shapes([], 4, 4)
