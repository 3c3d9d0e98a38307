from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from tests.support.tiny_llava import SPECIAL, tiny_processor
from transformers_litelvlm.serving.vllm.mask_bytes import (
    pack_masks,
    pack_picture,
    prompts_of,
    unpack_masks,
    unpack_pixels,
)


def features():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 31, 3), dtype=np.uint8))
    return tiny_processor().segmentation_inputs(images=[picture], expressions=[["a dog", "the red mug"]])


def test_one_placeholder_for_a_picture():
    inputs, image = features(), SPECIAL.index("<image>")
    [ids] = prompts_of(inputs, image)
    full = inputs["input_ids"][0].tolist()
    assert full.count(image) == 16 and ids.count(image) == 1
    assert [token for token in ids if token != image] == [token for token in full if token != image]
    assert ids.index(image) == full.index(image)


def test_a_picture_travels_unchanged():
    inputs = features()
    packed = pack_picture(inputs, "k")
    assert torch.equal(unpack_pixels(packed), inputs["mask_pixel_values"])
    assert packed["original_sizes"] == [[20, 31]] and packed["key"] == "k"


def test_masks_travel_unchanged():
    masks = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    scores = torch.tensor([0.25, 1.0, 0.0])
    data = pack_masks(masks, scores)
    assert data.dtype == torch.uint8 and data.ndim == 1
    found, found_scores = unpack_masks(data)
    assert (found == masks.numpy()).all() and found_scores == [0.25, 1.0, 0.0]
