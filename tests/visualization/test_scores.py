"""Heat maps: the colour of each token is that of its score."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.drawings import scaled
from transformers_litelvlm.visualization import draw_scores
from transformers_litelvlm.visualization.colours import heat_colours
from transformers_litelvlm.visualization.layout import LegendEntry


def test_each_token_has_the_colour_of_its_score():
    image = Image.new("RGB", (64, 48))
    scores = np.random.default_rng(0).normal(size=(3, 4))
    drawing = draw_scores(image, torch.from_numpy(scores), (3, 4), retained_indices=[2, 7])
    expected = heat_colours((scores - scores.min()) / np.ptp(scores)).round()
    for (row, column), colour in np.ndenumerate(expected[..., 0]):
        pixel = scaled(drawing, image, column * 16 + 7.5, row * 16 + 7.5)
        assert pixel.tolist() == expected[row, column].tolist() and pixel[0] == colour
        # Frames of the kept: white within two pixels of the image from the left.
        near = [scaled(drawing, image, column * 16 + part, row * 16 + 7.5).min() for part in np.arange(0, 2, 0.1)]
        assert (max(near) == 255) == (row * 4 + column in (2, 7))


def test_equal_scores_and_what_was_not_seen():
    image = Image.new("RGB", (64, 32))
    drawing = draw_scores(image, [1.0] * 4, (2, 2), region=(16.0, 0.0, 48.0, 32.0), label=LegendEntry((1, 2, 3), "x"))
    assert scaled(drawing, image, 4, 8).tolist() == [200] * 3
    assert scaled(drawing, image, 20, 8).tolist() == heat_colours(0.0).round().tolist()


def test_the_bar_goes_from_low_to_high():
    drawing = draw_scores(Image.new("RGB", (64, 64)), np.arange(16), (4, 4))
    bar = np.asarray(drawing)[drawing.height - 20].astype(float)
    coloured = bar[np.ptp(bar, axis=-1) > 20]
    assert np.abs(coloured[0] - heat_colours(0.0)).max() < 3 and np.abs(coloured[-1] - heat_colours(1.0)).max() < 3


@pytest.mark.parametrize("scores", [[0.0] * 3, [0.0, 1.0, 2.0, float("nan")]])
def test_scores_that_cannot_be_drawn(scores):
    with pytest.raises(ValueError, match="`scores` must be 4 finite numbers for a grid of 2 x 2"):
        draw_scores(Image.new("RGB", (8, 8)), scores, (2, 2))


@pytest.mark.parametrize("index", [-1, 4])
def test_kept_tokens_out_of_range(index):
    with pytest.raises(ValueError, match=rf"`retained_indices` must lie in \[0, 4\).*got {index} to {index}"):
        draw_scores(Image.new("RGB", (8, 8)), range(4), (2, 2), retained_indices=[index])


@pytest.mark.parametrize("size", [(1600, 20), (20, 1600), (1, 90)])
def test_a_narrow_picture_has_no_room_for_frames(size):
    side, (width, height) = min(size), size
    square = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    scores = np.arange(576)
    drawing = draw_scores(Image.new("RGB", size), scores, (24, 24), square, retained_indices=scores[::2])
    assert drawing.size == draw_scores(Image.new("RGB", size), scores, (24, 24), square).size
