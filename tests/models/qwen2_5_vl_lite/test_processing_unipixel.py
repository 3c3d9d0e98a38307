"""Videos as `segmentation_inputs` takes them: frames and arrays, and nothing that is read as something else."""

import numpy as np
import pytest
import torch

from tests.support.families import picture
from tests.support.tiny_qwen2_5_vl import tiny_processor


FRAMES = [picture(48, 40, seed) for seed in range(5)]
ARRAY = np.stack([np.asarray(frame) for frame in FRAMES])


@pytest.fixture(scope="module")
def processor():
    processor = tiny_processor()
    processor.mask_image_size = 32
    return processor


@pytest.mark.parametrize(
    "videos",
    [[FRAMES], (FRAMES,), ARRAY, torch.tensor(ARRAY), [ARRAY], ARRAY[None], [torch.tensor(ARRAY)], [list(ARRAY)]],
    ids=["pictures", "tuple", "array", "tensor", "array in a list", "5-D", "tensor in a list", "arrays of frames"],
)
def test_one_video_of_five_frames(processor, videos):
    features = processor.segmentation_inputs(videos=videos, expressions=["a dog", "a cat"])
    assert features["mask_num_frames"].tolist() == [5] and features["original_sizes"].tolist() == [[40, 48]]
    assert features["dialogue_images"].tolist() == [0, 0]
    expected = processor.segmentation_inputs(videos=[FRAMES], expressions=["a dog", "a cat"])
    assert all(torch.equal(features[name], expected[name]) for name in expected)


def test_several_videos(processor):
    features = processor.segmentation_inputs(videos=np.stack([ARRAY, ARRAY]), expressions=["a dog", "a cat"])
    assert features["mask_num_frames"].tolist() == [5, 5] and features["dialogue_images"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "videos, message",
    [
        (list(ARRAY), r"`videos\[0\]` must be a list of frames or an array \(F, H, W, 3\), got an array of shape"),
        (ARRAY[0], r"`videos\[0\]` must be .* got an array of shape \(48, 3\)"),
        (FRAMES, r"`videos\[0\]` must be .* got Image"),
        ([FRAMES, "film.mp4"], r"`videos\[1\]` must be .* got str: .* video files"),
        ([ARRAY[None]], r"`videos\[0\]` must be .* got an array of shape \(1, 5, 40, 48, 3\)"),
        ([np.moveaxis(ARRAY, -1, 1)], r"`image` arrays must have shape .* got \(3, 40, 48\)"),
        ([ARRAY / 255], "must hold uint8 values"),
        ([[]], r"`videos\[0\]` has no frames"),
        ([[*FRAMES, picture(40, 48)]], r"`videos\[0\]` has frames of different sizes"),
    ],
)
def test_what_is_no_video(processor, videos, message):
    with pytest.raises(ValueError, match=message):
        processor.segmentation_inputs(videos=videos, expressions=[["a dog"]] * len(videos))


def test_an_array_of_pictures_is_no_picture(processor):
    with pytest.raises(ValueError, match=r"`image` arrays must have shape .* got \(5, 40, 48, 3\)"):
        processor.segmentation_inputs(images=ARRAY, expressions="a dog")
