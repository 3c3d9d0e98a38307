"""Masks over an image: the right pixels are coloured, in the colour of their sentence."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.drawings import scaled
from transformers_litelvlm.visualization import LONGEST_SIDE, draw_masks, mask_colour


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


def test_a_huge_picture_gives_a_small_drawing():
    drawing = draw_masks(Image.new("RGB", (2500, 1400)), np.ones((1, 1400, 2500), bool))
    assert drawing.width == LONGEST_SIDE[1]


def test_what_no_sentence_means_stays_visible():
    image = Image.new("RGB", (64, 64), (100, 100, 100))
    mask = np.zeros((64, 64), bool)
    mask[4:24, 4:24] = True
    outside = scaled(draw_masks(image, [mask]), image, 50, 50)
    assert 100 < outside[0] <= 120


@pytest.mark.parametrize("index", [0, 1])
def test_a_sentence_has_the_colour_of_its_mask_and_its_number_is_on_it(index):
    image = Image.new("RGB", (64, 64), (128, 128, 128))
    masks = np.zeros((index + 1, 64, 64), bool)
    masks[index, 8:56, 8:56] = True  # the others are empty
    drawing = draw_masks(image, masks, ["the square"] * (index + 1))
    colour, size = mask_colour(index), LONGEST_SIDE[0]
    pixels = np.asarray(drawing)
    in_picture, in_legend = (part == colour for part in (pixels[:size], pixels[size:]))
    assert in_picture.all(-1).sum() > 1000 and in_legend.all(-1).sum() > 100
    # The disc with the number covers the middle; the tint around it is another colour.
    disc = np.argwhere(in_picture.all(-1)[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4])
    assert len(disc) > 300 and np.abs(disc.mean(0) - size / 4).max() < 8
    other = mask_colour(1 - index)
    assert ((pixels[size:] == other).all(-1).sum() > 100) == (index == 1), "only sentences that were asked are listed"
