"""Kept tokens: the right pixels are bright, dimmed, framed and hatched."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, Qwen2VLImageProcessorPil

from tests.support.drawings import scaled
from tests.support.warm_python import memory_of
from transformers_litelvlm.visualization import (
    LONGEST_SIDE,
    draw_masks,
    draw_retained_tokens,
    mask_colour,
    seen_region,
)


def image_processor(**kwargs):
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 0, **kwargs}
    return CLIPImageProcessorPil(**settings, do_rescale=False, do_normalize=False)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P"])
@pytest.mark.parametrize("size", [(100, 1), (1, 100), (1, 1), (13, 7)])
def test_any_size_and_mode(size, mode):
    image = Image.new(mode, size)
    region = seen_region(size, image_processor())
    drawing = draw_masks(image, [np.ones(size[::-1], bool)], ["the very long one " * 20])
    tokens = draw_retained_tokens(image, [0, 5], (4, 4), region, [np.ones(size[::-1], bool)])
    assert max(drawing.size) <= 2000 and max(tokens.size) <= 2000


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (100, 48), (47, 130), (32, 32), (9, 9)])
@pytest.mark.parametrize("stretched", [False, True])
def test_seen_region_is_what_the_image_processor_keeps(size, stretched):
    """A picture whose colours are its coordinates tells, after the image processor, where each corner came from."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    processor = image_processor(**({"size": {"height": 32, "width": 32}} if stretched else {}))
    seen = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0].astype(float)  # (3, 32, 32)
    left, top, right, bottom = seen_region(size, processor)
    tolerance = 1.01 * max(1.0, max(size) / 32)
    assert abs(seen[0, 16, 0] + 0.5 - (left + (right - left) / 64)) <= tolerance
    assert abs(seen[0, 16, -1] + 0.5 - (right - (right - left) / 64)) <= tolerance
    assert abs(seen[1, 0, 16] + 0.5 - (top + (bottom - top) / 64)) <= tolerance
    assert abs(seen[1, -1, 16] + 0.5 - (bottom - (bottom - top) / 64)) <= tolerance


def test_qwen_sees_all_of_an_image():
    assert seen_region((50, 40), Qwen2VLImageProcessorPil()) == (0.0, 0.0, 50.0, 40.0)


def test_seen_region_by_hand():
    # 240 x 160 -> 216 x 144; the crop starts at (216 - 144) / 2 = 36, which is 40 pixels of the original
    processor = image_processor(size={"shortest_edge": 144}, crop_size={"height": 144, "width": 144})
    assert seen_region((240, 160), processor) == (40.0, 0.0, 200.0, 160.0)
    # patches of 40 in 144 pixels: three fit, the last 24 pixels are never seen
    assert seen_region((144, 144), processor, grid=(3, 3), patch_size=40) == (0.0, 0.0, 120.0, 120.0)
    # no crop, no resizing
    plain = SimpleNamespace(do_resize=False, do_center_crop=False, size=None, crop_size=None)
    assert seen_region((50, 40), plain) == (0.0, 0.0, 50.0, 40.0)
    # smaller than the crop: padded on both sides
    padded = SimpleNamespace(do_resize=False, size=None, do_center_crop=True, crop_size={"height": 60, "width": 60})
    assert seen_region((50, 40), padded) == (-5.0, -10.0, 55.0, 50.0)


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (64, 64)])
def test_kept_patches_are_bright_and_the_others_dim_or_hatched(size):
    image = Image.new("RGB", size, (250, 250, 250))
    rows, columns, kept = 4, 4, [1, 6, 15]
    region = seen_region(size, image_processor())
    drawing = draw_retained_tokens(image, torch.tensor(kept), (rows, columns), region)
    left, top, right, bottom = region
    for token in range(rows * columns):
        x = left + (token % columns + 0.5) * (right - left) / columns
        y = top + (token // columns + 0.5) * (bottom - top) / rows
        pixel = scaled(drawing, image, x - 0.5, y - 0.5)
        assert (pixel.min() >= 249) == (token in kept), token
        assert (pixel.max() <= 100) == (token not in kept), token
    if size[0] != size[1]:
        corner = scaled(drawing, image, 2, 2)
        assert 100 < corner.min() <= corner.max() < 249 and np.ptp(corner) == 0


def test_merged_patches_are_as_bright_as_their_share():
    image = Image.new("RGB", (64, 64), (250, 250, 250))
    # Token 0 alone; 1 and 2 half each; 3 with a ninth; the rest nowhere.
    weights = torch.zeros(3, 16)
    weights[0, 0], weights[1, 1:3], weights[2, 3:12] = 2.0, 0.5, 0.1
    drawing = draw_retained_tokens(image, [0, 1, 3], (4, 4), merge_weights=weights)
    brightness = [
        scaled(drawing, image, 7.5 + 16 * (token % 4), 7.5 + 16 * (token // 4)).mean() for token in range(16)
    ]
    dim, full = brightness[15], brightness[0]
    assert full >= 249 and dim <= 100
    for token, share in ((1, 0.5), (2, 0.5), (3, 1 / 9), (11, 1 / 9)):
        assert brightness[token] == pytest.approx(dim + share**0.5 * (full - dim), abs=2), token


def test_all_kept_and_indices_out_of_range():
    image = Image.new("RGB", (32, 32), (250, 250, 250))
    drawing = draw_retained_tokens(image, None, (4, 4))
    pixels = np.asarray(drawing)[: drawing.width]
    assert pixels.min() >= 249, "nothing is dimmed"
    with pytest.raises(ValueError, match=r"\[0, 16\).*4 x 4.*16"):
        draw_retained_tokens(image, [0, 16], (4, 4))


def test_a_huge_picture_gives_a_small_drawing():
    drawing = draw_masks(Image.new("RGB", (2500, 1400)), np.ones((1, 1400, 2500), bool))
    assert drawing.width == LONGEST_SIDE[1]


@pytest.mark.slow
def test_memory_of_drawing_a_large_picture():
    """16 million pixels, which Pillow keeps in 61 MiB. To copy them and to compute in float64 took 310 MiB."""
    before = """
import numpy as np
from PIL import Image
from transformers_litelvlm.visualization import draw_masks, draw_retained_tokens
picture, masks = Image.new("RGB", (4000, 4000), "red"), np.ones((1, 4000, 4000), bool)
"""
    assert memory_of(before, "draw_masks(picture, masks, ['all of it'], [1.0])") < 110
    assert memory_of(before, "draw_retained_tokens(picture, [0, 5], (12, 12), None, masks)") < 200


def frame_of(drawing, image, token, columns, side):
    """Colours of a row of pixels from the left edge of a token to its centre."""
    y, x = divmod(token, columns)
    return [tuple(scaled(drawing, image, x * side + part, (y + 0.5) * side)) for part in np.arange(0, side / 2, 0.1)]


def test_every_kept_token_is_marked_where_it_is_by_the_sentences_that_chose_it():
    image = Image.new("RGB", (64, 64), (250, 250, 250))
    chosen = np.zeros((3, 16), bool)
    chosen[0, [0, 5]], chosen[2, [5, 10]] = True, True
    chosen[1, 3] = True  # which was not kept in the end
    kept = [0, 5, 10, 15]
    sentences = ["a", "b", "c"]
    drawing = draw_retained_tokens(image, kept, (4, 4), labels=sentences, chosen_by=torch.from_numpy(chosen))
    marks = {index: mask_colour(index) for index in range(3)} | {"context": (32, 33, 36)}
    found = {}
    for token in range(16):
        seen = frame_of(drawing, image, token, 4, 16)
        found[token] = [name for name, colour in marks.items() if colour in seen]
    expected = {0: [0], 5: [0, 2], 10: [2], 15: ["context"]}
    assert found == {token: expected.get(token, []) for token in range(16)}
    # The legend has the colours of the sentences.
    legend = np.asarray(drawing)[LONGEST_SIDE[0] :]
    assert all((legend == mask_colour(index)).all(-1).sum() > 100 for index in range(3))


def test_a_method_that_does_not_say_marks_all_alike():
    image = Image.new("RGB", (64, 64), (250, 250, 250))
    pixels = np.asarray(draw_retained_tokens(image, [0, 5], (4, 4), labels=["a", "b"]))[: LONGEST_SIDE[0]]
    assert len({tuple(pixels[int(y * 192 + 96), int(x * 192 + 20)]) for y, x in [(0, 0), (1, 1)]}) == 1
    assert not any((pixels == mask_colour(index)).all(-1).any() for index in range(2))


def test_sources_of_another_grid():
    with pytest.raises(
        ValueError, match=r"`chosen_by` must be of shape \(sentences, 16 visual tokens\), got \(2, 9\)"
    ):
        draw_retained_tokens(Image.new("RGB", (8, 8)), [0], (4, 4), chosen_by=np.zeros((2, 9)))


@pytest.mark.parametrize("shape", [(2, 9), (2, 25), (16,)])
def test_merge_weights_of_another_grid(shape):
    with pytest.raises(
        ValueError, match=rf"`merge_weights` must .*\(kept tokens, 16 visual tokens\), got \({shape[0]},"
    ):
        draw_retained_tokens(Image.new("RGB", (8, 8)), [0, 1], (4, 4), merge_weights=np.ones(shape))


def test_merge_weights_without_kept_tokens():
    image = Image.new("RGB", (8, 8))
    drawings = [draw_retained_tokens(image, [], (4, 4), merge_weights=np.ones((rows, 16)) * 0) for rows in (0, 1)]
    assert drawings[0].tobytes() == drawings[1].tobytes()
