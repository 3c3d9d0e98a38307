"""Colours that are told apart."""

import numpy as np
import pytest

from transformers_litelvlm.visualization.colours import (
    INK,
    LINE_COLOURS,
    WHITE,
    contrast,
    heat_colours,
    mask_colour,
    text_colour,
)


def test_colours_are_distinct():
    colours = np.array([mask_colour(index) for index in range(40)])
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(40, dtype=int)
    assert distances.min() > 8
    assert distances[:12, :12].min() > 60


def test_lines_stand_out_from_white():
    assert contrast((0, 0, 0), WHITE) == pytest.approx(21)
    assert contrast((118, 118, 118), WHITE) == pytest.approx(4.54, abs=0.01), "the grey of WCAG's own examples"
    assert min(contrast(colour, WHITE) for colour in LINE_COLOURS) >= 3


def test_numbers_are_readable_on_every_mask():
    assert min(contrast(text_colour(mask_colour(index)), mask_colour(index)) for index in range(40)) >= 4
    assert text_colour(mask_colour(4)) == INK and text_colour(mask_colour(1)) == WHITE


def test_brighter_is_more():
    """Also in grey: the order of heat survives what colour-blind readers and printers see."""
    colours = heat_colours(np.linspace(0, 1, 100))
    assert colours.shape == (100, 3) and (np.diff(colours @ (0.2126, 0.7152, 0.0722)) > 0).all()
    assert heat_colours([[0.0, 1.0]]).shape == (1, 2, 3)
