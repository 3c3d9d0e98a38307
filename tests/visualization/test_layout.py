"""Panels beside one another."""

import numpy as np
import pytest
from PIL import Image

from transformers_litelvlm.visualization import side_by_side
from transformers_litelvlm.visualization.layout import GAP


def test_pictures_stand_in_rows_and_do_not_overlap():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [Image.new("RGB", size, colour) for size, colour in zip([(30, 20), (10, 40), (50, 5)], colours)]
    pixels = np.asarray(side_by_side(pictures, columns=2))
    assert pixels.shape == (40 + GAP + 5, 50 + GAP + 10, 3)
    for picture, colour, (x, y) in zip(pictures, colours, [(0, 0), (50 + GAP, 0), (0, 40 + GAP)]):
        assert np.argwhere((pixels == colour).all(-1)).min(0).tolist() == [y, x]
        assert (pixels == colour).all(-1).sum() == picture.width * picture.height


def test_a_title_stands_above():
    picture = Image.new("RGB", (900, 20), (200, 0, 0))
    titled = np.asarray(side_by_side([picture], "litelvlm, 48 of 144 visual tokens " * 9))
    top = np.argwhere((titled == (200, 0, 0)).all(-1)).min(0)[0]
    assert top > 30 and (titled[:top].min(axis=(0, 2)) < 100).sum() > 400, "ink all along the line"
    assert titled[:top, -8:].min() == 255, "and not beyond it"


def test_no_pictures():
    with pytest.raises(ValueError, match="`pictures` is empty"):
        side_by_side([])
