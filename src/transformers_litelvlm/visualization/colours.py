"""Colours that are told apart, by colour-blind readers too."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np


Colour = tuple[int, int, int]

# Okabe and Ito's colours (told apart by colour-blind readers), strongest contrast first.
PALETTE: tuple[Colour, ...] = (
    (230, 97, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 75, 160),
    (240, 200, 20),
    (86, 180, 233),
    (140, 80, 30),
)
# Of lines and their labels on white, where thin things need a contrast of 3: no yellow, no light blue.
LINE_COLOURS: tuple[Colour, ...] = ((213, 94, 0), (0, 114, 178), (0, 140, 100), (190, 80, 150), (130, 75, 30))
DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.5)), (0, (6, 2, 1, 2)))
WHITE: Colour = (255, 255, 255)
INK: Colour = (32, 33, 36)
GREY: Colour = (95, 99, 104)
KEPT: Colour = (250, 250, 250)
PRUNED: Colour = (52, 54, 60)
NEVER_SEEN: Colour = (176, 178, 184)

# Cividis, which looks the same to colour-blind readers and is ordered in grey, at equal steps from 0 to 1.
_HEAT = np.array(
    [
        (0, 34, 78),
        (24, 53, 111),
        (67, 78, 108),
        (97, 101, 111),
        (124, 123, 120),
        (153, 147, 119),
        (186, 174, 107),
        (221, 204, 84),
        (254, 232, 56),
    ],
    dtype=float,
)


def mask_colour(index: int) -> Colour:
    """The colour of the mask with this index, and of its sentence; no two of the first hundred are the same."""
    if index < len(PALETTE):
        return PALETTE[index]
    hue = ((index - len(PALETTE)) * 0.618034 + 0.03) % 1.0  # golden ratio: neighbours lie far apart
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95 if index % 2 else 0.7)
    return round(red * 255), round(green * 255), round(blue * 255)


def heat_colours(values: Any) -> np.ndarray:
    """Colours from dark blue (0) to yellow (1), float of shape (*values, 3)."""
    steps = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(values, steps, channel) for channel in _HEAT.T], axis=-1)


def contrast(first: Colour, second: Colour) -> float:
    """Contrast of two colours by WCAG 2: 1 if they are equally bright, 21 for black and white."""
    bright, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def text_colour(ground: Colour) -> Colour:
    """Of white and ink, what reads better on a ground."""
    return max((WHITE, INK), key=lambda ink: contrast(ink, ground))


def _luminance(colour: Colour) -> float:
    channels = np.asarray(colour) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
