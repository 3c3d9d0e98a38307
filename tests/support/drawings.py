"""Pixels of drawings, by where they lie in the image that was drawn."""

import numpy as np

from transformers_litelvlm.visualization import LONGEST_SIDE


def scaled(drawing, image, x, y):
    """Pixel of the drawing at the centre of the pixel (x, y) of the image."""
    factor = -(-LONGEST_SIDE[0] // max(image.size))
    margin = (drawing.width - factor * image.width) // 2  # a narrow picture stands in the middle over its legend
    return np.array(drawing.getpixel((margin + int((x + 0.5) * factor), int((y + 0.5) * factor))), dtype=int)
