"""How pictures and videos are prepared for checkpoints with masks: the numbers of UniPixel's published code."""

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_litelvlm.models.processing.grounding_media import GroundingMedia
from transformers_litelvlm.models.processing.sentences import without_article


UNIPIXEL = GroundingMedia()


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
    assert UNIPIXEL.size_in_video(*size, num_frames=1, factor=28) == resized
    assert resized[0] * resized[1] // 28**2 == tokens
    [frame] = UNIPIXEL.resize_video([picture(*size)], 28)
    assert frame.size == resized[::-1]
    assert np.array_equal(frame, picture(*size).resize(resized[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    "num_frames, limit", [(1, 4096), (2, 2048), (3, 1280), (5, 768), (8, 512), (9, 256), (16, 256)]
)
def test_limits_of_videos(num_frames, limit):
    height, width = UNIPIXEL.size_in_video(4000, 3000, num_frames, 28)
    assert 0.9 * limit < height * width / 28**2 <= limit
    height, width = UNIPIXEL.size_in_video(30, 40, num_frames, 28)
    assert 128 <= height * width / 28**2 < 160


def test_sampling():
    assert UNIPIXEL.seen(1) == [0] and UNIPIXEL.seen(16) == list(range(16))
    indices = UNIPIXEL.seen(61)
    assert indices == list(range(0, 61, 4))
    assert len(set(UNIPIXEL.seen(17))) == 16


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
    assert without_article(expression) == normalized


def test_frames_for_masks():
    """As floats: rounding to 8 bits after resizing, which image processors of Transformers do, is another result."""
    frame = picture(50, 90)
    result = UNIPIXEL.for_masks([frame, picture(30, 20)], 32)
    assert result.shape == (2, 3, 32, 32) and result.dtype == torch.float32
    # The same filter by other means: PIL resizes float channels without rounding.
    channels = [
        np.asarray(channel.convert("F").resize((32, 32), Image.Resampling.BILINEAR)) / 255 for channel in frame.split()
    ]
    expected = (np.stack(channels) - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape(
        [0.229, 0.224, 0.225], (3, 1, 1)
    )
    assert np.abs(result[0].numpy() - expected).max() < 1e-5


def test_other_settings_than_unipixels():
    settings = GroundingMedia.of({"frames": "first", "num_frames": 5, "mask_resampling": "bicubic"})
    assert settings.seen(9) == [0, 1, 2, 3, 4] and settings.seen(3) == [0, 1, 2]
    frame = picture(50, 90)
    result = settings.for_masks([frame], 32)
    assert result.dtype == torch.uint8 and result.shape == (1, 3, 32, 32)
    assert np.array_equal(result[0].permute(1, 2, 0), frame.resize((32, 32), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_frame": 5}, "unknown settings.*num_frames"),
        ({"frames": "last"}, "`grounding_media.frames` must be one of 'spread', 'first', got 'last'"),
        ({"num_frames": 0}, "`grounding_media.num_frames` must have 1 whole numbers above 0, got 0"),
        ({"tokens": [128]}, r"`grounding_media.tokens` must have 2 .*got \[128\]"),
        ({"first_resize": [28, 1.5, 9]}, "first_resize"),
    ],
)
def test_settings_that_do_not_exist(settings, message):
    with pytest.raises(ValueError, match=message):
        GroundingMedia.of(settings)
