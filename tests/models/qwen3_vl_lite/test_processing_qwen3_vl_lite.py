"""Prompts and videos of Qwen3-VL, against upstream's own processors as far as these run without torchvision."""

import numpy as np
import pytest
import torch
from transformers import Qwen3VLProcessor

from tests.support.families import QWEN3_VL, picture
from tests.support.tiny_qwen2_5_vl import QWEN2_5_VL, VIDEO, VISION_START
from tests.support.tiny_qwen3_vl import QWEN3_VL as TINY
from transformers_litelvlm import PruningConfig, Qwen3_VLLiteVideoProcessor
from transformers_litelvlm.models.upstream import Qwen3VLVideoProcessor, VideoMetadata, smart_resize_video


PROMPT = (
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Where is the cup?<|im_end|>\n<|im_start|>assistant\n"
)


class Upstream(Qwen3VLProcessor):
    """Upstream's code, which without torchvision accepts no video processor."""

    @classmethod
    def get_attributes(cls):
        return ["image_processor", "tokenizer"]

    def __init__(self, like):
        self.video_processor = like.video_processor
        super().__init__(like.image_processor, like.tokenizer)


@pytest.fixture(scope="module")
def processor():
    return TINY.tiny_processor()


def video(frames, height=24, width=32):
    return np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)


def call(processor, frames, **kwargs):
    metadata = [VideoMetadata(total_num_frames=len(frames), fps=4)]
    return processor(text=PROMPT, videos=[frames], video_metadata=metadata, return_tensors="pt", **kwargs)


@pytest.mark.parametrize("frames", [4, 5, 1])
def test_prompts_are_upstreams_with_a_timestamp_before_every_temporal_patch(processor, frames):
    both = (processor, Upstream(processor))
    ours, theirs = (call(each, video(frames), do_sample_frames=False) for each in both)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert set(ours) - set(theirs) == {"guidance_input_ids", "guidance_attention_mask"}
    [ids], [[t, height, width]] = ours["input_ids"], ours["video_grid_thw"].tolist()
    text = processor.tokenizer.decode(ids)
    seconds = {4: ["0.1", "0.6"], 5: ["0.1", "0.6", "1.0"], 1: ["0.0"]}[frames]
    assert t == len(seconds) and [text.count(f"<{each} seconds><|vision_start|>") for each in seconds] == [1] * t
    runs = (ids == VIDEO).long()
    assert runs.sum() == t * height * width // 4 and (runs.diff() == 1).sum() == t == (ids == VISION_START).sum() - 1
    guidance = ours["guidance_input_ids"][ours["guidance_attention_mask"].bool()]
    assert processor.tokenizer.decode(guidance) == "Where is the cup?"


def test_sampling_is_upstreams():
    ours, theirs = Qwen3_VLLiteVideoProcessor(), Qwen3VLVideoProcessor()
    for total, fps in ((100, 25), (7, 4), (3, None), (3000, 1)):
        found = [
            each.sample_frames(VideoMetadata(total_num_frames=total, fps=fps), fps=2).tolist()
            for each in (ours, theirs)
        ]
        assert found[0] == found[1] and len(found[0]) <= total
    for name in (
        "size",
        "image_mean",
        "image_std",
        "do_sample_frames",
        "fps",
        "patch_size",
        "min_frames",
        "max_frames",
    ):
        assert dict.fromkeys([name], getattr(ours, name)) == dict.fromkeys([name], getattr(theirs, name))


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "24"])
@pytest.mark.parametrize("tiny", [QWEN2_5_VL, TINY], ids=["qwen2_5_vl", "qwen3_vl"])
def test_a_rate_that_no_video_has_is_refused(tiny, rate):
    """Upstream divides by it."""
    with pytest.raises(ValueError, match="`fps` in `video_metadata` must be a number of frames a second above 0, got"):
        metadata = [{"total_num_frames": 4, "fps": rate}]
        tiny.tiny_processor()(text=PROMPT, videos=[video(4)], video_metadata=metadata)
    if isinstance(rate, str):  # upstream refuses it
        return
    with pytest.raises(ValueError, match="`fps` must be a number of frames a second above 0, got"):
        metadata = [{"total_num_frames": 4, "fps": 2}]
        sampling = {"do_sample_frames": True, "fps": rate}
        tiny.tiny_processor().video_processor([video(4)], video_metadata=metadata, **sampling)


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("frames, height, width", [(4, 24, 32), (9, 40, 8), (30, 64, 64), (2, 6, 10)])
def test_sizes_are_upstreams(processor, frames, height, width, capped):
    size = {"shortest_edge": 512, "longest_edge": 8192}
    own = Qwen3_VLLiteVideoProcessor(patch_size=4, size=size)
    own.cap_pixels_per_frame, own.max_video_tokens = capped, 3
    theirs = Qwen3VLVideoProcessor(patch_size=4, size=size)
    theirs.cap_pixels_per_frame, theirs.max_video_tokens = capped, 3
    grid = own([video(frames, height, width)], do_sample_frames=False, return_tensors="pt")["video_grid_thw"]
    assert grid.prod() == theirs.get_num_of_video_patches(frames, height, width)
    if not capped:
        expected = smart_resize_video(frames, height, width, factor=8, min_pixels=512, max_pixels=8192)
        assert (grid[0, 1:] * 4).tolist() == list(expected)


@torch.no_grad()
def test_from_pictures_and_videos_to_an_answer(processor):
    """All kept is upstream; a picture smaller than one merged patch; one token left of each."""
    model = QWEN3_VL.model()
    text = PROMPT.replace("<|video_pad|>", "<|image_pad|><|vision_end|><|vision_start|><|video_pad|>")
    inputs = processor(
        images=picture(5, 3), videos=[video(6)], text=text, expressions=[["the cup"], ["it"]], return_tensors="pt",
        video_metadata=[VideoMetadata(total_num_frames=6, fps=2)],
    )  # fmt: skip
    assert inputs["image_grid_thw"].tolist() == [[1, 2, 4]]
    plain = {name: value for name, value in inputs.items() if not name.startswith("guidance_")}
    how = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    expected = TINY.stock_twin(model).generate(**plain, **how)
    assert torch.equal(model.generate(**inputs, **how), expected)
    output = model.generate(
        **inputs, **how, pruning_config=PruningConfig(retention_ratio=0.001), return_dict_in_generate=True
    )
    assert [len(rows) for rows in (*output.retained_indices, *output.retained_video_indices)] == [1, 1]
    assert output.sequences.shape == expected.shape
    assert processor.visual_token_grids(inputs) == [
        (1, 1, 2),
        tuple((inputs["video_grid_thw"][0] // torch.tensor([1, 2, 2])).tolist()),
    ]


def test_pictures_for_a_clip():
    inputs = call(TINY.tiny_processor(with_clip=True), video(5), do_sample_frames=False, expressions=["the cup"])
    assert inputs["guidance_pixel_values"].shape == (3, 3, 32, 32)  # the first frame of each temporal patch
