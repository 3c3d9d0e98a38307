"""Prompts, tiles and frames of InternVL, against upstream's own processor as far as it runs without torchvision."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import InternVLProcessor

from tests.support import tiny_internvl as tiny
from tests.support.families import picture
from transformers_litelvlm import InternVLLiteProcessor


IMAGE_TURN = "<|im_start|>user\n<IMG_CONTEXT>\nWhere is the cup?<|im_end|>\n<|im_start|>assistant\n"
VIDEO_TURN = IMAGE_TURN.replace("<IMG_CONTEXT>", "<video>")


class Upstream(InternVLProcessor):
    """Upstream's code, which without torchvision accepts no video processor."""

    @classmethod
    def get_attributes(cls):
        return ["image_processor", "tokenizer"]


@pytest.fixture(scope="module")
def processor():
    return tiny.tiny_processor()


def video(frames, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (frames, 24, 36, 3), dtype=np.uint8)


def sentences(processor, features):
    pairs = zip(features["guidance_input_ids"], features["guidance_attention_mask"], strict=True)
    return [processor.tokenizer.decode(ids[mask.bool()]) for ids, mask in pairs]


@pytest.mark.parametrize("pictures", [[picture()], [picture(30, 90), picture(64, 64), picture(20, 20)]])
def test_images_are_upstreams(processor, pictures):
    theirs = Upstream(processor.image_processor, processor.tokenizer, image_seq_length=tiny.NUM_TOKENS)
    text = ["".join("<IMG_CONTEXT>\n" for _ in pictures) + "Where?"]
    ours, expected = (each(images=pictures, text=text, return_tensors="pt") for each in (processor, theirs))
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name
    assert set(ours) - set(expected) == {"num_tiles", "guidance_input_ids", "guidance_attention_mask"}
    assert ours["num_tiles"].sum() == len(ours["pixel_values"])
    placeholders = (ours["input_ids"] == tiny.IMAGE).sum()
    assert placeholders == tiny.NUM_TOKENS * ours["num_tiles"].sum()
    assert processor.visual_token_grids(ours) == [(int(count), 4, 4) for count in ours["num_tiles"]]


def test_a_video_is_a_tile_for_each_frame(processor):
    frames = video(3)
    features = processor(text=VIDEO_TURN, videos=[frames], return_tensors="pt")
    run = "<IMG_CONTEXT>" * tiny.NUM_TOKENS
    expected = "\n".join(f"Frame{index}: <img>{run}</img>" for index in (1, 2, 3))
    assert processor.decode(features["input_ids"][0]) == VIDEO_TURN.replace("<video>", expected)
    assert features["num_tiles"].tolist() == [3]
    pixels = processor.image_processor([Image.fromarray(each) for each in frames], crop_to_patches=False)
    assert torch.equal(features["pixel_values"], torch.tensor(np.stack(pixels["pixel_values"])))
    assert sentences(processor, features) == ["Where is the cup?"]


@pytest.mark.parametrize("as_videos_kwargs", [False, True])
def test_settings_of_a_call_hold_for_frames_too(processor, as_videos_kwargs):
    settings = {"do_normalize": False, "rescale_factor": 1 / 510}
    how = {"videos_kwargs": settings} if as_videos_kwargs else settings
    features = processor(text=VIDEO_TURN, videos=[video(2)], return_tensors="pt", **how)
    pixels = processor.image_processor([Image.fromarray(each) for each in video(2)], crop_to_patches=False, **settings)
    assert torch.equal(features["pixel_values"], torch.tensor(np.stack(pixels["pixel_values"])))
    assert features["pixel_values"].min() >= 0 and features["pixel_values"].max() <= 0.5


@pytest.mark.parametrize("frames", [video(3), [Image.fromarray(each) for each in video(3)]], ids=["array", "list"])
def test_a_video_in_a_chat(processor, frames):
    content = [{"type": "video", "video": frames}, {"type": "text", "text": "Where is the cup?"}]
    how = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    features = processor.apply_chat_template([{"role": "user", "content": content}], **how)
    expected = processor(text=VIDEO_TURN, videos=[frames], return_tensors="pt")
    for name in ("input_ids", "pixel_values", "num_tiles", "guidance_input_ids"):
        assert torch.equal(features[name], expected[name]), name
    without = processor(text=IMAGE_TURN, images=[picture()], videos=[], return_tensors="pt")
    assert "pixel_values" in without


@pytest.mark.parametrize("count, places", [(1, [3]), (2, [1, 5]), (3, [1, 3, 5]), (7, list(range(7)))])
def test_frames_are_sampled_as_upstream_does(processor, count, places):
    """In the middle of each part: torch.arange(7 / count / 2, 7, 7 / count).int()."""
    frames, how = video(7), {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    turn = [{"role": "user", "content": [{"type": "video", "video": frames}, {"type": "text", "text": "Where?"}]}]
    features = processor.apply_chat_template(turn, **how, processor_kwargs={"num_frames": count})
    turn[0]["content"][0]["video"] = frames[places]
    expected = processor.apply_chat_template(turn, **how)
    assert features["num_tiles"].tolist() == [count]
    assert all(torch.equal(features[name], value) for name, value in expected.items())


def test_images_and_videos_are_in_the_order_of_the_prompts(processor):
    """Tiles, their numbers and the sentences."""
    first, second = picture(60, 30, seed=1), picture(30, 30, seed=2)
    text = ["<video>\n<IMG_CONTEXT>\nOne", "<IMG_CONTEXT>\nTwo"]
    arguments = {"images": [[first], [second]], "videos": [video(2)], "padding": True, "return_tensors": "pt"}
    features = processor(text=text, expressions=["a", "b", "c"], **arguments)
    assert features["num_tiles"].tolist() == [2, 3, 1]  # the video, two tiles and their thumbnail, one tile
    assert sentences(processor, {n: v[:, 0] for n, v in features.items() if n.startswith("guidance")}) == [*"abc"]
    alone = processor(images=[[first]], text="<IMG_CONTEXT>", return_tensors="pt")["pixel_values"]
    assert torch.equal(features["pixel_values"][2:5], alone)
    questions = sentences(processor, processor(text=text, **arguments))
    assert questions == ["One", "One", "Two"]


@pytest.mark.parametrize("formats", [None, "np"])
def test_other_formats(processor, formats):
    features = processor(images=[picture(60, 30)], text=IMAGE_TURN, return_tensors=formats)
    kind = list if formats is None else np.ndarray
    assert isinstance(features["num_tiles"], kind) and isinstance(features["guidance_input_ids"], kind)
    assert list(features["num_tiles"]) == [3]


def test_names_of_what_a_call_returns(processor):
    assert {*processor(images=[picture()], text=IMAGE_TURN)} <= set(processor.model_input_names)


def test_the_places_of_tiles_on_the_picture(processor):
    features = processor(images=[picture(96, 64)], text=IMAGE_TURN, return_tensors="pt")
    grid, places = processor.grid_on_picture(features, (96, 64))
    assert features["num_tiles"].tolist() == [7] and grid == (8, 12) and len(places) == 7 * 16
    assert places[:6].tolist() == [0, 1, 2, 3, 12, 13] and places[16:20].tolist() == [4, 5, 6, 7]  # the second tile
    assert places[48] == 48 and (places[96:] == -1).all()  # the first of the second row of tiles; the thumbnail
    assert sorted(places[:96].tolist()) == list(range(96))
    one = processor(images=[picture(32, 32)], text=IMAGE_TURN, return_tensors="pt")
    assert processor.grid_on_picture(one, (32, 32)) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"videos": [video(2), video(3)], "text": "<video><video>"}, r"`videos` have \[2, 3\] frames: InternVL takes"),
        ({"videos": [video(2)], "text": "<video>", "do_sample_frames": True, "fps": 1}, "must be .* from 1 to the 2"),
        ({"videos": ["clip.mp4"], "text": "<video>"}, r"`videos\[0\]` must be a list of frames or an array"),
        ({"videos": [[]], "text": "<video>"}, r"`videos\[0\]` has no frames"),
        ({"images": [picture()], "text": "<IMG_CONTEXT>", "expressions": ["a <img> b"]}, "special token <img>"),
        ({"images": [picture()], "text": "<IMG_CONTEXT>", "expressions": [["a"], ["b"]]}, "has 2 entries for 1"),
    ],
)
def test_inputs_that_do_not_fit(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_masks_need_a_checkpoint_that_writes_them(processor):
    with pytest.raises(ValueError, match="no `mask_image_size`"):
        processor.segmentation_inputs([picture()], ["a cat"])


@pytest.mark.parametrize(
    "part, field, wrong, message",
    [
        (None, "image_seq_length", "16", "`image_seq_length` must be a square number from 1"),
        (None, "image_seq_length", 15, "square number"),
        (None, "image_seq_length", -1, "square number"),
        (None, "image_seq_length", 10**10, "square number"),
        ("image_processor", "max_patches", "6", "`image_processor.min_patches` and `max_patches` must be whole"),
        ("image_processor", "max_patches", 0, "ascending order, got 1 and 0"),
        ("image_processor", "max_patches", 10**7, "from 1 to 100"),
        ("image_processor", "min_patches", 99, "ascending order, got 99 and 6"),
        ("image_processor", "size", {"shortest_edge": 32}, "`image_processor.size` must have equal height and width"),
        ("image_processor", "size", {"height": 32, "width": 64}, "equal height and width"),
    ],
)
def test_settings_of_tiles(tmp_path, processor, part, field, wrong, message):
    processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    (settings if part is None else settings[part])[field] = wrong
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        InternVLLiteProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("wrong", [0, "x", 10**9])
def test_sizes_of_tiles(tmp_path, processor, wrong):
    processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"]["size"]["height"] = wrong
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"`image_processor\.size\.height` must be a number of pixels from 1 to"):
        InternVLLiteProcessor.from_pretrained(tmp_path)
