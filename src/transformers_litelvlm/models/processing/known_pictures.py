"""Which pictures a checkpoint knows. Of the bundled one and its copies it is known: drawn scenes alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from transformers.utils import logging

from transformers_litelvlm.utils.messages import is_first, quoted


logger = logging.get_logger(__name__)

# The tiny grounding checkpoint that comes with the package; it knows the shapes of RefShapes, not photos.
DEFAULT_CHECKPOINT = str(Path(__file__).parents[2] / "checkpoints" / "refshapes_tiny")
UNLIKE = "a picture is unlike scenes"


def warn_of_unknown(picture: Image.Image, name: str | int) -> None:
    """Log, once per process, that a picture is none that the bundled checkpoint knows; `name` is a path or a place."""
    if not is_like_a_scene(picture) and is_first(UNLIKE):
        logger.warning(
            "This checkpoint, the bundled one or a copy of it, knows drawn shapes on a grey background. Picture "
            f"{quoted(name)} looks different, so do not trust its masks. Other pictures need a checkpoint for photos "
            "(`--model` on the command line)."
        )


def is_like_a_scene(image: Image.Image) -> bool:
    """Whether a picture could be one that `render_scene` of `data/refshapes_rendering.py` draws, at any size: mostly
    an even grey.

    In a copy of 48 x 48 pixels, two kinds are counted: those that hardly differ from their neighbours, and grey ones
    about as bright as most. Of 600 scenes the shares are 0.78 and 0.82 at least; 93 photos have 0.66 and 0.79 at most,
    and none has much of both. With the limits below, all of 700 further scenes pass, enlarged and as JPEG too, and no
    photo. Drawings on a white or coloured background may or may not.

    Args:
        image: RGB.
    """
    pixels = np.asarray(image.resize((48, 48), Image.Resampling.BOX), dtype=np.int16)
    steps = [np.abs(np.diff(pixels, axis=axis)).max(axis=2) for axis in (0, 1)]
    is_flat = np.maximum(steps[0][:, :-1], steps[1][:-1]) <= 12
    is_grey = np.ptp(pixels, axis=2) <= 24
    is_usual = np.abs(pixels - np.median(pixels, axis=(0, 1))).max(axis=2) <= 64
    return bool(is_flat.mean() >= 0.69 and (is_grey & is_usual).mean() >= 0.65)
