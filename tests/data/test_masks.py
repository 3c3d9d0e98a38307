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


@pytest.mark.parametrize("seed", range(20))
def test_every_mask_comes_back_from_the_text_of_pycocotools(seed):
    random = np.random.default_rng(seed)
    shape = random.integers(1, 70, 2)
    mask = random.random(shape) < random.choice([0.02, 0.5, 0.98])
    # Long runs too, whose lengths need several characters.
    mask = np.kron(mask, np.ones(random.integers(1, 30, 2), dtype=bool))
    encoded = encode_mask(mask)
    assert np.array_equal(decode_mask(encoded), mask)
    assert np.array_equal(decode_mask({**encoded, "counts": encoded["counts"].encode()}), mask)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate(([2], mask.T.ravel(), [2])))))
    runs = runs.tolist() if not mask.T.ravel()[0] else [0, *runs.tolist()]
    assert np.array_equal(decode_mask({**encoded, "counts": runs}), mask)


@pytest.mark.parametrize(
    "encoded, message",
    [
        ({"size": [600, 600], "counts": ""}, "is damaged: b''"),
        ({"size": [600, 600], "counts": []}, r"covers 0 pixels, its `size` \[600, 600\] has 360000"),
        ({"size": [600, 600], "counts": "PPYo0"}, "covers"),
        ({"size": [6, 6], "counts": "ooooooooooooooooo0"}, "damaged"),
        ({"size": [6, 6], "counts": "o"}, "damaged"),
        ({"size": [6, 6], "counts": "\xff\xfe"}, "damaged|no run lengths"),
        ({"size": [6, 6], "counts": [40, -8, 4]}, "no run lengths"),
        ({"size": [6, 6], "counts": [36.0]}, "must be whole numbers"),
        ({"size": [6, 6], "counts": [[36]]}, "must be whole numbers"),
        ({"size": [6, 6], "counts": None}, "must be a list"),
        ({"size": [6, 6], "counts": [2**70]}, "must be whole numbers|no run lengths"),
        ({"size": [100000, 1000000], "counts": "PP0"}, "`size` of a run-length encoding must be"),
        ({"size": [0, 6], "counts": []}, "`size` of a run-length encoding must be"),
        ({"size": [6], "counts": [6]}, "`size` of a run-length encoding must be"),
        ({"size": "66", "counts": [36]}, "`size` must be a list"),
        ({"counts": [36]}, "must have `size` and `counts`"),
    ],
    ids=str,
)
def test_run_lengths_that_are_none(encoded, message):
    with pytest.raises(ValueError, match=message):
        decode_mask(encoded)


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "outside the image of 144 x 144 pixels"),
        ([[0, 0, float("nan"), 0, 5, 5]], "outside the image"),
        ([[0, 0, 9, 0, 5, float("inf")]], "outside the image"),
        ([[0, 0, 9, 0, 5, "x"]], "must be numbers"),
        ([[0, 0, 9, 0, 5, None]], "must be numbers|outside"),
        ([[0.1, 0.1, 0.9, 0.1, 0.5, 0.8]], "must be in pixels, got fractions"),  # as YOLO writes them
        ([[0, 0, 1, 1, 0, 0]] * 4, "got fractions of the image, or the rows of a mask of another size"),
        ([[0, 0, 9, 0, 5, 5, 7]], "must be numbers"),
        ([[[0, 0], [9, 0]] * 3], "must be numbers"),
        (7, "A segmentation must be a list, got 7"),
        ("PPYo0", "A segmentation must be a list"),
        ([None], "A polygon must be numbers"),
        ([{"size": [2, 2], "counts": [4]}, {"size": [3, 2], "counts": [6]}], "several sizes"),
    ],
    ids=str,
)
def test_annotations_that_are_none(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode_segmentation(segmentation, 144, 144)


@pytest.mark.parametrize(
    "height, width, message",
    [
        (2**40, 4, "`size` of an image"),  # with a polygon, the interpreter crashed
        (10**6, 10**6, "at most 268435456 pixels"),
        (-1, 4, "got \\[-1, 4\\]"),
        ("4", 4, "whole numbers"),
        (4.5, 4, "whole numbers"),
        (None, 4, "whole numbers"),
    ],
)
@pytest.mark.parametrize("segmentation", [[], [[0, 0, 4, 0, 4, 4]], {"size": [4, 4], "counts": [16]}], ids=str)
def test_sizes_of_images_that_are_none(segmentation, height, width, message):
    with pytest.raises(ValueError, match=message):
        decode_segmentation(segmentation, height, width)


@pytest.mark.parametrize(
    "points, message",
    [
        ([[0, 0], [1e9, 0], [5, 5]], "outside the image of 12 x 14 pixels"),
        ([[0, 0], [2**40, 0], [5, 5]], "outside the image"),
        ([[0, 0], [float("nan"), 0], [5, 5]], "outside the image"),
        ([[0, 0, 0], [9, 0, 0]], "must be numbers"),
        ([0, 0, 9, 0, 9, 9], "must be numbers"),
        ([], "must be numbers"),
        ("text", "must be numbers"),
    ],
    ids=str,
)
def test_points_of_reason_seg_that_are_none(points, message):
    with pytest.raises(ValueError, match=message):
        draw_shapes([{"label": "target", "points": points}], 12, 14)


def test_points_a_little_outside_are_cut_off():
    inside = decode_segmentation([[0, 0, 10, 0, 10, 10, 0, 10]], 10, 10)
    assert np.array_equal(decode_segmentation([[-3, -3, 14, -3, 14, 14, -3, 14]], 10, 10), inside)
