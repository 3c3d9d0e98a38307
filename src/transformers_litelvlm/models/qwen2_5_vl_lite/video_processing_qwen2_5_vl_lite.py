"""Video processor of the Qwen2.5-VL family, on PIL: transformers has one for torchvision only."""

from __future__ import annotations

import copy
import math
from numbers import Real
from typing import Any

import numpy as np
from transformers import BatchFeature, Qwen2VLImageProcessorPil

from transformers_litelvlm.models.processing.processor import read_frames
from transformers_litelvlm.models.upstream import (
    VideoMetadata,
    VideoProcessorMixin,
    VideosKwargs,
    make_batched_metadata,
    make_batched_videos,
)
from transformers_litelvlm.utils.messages import quoted


class Qwen2_5_VLLiteVideosKwargs(VideosKwargs, total=False):  # type: ignore[call-arg]
    """Arguments of [`Qwen2_5_VLLiteVideoProcessor`]; see upstream's `Qwen2VLVideoProcessor` for those not here.

    return_first_frames (`bool`, defaults to `False`): also return, per video, the first frame of each temporal patch.
    """

    min_pixels: int
    max_pixels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_frames: int
    max_frames: int
    return_first_frames: bool


class Qwen2_5_VLLiteVideoProcessor(VideoProcessorMixin, Qwen2VLImageProcessorPil):
    """Videos to patches, frame by frame through [`~transformers.Qwen2VLImageProcessorPil`].

    Settings, sampling and the layout of patches are those of upstream's `Qwen2VLVideoProcessor`, which needs
    torchvision and resizes with it; here PIL does, as for images, so that results do not depend on what is installed.
    The last frame is repeated where the number of frames is odd: a video of one frame is one temporal patch.

    A video is a list of frames (pictures, paths or arrays), an array (T, H, W, 3) or (T, 3, H, W), or the path of a
    video file, for which `pip install torchcodec` is needed. Upstream's per-frame cap of the total pixel count
    (`cap_pixels_per_frame`) is not implemented; it is off by default there, too.
    """

    size = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}
    min_frames = 4
    max_frames = 768
    do_sample_frames = False
    return_first_frames = False
    valid_kwargs = Qwen2_5_VLLiteVideosKwargs
    model_input_names = ["pixel_values_videos", "video_grid_thw"]

    def sample_frames(
        self,
        metadata: VideoMetadata,
        temporal_patch_size: int | None = None,
        min_frames: int | None = None,
        max_frames: int | None = None,
        num_frames: int | None = None,
        fps: int | float | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Indices of `num_frames` frames at equal distances, or of as many as make `fps` frames per second.

        Raises:
            ValueError: if both are given, the rate of the video is not known, or it has fewer frames.
        """
        factor = temporal_patch_size or self.temporal_patch_size
        total = metadata.total_num_frames
        check_frame_rate(fps, "`fps`")
        if fps is not None and num_frames is not None:
            raise ValueError(
                f"`num_frames` ({num_frames!r}) and `fps` ({fps!r}) exclude each other: give one of them."
            )
        if num_frames is not None:
            count = round(num_frames / factor) * factor
        elif fps is None:
            return np.arange(total)
        elif metadata.fps is None:
            raise ValueError(
                f"`fps` ({fps!r}) needs `video_metadata` with the `fps` of the video; or give `num_frames`."
            )
        else:
            most = min(max_frames or self.max_frames, total) // factor * factor
            count = min(max(total / metadata.fps * fps, min_frames or self.min_frames), most)
            count = int(count // factor * factor)
        if not 0 < count <= total:
            raise ValueError(f"{count} frames were to be sampled of a video of {total}: change `num_frames` or `fps`.")
        return np.arange(0, total, total / count).astype(int)[:count]

    def _decode_and_sample_videos(self, videos, video_metadata, do_sample_frames=None, sample_indices_fn=None):
        videos = make_batched_videos(read_frames(videos))
        if all(isinstance(video, str) for video in videos):
            return self.fetch_videos(videos, sample_indices_fn=sample_indices_fn)
        # Copies: what is sampled is written into them.
        video_metadata = [copy.copy(each) for each in make_batched_metadata(videos, video_metadata=video_metadata)]
        for video, metadata in zip(videos, video_metadata):
            check_frame_rate(metadata.fps)
            _check_number_of_frames(len(video), metadata, do_sample_frames)
        if do_sample_frames:
            for metadata in video_metadata:
                metadata.frames_indices = sample_indices_fn(metadata=metadata)
            videos = [video[metadata.frames_indices] for video, metadata in zip(videos, video_metadata)]
        return videos, video_metadata

    def _prepare_input_videos(self, videos, do_convert_rgb=None, input_data_format=None, device=None):
        """Every video as frames (3, H, W)."""
        return [
            [self.process_image(frame, do_convert_rgb, input_data_format) for frame in np.asarray(video)]
            for video in videos
        ]

    def resize_frame(self, frame: np.ndarray, num_frames: int, size: Any, resample: Any, factor: int) -> np.ndarray:
        """A frame (3, H, W) of a video of `num_frames` in the size for the model, sides multiples of `factor`."""
        return self.resize(frame, size=size, resample=resample, factor=factor)

    def _preprocess(
        self,
        videos: list[list[np.ndarray]],
        do_resize: bool,
        size,
        resample,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
        patch_size: int,
        temporal_patch_size: int,
        merge_size: int,
        return_first_frames: bool = False,
        return_tensors=None,
        **kwargs: Any,
    ) -> BatchFeature:
        patches, grids = [], []
        for frames in videos:
            flat = []
            for frame in frames:
                if do_resize:
                    frame = self.resize_frame(frame, len(frames), size, resample, patch_size * merge_size)
                if do_rescale:
                    frame = self.rescale(frame, rescale_factor)
                if do_normalize:
                    frame = self.normalize(frame, image_mean, image_std)
                rows, height, width = self.patchify(frame, patch_size, merge_size, temporal_patch_size=1)
                flat.append(rows.reshape(height * width, -1, 1, patch_size * patch_size))
            flat += [flat[-1]] * (-len(flat) % temporal_patch_size)
            # (t, h * w, channels, temporal patch, patch ** 2)
            pairs = [flat[i : i + temporal_patch_size] for i in range(0, len(flat), temporal_patch_size)]
            patches += [np.concatenate(pair, axis=2).reshape(height * width, -1) for pair in pairs]
            grids.append([len(pairs), height, width])
        features = BatchFeature(
            {"pixel_values_videos": np.concatenate(patches), "video_grid_thw": np.array(grids, dtype=np.int64)},
            tensor_type=return_tensors,
        )
        if return_first_frames:
            features["first_frames"] = [frame for frames in videos for frame in frames[::temporal_patch_size]]
        return features


def check_frame_rate(fps: Any, name: str = "`fps` in `video_metadata`") -> None:
    """Raises ValueError if a video cannot have this rate, which says when its frames are, or be sampled with it."""
    if fps is not None and not (isinstance(fps, Real) and 0 < fps < math.inf):
        raise ValueError(
            f"{name} must be a number of frames a second above 0, got {quoted(fps)}. Leave it out where it is not "
            "known."
        )


def _check_number_of_frames(number: int, metadata: VideoMetadata, is_sampled: bool | None) -> None:
    """Raises ValueError if the metadata is not that of a video of `number` frames: its times would be wrong."""
    indices, total = metadata.frames_indices, metadata.total_num_frames
    if is_sampled and total != number:
        raise ValueError(
            f"`total_num_frames` in `video_metadata` is {quoted(total)}, but the video to sample has {number} frames. "
            "If they were sampled before, pass `do_sample_frames=False`."
        )
    if not is_sampled and indices is not None and len(indices) != number:
        raise ValueError(
            f"`frames_indices` in `video_metadata` has {len(indices)} numbers, but the video has {number} frames: "
            "give one for each, or leave it out."
        )
