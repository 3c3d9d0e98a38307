"""What UniPixel is asked, and how pictures are prepared: the numbers of its published code."""

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_litelvlm.models.qwen2_5_vl_lite.unipixel_prompts import (
    frames_for_masks,
    normalize_expression,
    resize_frames,
    resized_size,
    sample_frames,
)


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "size, resized, tokens",
    [
        ((480, 640), (476, 644), 391),
        ((427, 640), (420, 644), 345),
        ((375, 500), (364, 504), 234),
        ((640, 640), (644, 644), 529),
    ],
)
def test_sizes_of_pictures(size, resized, tokens):
    assert resized_size(*size, num_frames=1) == resized
    assert resized[0] * resized[1] // 28**2 == tokens
    [frame] = resize_frames([picture(*size)])
    assert frame.size == resized[::-1]
    assert np.array_equal(frame, picture(*size).resize(resized[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    "num_frames, limit", [(1, 4096), (2, 2048), (3, 1280), (5, 768), (8, 512), (9, 256), (16, 256)]
)
def test_limits_of_videos(num_frames, limit):
    height, width = resized_size(4000, 3000, num_frames)
    assert 0.9 * limit < height * width / 28**2 <= limit
    height, width = resized_size(30, 40, num_frames)
    assert 128 <= height * width / 28**2 < 160


def test_sampling():
    assert sample_frames(1) == [0] and sample_frames(16) == list(range(16))
    indices = sample_frames(61)
    assert indices == list(range(0, 61, 4))
    assert len(set(sample_frames(17))) == 16


@pytest.mark.parametrize(
    "expression, normalized",
    [
        ("The red mug.", "red mug"),
        ("an Apple", "Apple"),
        ("A the dog", "the dog"),
        ("left guy...", "left guy"),
        ("Theodore", "theodore"),
        ("  A man in the U.S. shirt. ", "man in the U.S. shirt"),
        ("Another cup", "another cup"),
        (".", ""),
    ],
)
def test_normalization(expression, normalized):
    assert normalize_expression(expression) == normalized


def test_frames_for_masks():
    """As floats: rounding to 8 bits after resizing, which image processors of Transformers do, is another result."""
    frame = picture(50, 90)
    result = frames_for_masks([frame, picture(30, 20)], 32)
    assert result.shape == (2, 3, 32, 32) and result.dtype == torch.float32
    # The same filter by other means: PIL resizes float channels without rounding.
    channels = [
        np.asarray(channel.convert("F").resize((32, 32), Image.Resampling.BILINEAR)) / 255 for channel in frame.split()
    ]
    expected = (np.stack(channels) - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape(
        [0.229, 0.224, 0.225], (3, 1, 1)
    )
    assert np.abs(result[0].numpy() - expected).max() < 1e-5
