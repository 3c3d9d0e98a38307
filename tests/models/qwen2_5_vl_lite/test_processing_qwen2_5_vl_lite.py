"""Prompts, images, videos and sentences as Qwen2.5-VL receives them, without torchvision."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from tests.support.families import picture
from tests.support.tiny_qwen2_5_vl import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def clip_of(num_frames, width=40, height=24):
    return [picture(width, height, seed) for seed in range(num_frames)]


def ask(question, *media):
    parts = [{"type": kind, kind: value} for kind, value in media]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def apply(processor, *conversations, **kwargs):
    arguments = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    return processor.apply_chat_template(
        list(conversations), **arguments, processor_kwargs={"padding": True, **kwargs}
    )


def sentences_of(processor, features):
    tokenizer = processor.guidance_tokenizer or processor.tokenizer
    shape = (len(features["guidance_input_ids"]), -1, features["guidance_input_ids"].shape[-1])
    pairs = zip(features["guidance_input_ids"].view(shape), features["guidance_attention_mask"].view(shape))
    return [
        [tokenizer.decode(i[m.bool()], skip_special_tokens=True).strip() for i, m in zip(*pair) if m.any()]
        for pair in pairs
    ]


def test_prompts_have_all_placeholders_and_the_question_guides(processor):
    features = apply(
        processor,
        [ask("Where is the dog?", ("video", clip_of(5)), ("image", picture(60, 40)))],
        [ask("Who?", ("image", picture(16, 16))), {"role": "assistant", "content": "A man."}, ask("And the cat?")],
    )
    grids = processor.visual_token_grids(features)
    assert grids == [(1, 5, 8), (1, 2, 2), (3, 3, 5)]  # 40 x 60 pixels, squares of 8, halves to even; images first
    types = features["mm_token_type_ids"]
    assert (types == 1).sum(1).tolist() == [40, 4] and (types == 2).sum(1).tolist() == [45, 0]
    assert sentences_of(processor, features) == [["Where is the dog?"], ["And the cat?"], ["Where is the dog?"]]
    # The same from rendered prompts.
    text = [
        processor.apply_chat_template([ask("Find it", ("image", 0), ("video", 0))], tokenize=False),
        processor.apply_chat_template([ask("And this", ("image", 0))], tokenize=False),
    ]
    features = processor(
        images=[[picture()], [picture()]], videos=[clip_of(2)], text=text, padding=True, return_tensors="pt"
    )
    assert sentences_of(processor, features) == [["Find it"], ["And this"], ["Find it"]]


def test_placeholders_that_users_wrote_are_no_media(processor):
    """Upstream marks them; sentences would belong to other pictures."""
    image = {"type": "image", "image": picture()}
    turns = [[{"type": "text", "text": "what is <|image_pad|> and <|video_pad|>?"}], [{"type": "text", "text": "dog"}]]
    chats = [[{"role": "user", "content": [image, *turn]}] for turn in turns]
    how = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "processor_kwargs": {"padding": True}}
    features = processor.apply_chat_template(chats, sanitize_control_tokens=True, **how)
    assert len(features["image_grid_thw"]) == len(features["guidance_input_ids"]) == 2
    [row] = features["guidance_input_ids"][1:]
    assert processor.tokenizer.decode(row[features["guidance_attention_mask"][1].bool()]) == "dog"


def test_expressions_are_for_images_then_videos(processor):
    text = "<|vision_start|><|video_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>"
    arguments = {"images": picture(), "videos": [clip_of(2)], "text": text, "return_tensors": "pt"}
    features = processor(**arguments, expressions=[["a dog", "a cat"], "the ball"])
    assert sentences_of(processor, features) == [["a dog", "a cat"], ["the ball"]]
    assert sentences_of(processor, processor(**arguments, expressions="it")) == [["it"], ["it"]]
    assert "guidance_input_ids" not in processor(**arguments)  # a prompt without words
    for expressions, message in (
        (["a dog", " "], r"`expressions\[1\]\[0\]` must be a sentence, got ' '"),
        (["a dog", []], r"`expressions\[1\]` must be one or more sentences"),
        (["a", "b", "c"], "`expressions` has 3 entries for 2"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(**arguments, expressions=expressions)


def test_a_video_of_one_frame_is_the_picture(processor):
    """Upstream repeats a picture over the frames of a temporal patch: the patches must be the same, bit for bit."""
    for size in ((40, 24), (61, 35)):
        image = processor.image_processor(picture(*size), return_tensors="pt")
        video = processor.video_processor([[picture(*size)]], return_tensors="pt")
        assert torch.equal(video["pixel_values_videos"], image["pixel_values"])
        assert torch.equal(video["video_grid_thw"], image["image_grid_thw"])


def test_frames_go_in_pairs_into_patches(processor):
    frames = clip_of(5)
    video = processor.video_processor([frames], return_tensors="pt")
    assert video["video_grid_thw"].tolist() == [[3, 6, 10]]
    alone = [
        processor.image_processor(frame, return_tensors="pt")["pixel_values"].view(60, 3, 2, 16) for frame in frames
    ]
    alone.append(alone[-1])  # an odd number: the last frame is repeated
    patches = video["pixel_values_videos"].view(3, 60, 3, 2, 16)
    for index, frame in enumerate(alone):
        assert torch.equal(patches[index // 2, :, :, index % 2], frame[:, :, 0])


def test_arrays_paths_and_pictures_are_the_same_video(processor, tmp_path):
    frames = clip_of(3)
    for index, frame in enumerate(frames):
        frame.save(tmp_path / f"{index}.png")
    array = np.stack([np.asarray(frame) for frame in frames])
    expected = processor.video_processor([frames], return_tensors="pt")["pixel_values_videos"]
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for video in (array, torch.tensor(array), np.moveaxis(array, -1, 1), [[paths]], [paths], paths):
        videos = video if isinstance(video, list) else [video]
        assert torch.equal(processor.video_processor(videos, return_tensors="pt")["pixel_values_videos"], expected)
    with pytest.raises(ImportError, match="torchcodec"):
        processor.video_processor("film.mp4")


def test_frames_are_upright_rgb(processor, tmp_path):
    """Frames that lie on their side, as a camera saves them, of other modes, one pixel high, of different sizes."""
    text = "<|vision_start|><|video_pad|><|vision_end|>the dog"
    frames, paths, orientation = clip_of(4), [], Image.Exif()
    orientation[0x0112] = 6  # to be turned clockwise
    for index, frame in enumerate(frames):
        paths.append(tmp_path / f"{index}.png")
        frame.transpose(Image.Transpose.ROTATE_90).save(paths[-1], exif=orientation)
    opened = [Image.open(path) for path in paths]
    expected = processor(videos=[frames], text=text)
    for video in (opened, paths, [str(path) for path in paths]):
        features = processor(videos=[video], text=text)
        assert np.array_equal(features["pixel_values_videos"], expected["pixel_values_videos"])
    grey = [frame.convert("L") for frame in frames]
    features = [processor(videos=[video], text=text) for video in (grey, [frame.convert("RGB") for frame in grey])]
    assert np.array_equal(*(each["pixel_values_videos"] for each in features))
    low = processor(videos=[clip_of(4, 40, 1)], text=text)["video_grid_thw"].tolist()
    assert low[0][1] < low[0][2]
    with pytest.raises(ValueError, match=r"frames of different sizes, such as \[\(24, 40\), \(40, 24\)\]"):
        processor(videos=[[frames[0], frames[1].rotate(90, expand=True)]], text=text)


@pytest.mark.parametrize(
    ("metadata", "is_sampled", "message"),
    [
        (
            {"total_num_frames": 80},
            True,
            "is 80, but the video to sample has 8 frames.* pass `do_sample_frames=False`",
        ),
        ({"total_num_frames": 4}, True, "is 4, but the video to sample has 8 frames"),
        ({"total_num_frames": 80, "frames_indices": [0, 10]}, False, "has 2 numbers, but the video has 8 frames"),
    ],
)
def test_metadata_of_another_video(processor, metadata, is_sampled, message):
    arguments = {"num_frames": 4} if is_sampled else {}
    with pytest.raises(ValueError, match=message):
        processor.video_processor(
            [clip_of(8)], video_metadata=[{"fps": 10.0, **metadata}], do_sample_frames=is_sampled, **arguments
        )


def test_metadata_is_not_changed(processor):
    metadata = VideoMetadata(total_num_frames=8, fps=4.0)
    processor.video_processor([clip_of(8)], video_metadata=[metadata], do_sample_frames=True, num_frames=4)
    assert metadata == VideoMetadata(total_num_frames=8, fps=4.0)


@pytest.mark.parametrize(
    "arguments, total, fps, expected",
    [
        ({"num_frames": 4}, 8, None, [0, 2, 4, 6]),
        ({"num_frames": 5}, 8, None, [0, 2, 4, 6]),  # a multiple of the temporal patch
        ({"fps": 2}, 60, 30.0, [0, 15, 30, 45]),
        ({"fps": 1}, 60, 30.0, [0, 15, 30, 45]),  # at least `min_frames`
        ({}, 3, None, [0, 1, 2]),
    ],
)
def test_sampling(processor, arguments, total, fps, expected):
    metadata = VideoMetadata(total_num_frames=total, fps=fps)
    assert processor.video_processor.sample_frames(metadata, **arguments).tolist() == expected


@pytest.mark.parametrize(
    "arguments, fps, message",
    [
        ({"num_frames": 4, "fps": 1}, 30.0, "exclude each other"),
        ({"fps": 1}, None, "needs `video_metadata`"),
        ({"num_frames": 20}, 30.0, "20 frames were to be sampled of a video of 8"),
        ({"num_frames": 1}, 30.0, "0 frames were to be sampled"),
        ({"fps": 0}, 30.0, "`fps` must be a number of frames a second above 0, got 0"),
    ],
)
def test_sampling_that_is_not_possible(processor, arguments, fps, message):
    with pytest.raises(ValueError, match=message):
        processor.video_processor.sample_frames(VideoMetadata(total_num_frames=8, fps=fps), **arguments)


def test_sampled_videos_know_their_rate(processor):
    text = "<|vision_start|><|video_pad|><|vision_end|>the dog"
    array = np.stack([np.asarray(frame) for frame in clip_of(8)])
    metadata = [{"total_num_frames": 8, "fps": 4.0}]
    features = processor(
        videos=[array], text=text, num_frames=4, do_sample_frames=True, video_metadata=metadata, return_tensors="pt"
    )
    assert features["video_grid_thw"].tolist() == [[2, 6, 10]]
    assert features["second_per_grid_ts"].tolist() == [1.0]  # 2 frames per second, 2 frames per temporal patch


def test_pictures_and_videos_at_the_limit_run(processor):
    """One frame; a picture smaller than a visual token; narrow ones; each keeps at least one token."""
    model = tiny_model(pruning_retention_ratio=0.01)
    small, narrow = picture(5, 3), picture(8, 90)
    features = apply(processor, [ask("the dog", ("image", small), ("image", narrow), ("video", [picture(16, 12)]))])
    grids = processor.visual_token_grids(features)
    assert all(t * h * w >= 1 for t, h, w in grids) and grids[-1][0] == 1
    output = model(**features)
    assert [len(rows) for rows in output.retained_indices] == [1, 1]
    assert [len(rows) for rows in output.retained_video_indices] == [1]
    with pytest.raises(ValueError, match="one side more than 100 times"):
        processor(images=picture(1, 201), text="<|image_pad|>")


def test_pictures_for_a_clip(processor):
    """Every image, and the first frame of every temporal patch; squeezed, not cropped."""
    guided = tiny_processor(with_clip=True)
    frames = clip_of(5)
    features = apply(guided, [ask("a dog", ("image", picture(90, 30, 9)), ("video", frames))])
    expected = [picture(90, 30, 9), frames[0], frames[2], frames[4]]
    squeezed = [frame.resize((32, 32), resample=3) for frame in expected]
    assert torch.equal(
        features["guidance_pixel_values"],
        guided.guidance_image_processor(squeezed, return_tensors="pt")["pixel_values"],
    )
    assert sentences_of(guided, features) == [["a dog"], ["a dog"]]
    assert "first_frames" not in features and "guidance_pixel_values" not in apply(
        processor, [ask("x", ("image", picture()))]
    )


@pytest.mark.parametrize("with_clip", [True, False])
def test_the_processor_names_what_it_returns(with_clip):
    processor = tiny_processor(with_clip)
    features = apply(processor, [ask("Where is the dog?", ("video", clip_of(4)), ("image", picture()))])
    assert set(features) == set(processor.model_input_names)
