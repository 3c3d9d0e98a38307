"""A image with two objects, to analyse."""

import numpy as np
from PIL import Image

from transformers_litelvlm.data.samples import ImageSample, ReferringSentence


SENTENCES = ("a dog", "the dog in the image")


def two_objects() -> ImageSample:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 56, 3), dtype=np.uint8)
    masks = [np.zeros((48, 56), dtype=bool) for _ in SENTENCES]
    masks[0][8:30, 4:25] = True
    masks[1][20:44, 30:50] = True
    sentences = [
        ReferringSentence(str(number), text, lambda mask=mask: mask, object_id=str(number))
        for number, (text, mask) in enumerate(zip(SENTENCES, masks, strict=True))
    ]
    return ImageSample("image", Image.fromarray(pixels), tuple(sentences))
