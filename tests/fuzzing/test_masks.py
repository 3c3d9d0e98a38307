"""Masks of data sets: numbers from anywhere, compared with a plain decoder and with pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.support.fuzzing import examples, json_values, mutated, numbers, quick
from transformers_litelvlm.data.masks import decode_mask, decode_segmentation, encode_mask
from transformers_litelvlm.data.reason_seg import draw_shapes


def plain_runs(text: bytes) -> list[int] | None:
    """Run lengths of COCO's text, letter by letter; `None` if it is none."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        digit = letter - 48
        if not 0 <= digit < 64:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if shift == 0 and runs else None


def plain_mask(size: list[int], runs: list[int]) -> np.ndarray:
    flat = [pixel for number, run in enumerate(runs) for pixel in [number % 2 == 1] * run]
    return np.array(flat, dtype=bool).reshape(size[1], size[0]).T


def decoded(encoding):
    with quick("run lengths"):
        try:
            mask = decode_mask(encoding)
        except ValueError as error:
            assert len(str(error)) < 500
            return None
    assert mask.dtype == bool and mask.ndim == 2
    return mask


sides = st.integers(1, 12)


@example([600, 600], [])  # F2
@example([2, 2], [5, -1])
@example([100000, 1000000], [1])  # F1
@example([1, 1], [2**63])
@example([1, 1], [True])
@example([3, 3], [4, 2**64 - 4 + 5])  # a sum that overflows to the right one
@given(
    st.tuples(sides, sides).map(list),
    st.lists(st.integers(0, 20), max_size=8),
)
@examples(400)
def test_run_lengths(size, runs):
    mask = decoded({"size": size, "counts": runs})
    is_right = sum(runs) == size[0] * size[1] and min(runs, default=0) >= 0 and True not in map(type, runs)
    if size[0] * size[1] > 1000 or not is_right or bool in map(type, runs):
        assert mask is None
    else:
        assert np.array_equal(mask, plain_mask(size, runs))


@st.composite
def filled(draw):
    """Run lengths that fill their size, with zeros among them."""
    height, width = draw(sides), draw(sides)
    cuts = sorted(draw(st.lists(st.integers(0, height * width), max_size=10)))
    return [height, width], np.diff([0, *cuts, height * width]).tolist()


@given(filled())
@examples(300)
def test_run_lengths_that_fill_their_size(encoding):
    size, runs = encoding
    mask = decoded({"size": size, "counts": runs})
    assert mask.sum() == sum(runs[1::2]) and np.array_equal(mask, plain_mask(size, runs))
    compressed = encode_mask(mask)
    assert np.array_equal(decoded(compressed), mask)
    assert coco_mask.area({**compressed, "counts": compressed["counts"].encode()}) == mask.sum()
    assert np.array_equal(decode_segmentation({"size": size, "counts": runs}, *size), mask)


@example(([600, 600], b""))  # F2: pixels of uninitialised memory
@example(([6, 6], b"o" * 17 + b"0"))
@example(([6, 6], b"\xff\xfe"))
@given(
    filled().flatmap(
        lambda encoding: st.tuples(
            st.just(encoding[0]), mutated(encode_mask(plain_mask(*encoding))["counts"].encode(), most=3)
        )
    )
)
@examples(600)
def test_compressed_run_lengths(encoding):
    size, text = encoding
    mask, runs = decoded({"size": size, "counts": text}), plain_runs(text)
    if runs is None or min(runs) < 0 or sum(runs) != size[0] * size[1]:
        assert mask is None
        return
    if mask is None:  # zeros in front of a number, which nobody writes
        assert len(text) > 7
        return
    assert np.array_equal(mask, plain_mask(size, runs))
    assert np.array_equal(mask, coco_mask.decode({"size": size, "counts": text}))
    assert np.array_equal(decoded({"size": size, "counts": text.decode()}), mask)


@st.composite
def boxes(draw):
    # In a picture one pixel high, pycocotools draws polygons wrongly.
    height, width = draw(st.integers(2, 40)), draw(st.integers(1, 40))
    longest = 2 * max(height, width)
    left, right = sorted(draw(st.tuples(*[st.integers(-longest, longest)] * 2)))
    top, bottom = sorted(draw(st.tuples(*[st.integers(-longest, longest)] * 2)))
    return height, width, left, top, right, bottom


@given(boxes())
@examples(300)
def test_polygons_that_are_boxes(box):
    height, width, left, top, right, bottom = box
    polygon = [left, top, right, top, right, bottom, left, bottom]
    with quick("polygon"):
        mask = decode_segmentation([polygon], height, width)
    expected = np.zeros((height, width), dtype=bool)
    expected[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    assert np.array_equal(mask, expected)


coordinates = st.one_of(st.floats(-60, 60), numbers)


@example([[0, 0, 1e9, 0, 1e9, 1e9]])  # F1: a segmentation fault of the interpreter
@example([[0, 0, 1e8, 0, 1e8, 1e8]])  # 20 seconds
@example([[0, 0, float("nan"), 0, 5, 5]])
@example([[-60.0, -60.0, 60.0, 60.0, -60.0, 60.0]])
@given(st.lists(st.lists(coordinates, max_size=14), max_size=4))
@examples(400)
def test_polygons(polygons):
    with quick("polygon"):
        try:
            mask = decode_segmentation(polygons, 20, 30)
        except ValueError as error:
            assert len(str(error)) < 500
            return
    real = [polygon for polygon in polygons if len(polygon) >= 6]
    assert all(len(polygon) % 2 == 0 and np.isfinite(polygon).all() for polygon in real)
    expected = np.zeros((20, 30), dtype=bool)
    for polygon in real:
        expected |= coco_mask.decode(coco_mask.frPyObjects([polygon], 20, 30))[..., 0].astype(bool)
    assert np.array_equal(mask, expected)


shapes = st.one_of(
    json_values,
    st.lists(st.lists(coordinates, max_size=8), max_size=3),
    st.fixed_dictionaries({}, optional={"size": json_values, "counts": st.one_of(json_values, st.binary())}),
    st.fixed_dictionaries({"size": st.lists(numbers, max_size=3), "counts": st.lists(numbers, max_size=4)}),
)


@example([], 10**6, 10**6)  # a terabyte
@example([], -1, 4)
@example([], 4.5, 4)
@example([LEFT := [0, 0, 4, 0, 4, 4]], "4", 4)
@example([LEFT], 2**40, 4)
@example([{"size": [2, 2], "counts": [4]}, 7], 2, 2)
@example([[0, 0, 4, 0, 4, 4], None], 6, 6)
@example([7, [0, 0, 4, 0, 4, 4]], 6, 6)
@given(
    st.one_of(shapes, st.lists(shapes, max_size=3)),
    st.one_of(sides, json_values),
    st.one_of(sides, json_values),
)
@examples(600)
def test_annotations(segmentation, height, width):
    """Anything at all: a mask of the size asked for, or a ValueError."""
    with quick("annotation"):
        try:
            mask = decode_segmentation(segmentation, height, width)
        except ValueError as error:
            assert len(str(error)) < 500
            return
    assert mask.dtype == bool and mask.shape == (height, width)


@example([{"label": "target", "points": [[0, 0], [2**40, 0], [5, 5]]}])
@example([{"label": "target", "points": [[0, 0], [1e9, 0], [1e9, 1e9]]}])
@example([{"label": "target", "points": [[float("nan"), 0], [9, 0], [9, 9]]}])
@example([{"label": "target", "points": []}])
@example([{"label": "target", "points": [[1, 2, 3]]}])
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "label": st.sampled_from(["target", "ignore"]),
                "points": st.one_of(
                    json_values, st.lists(st.tuples(coordinates, coordinates).map(list), min_size=1, max_size=6)
                ),
            }
        ),
        max_size=3,
    )
)
@examples(400)
def test_shapes_of_reason_seg(shapes):
    with quick("shape of ReasonSeg"):
        try:
            labels = draw_shapes(shapes, 20, 30)
        except ValueError as error:
            assert len(str(error)) < 500
            return
    assert labels.shape == (20, 30) and set(np.unique(labels)) <= {0, 1, 255}
    assert all(np.abs(shape["points"]).max() <= 60 for shape in shapes)


def test_the_plain_decoder_is_right():
    mask = np.random.default_rng(0).random((9, 11)) < 0.4
    text = encode_mask(mask)["counts"].encode()
    assert np.array_equal(plain_mask([9, 11], plain_runs(text)), mask)
    assert plain_runs(text[:-1] + b"o") is None and plain_runs(b"") is None and plain_runs(b" ") is None
    assert pytest.approx(mask.sum()) == sum(plain_runs(text)[1::2])
