"""Pictures: the right pixels are coloured, dimmed and hatched."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

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


def scaled(drawing, image, x, y):
    """Pixel of the drawing at the centre of the pixel (x, y) of the image."""
    factor = -(-LONGEST_SIDE[0] // max(image.size))
    margin = (drawing.width - factor * image.width) // 2  # a narrow picture stands in the middle over its legend
    return np.array(drawing.getpixel((margin + int((x + 0.5) * factor), int((y + 0.5) * factor))), dtype=int)


def test_colours_are_distinct():
    colours = np.array([mask_colour(index) for index in range(40)])
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(40, dtype=int)
    assert distances.min() > 8
    assert distances[:12, :12].min() > 60


def test_masks_are_tinted_where_they_are_and_nowhere_else():
    image = Image.new("RGB", (64, 64), (128, 128, 128))
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 4:24, 4:24] = True
    masks[1, 40:60, 30:60] = True
    drawing = draw_masks(image, torch.from_numpy(masks), ["the red circle", "the star"], [0.9, 0.4])
    assert drawing.width >= 512 and drawing.mode == "RGB"
    for index, (x, y) in enumerate([(8, 8), (34, 44)]):
        shift = scaled(drawing, image, x, y) - 128
        expected = np.array(mask_colour(index)) - 128
        assert shift @ expected / np.linalg.norm(shift) / np.linalg.norm(expected) > 0.99
    outside = scaled(drawing, image, 30, 10)
    assert outside.min() == outside.max(), "grey stays grey outside the masks"
    assert image.getpixel((8, 8)) == (128, 128, 128), "the input is not changed"


def test_numbers_of_masks_that_coincide_stand_side_by_side():
    image = Image.new("RGB", (64, 64), (255, 255, 255))
    mask = np.zeros((64, 64), bool)
    mask[20:40, 20:40] = True
    pixels = np.asarray(draw_masks(image, [mask] * 3))[: LONGEST_SIDE[0]].reshape(-1, 3).tolist()
    counts = [pixels.count(list(mask_colour(index))) for index in range(3)]
    assert min(counts) > 100, "the disc of every number is seen"


def test_mask_errors_name_the_sizes():
    image = Image.new("RGB", (20, 10))
    with pytest.raises(ValueError, match=r"\(10, 20\), got \(20, 10\)"):
        draw_masks(image, np.zeros((1, 20, 10), bool))
    with pytest.raises(ValueError, match="`labels` must hold one entry per mask: 2 given for 1"):
        draw_masks(image, np.zeros((1, 10, 20), bool), ["a", "b"])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P"])
@pytest.mark.parametrize("size", [(300, 1), (1, 300), (1, 1), (13, 7)])
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
