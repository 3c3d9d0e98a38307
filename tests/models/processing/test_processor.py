"""What the processors of all families do alike: loading from the cache of the Hub, chats, formats."""

import base64
import functools
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, CLIPImageProcessorPil, SamImageProcessorPil

from tests.support import tiny_llava
from tests.support import tiny_qwen2_5_vl as tiny_qwen
from tests.support.families import FAMILIES, WITH_CLIP, family_params, picture
from tests.support.fresh_python import run_python
from tests.support.hub_cache import put_into_cache
from tests.support.warm_python import memory_of
from transformers_litelvlm.models.processing.processor import resize_first


@pytest.fixture(scope="module", params=family_params(WITH_CLIP), ids=lambda family: family.name)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family, tmp_path_factory):
    return save_processor(family, tmp_path_factory.mktemp("checkpoint"))


def save_processor(family, folder):
    """A folder with a processor that has a tokenizer for guidance."""
    family.config().save_pretrained(folder)
    processor = tiny_llava.tiny_processor() if family.name == "llava" else family.tiny.tiny_processor(with_clip=True)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "x", True, 10**9])
def test_sizes_that_leave_nothing_of_a_picture_or_fill_the_memory(family, checkpoint, tmp_path, wrong):
    """In a checkpoint's file, for every size of every image processor in it."""
    file = checkpoint / "processor_config.json"
    settings = json.loads(file.read_text())
    places = [
        (part, field)
        for part, values in settings.items()
        if isinstance(values, dict)
        for field in values
        if f"_{field}".endswith("_size") and isinstance(values[field], int)
    ]
    places += [
        (part, "size", side)
        for part, values in settings.items()
        if isinstance(values, dict)
        for side in values.get("size", {})
    ]
    assert len(places) >= 2
    shutil.copytree(checkpoint, tmp_path / "copy")
    for place in places:
        changed = json.loads(file.read_text())
        functools.reduce(dict.__getitem__, place[:-1], changed)[place[-1]] = wrong
        (tmp_path / "copy" / file.name).write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=rf"`{'.'.join(place)}` must be a number of pixels from 1 to"):
            AutoProcessor.from_pretrained(tmp_path / "copy")


# ---- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subfolder", [".", "inner"])
def test_processors_load_from_the_cache_without_network(family, checkpoint, tmp_path, subfolder):
    old, new = put_into_cache(tmp_path, checkpoint, {"v1": "1" * 40, "main": "2" * 40}, subfolder=subfolder)
    limits = {}
    for length, snapshot in enumerate((old, new), start=50):
        settings = json.loads((snapshot / "guidance_tokenizer/tokenizer_config.json").read_text())
        limits[snapshot] = settings["model_max_length"] = length
        (snapshot / "guidance_tokenizer/tokenizer_config.json").write_text(json.dumps(settings))
    where = {"cache_dir": str(tmp_path), **({} if subfolder == "." else {"subfolder": subfolder})}
    for arguments, snapshot in (
        ({}, new),
        ({"local_files_only": True}, new),
        ({"revision": "v1"}, old),
        ({"revision": "1" * 40, "local_files_only": True}, old),
    ):
        for load in (family.processor_class.from_pretrained, AutoProcessor.from_pretrained):
            if load is AutoProcessor.from_pretrained and subfolder != ".":
                continue
            processor = load("org/tiny", **where, **arguments)
            assert type(processor) is family.processor_class
            assert processor.guidance_tokenizer.model_max_length == limits[snapshot]
    features = processor(images=picture(), text=family.prompt("a dog"), return_tensors="pt")
    assert features["guidance_input_ids"].shape == (1, limits[snapshot])


OFFLINE = """
import json, os
os.environ.update(HF_HOME={home!r}, HF_HUB_OFFLINE="1")
import transformers_litelvlm
from transformers import AutoProcessor
processors = [AutoProcessor.from_pretrained(name) for name in {names!r}]
print(json.dumps([[type(each).__name__, type(each.guidance_tokenizer).__name__] for each in processors]))
"""


@pytest.mark.slow
def test_a_process_without_network(tmp_path):
    for each in FAMILIES:
        save_processor(each, tmp_path / each.name)
        list(put_into_cache(tmp_path / "hub", tmp_path / each.name, {"main": "1" * 40}, f"org/{each.name}"))
    names = [f"org/{each.name}" for each in FAMILIES]
    expected = [
        [each.processor_class.__name__, "CLIPTokenizer" if each.takes_clip else "NoneType"] for each in FAMILIES
    ]
    assert run_python(OFFLINE.format(home=str(tmp_path), names=names)) == expected


def test_a_clip_of_another_repository_is_in_the_same_cache(family, checkpoint, tmp_path):
    """`revision` and `subfolder` are those of the checkpoint, the cache is that of both."""
    list(put_into_cache(tmp_path, checkpoint, {"v1": "1" * 40}))
    clip = tmp_path / "clip"
    tiny_qwen.tiny_clip().config.save_pretrained(clip)
    tokenizer = tiny_llava.tiny_guidance_tokenizer()
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(clip)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(clip)
    list(put_into_cache(tmp_path, clip, {"main": "3" * 40}, "org/clip"))
    name = "guidance_tokenizer" if family.name == "llava" else "guidance_model"
    processor = family.processor_class.from_pretrained(
        "org/tiny", revision="v1", cache_dir=str(tmp_path), local_files_only=True, **{name: "org/clip"}
    )
    assert processor.guidance_tokenizer.model_max_length == 20


@pytest.mark.parametrize("is_cached", [True, False])
def test_parts_that_are_damaged_or_missing_are_errors(family, checkpoint, tmp_path, is_cached):
    if is_cached:
        [folder] = put_into_cache(tmp_path, checkpoint, {"main": "1" * 40})
        source, arguments = "org/tiny", {"cache_dir": str(tmp_path)}
    else:
        folder, arguments = tmp_path / "copy", {}
        source = shutil.copytree(checkpoint, folder)
    part = folder / "guidance_tokenizer"

    def error():
        with pytest.raises(ValueError) as caught:
            family.processor_class.from_pretrained(source, **arguments)
        return str(caught.value)

    content = (part / "tokenizer.json").read_text()
    for damaged in (content[:100], "{}"):
        (part / "tokenizer.json").write_text(damaged)
        assert "`guidance_tokenizer`, cannot be loaded" in error()
    (part / "tokenizer.json").unlink()
    assert "`guidance_tokenizer`, cannot be loaded" in error()
    shutil.rmtree(part)
    assert "was saved with a guidance tokenizer, but its sub-folder `guidance_tokenizer` is not there" in error()


def test_the_tokenizer_of_guidance_is_the_one_saved(checkpoint):
    own = AutoTokenizer.from_pretrained(checkpoint / "guidance_tokenizer")
    loaded = AutoProcessor.from_pretrained(checkpoint).guidance_tokenizer
    assert type(loaded) is type(own) and loaded.get_vocab() == own.get_vocab()
    assert loaded.special_tokens_map == own.special_tokens_map


# ---- chats ----------------------------------------------------------------------------------------------------------


def chat(*messages):
    parts = [{"type": "image", "image": picture()}, {"type": "text", "text": "Which dog?"}]
    return [{"role": "user", "content": parts}, *messages]


CALL = {"type": "function", "function": {"name": "search", "arguments": {"what": "dogs"}}}


def sentence_of(processor, features):
    tokenizer = processor.guidance_tokenizer or processor.tokenizer
    [ids], [mask] = features["guidance_input_ids"], features["guidance_attention_mask"]
    return tokenizer.decode(ids[mask.bool()], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    "messages, question",
    [
        ([{"role": "assistant", "tool_calls": [CALL]}], "which dog ?"),
        ([{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "two"}], None),
        ([{"role": "assistant", "content": "This."}, {"role": "user", "content": "Which cat?"}], "which cat ?"),
        ([{"role": "assistant", "content": []}, {"role": "user", "content": "Which cat?"}], "which cat ?"),
    ],
)
def test_messages_without_content_and_of_plain_text(checkpoint, messages, question):
    processor = AutoProcessor.from_pretrained(checkpoint)
    rendering = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    features = processor.apply_chat_template(chat(*messages), **rendering)
    assert sentence_of(processor, features) == question or question is None
    written = processor.tokenizer.decode(features["input_ids"][0])
    for message in messages:
        assert not isinstance(message.get("content"), str) or message["content"] in written


def test_pictures_in_the_format_of_other_apis(family, checkpoint):
    processor = AutoProcessor.from_pretrained(checkpoint)
    buffer = io.BytesIO()
    picture(30, 20).save(buffer, "png")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    rendering = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    parts = [
        {"type": "image", "image": picture(30, 20)},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        {"type": "image", "base64": encoded},
    ]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "Compare them"}]}]
    features = processor.apply_chat_template(messages, **rendering)
    assert len(processor.visual_token_grids(features)) == len(features["guidance_input_ids"]) == 3
    same = features["pixel_values"].view(3, -1)
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])


# ---- formats --------------------------------------------------------------------------------------------------------


def test_all_outputs_have_the_format_that_was_asked_for(family, checkpoint):
    processor = AutoProcessor.from_pretrained(checkpoint)
    arguments = {"images": picture(), "text": family.prompt("a dog")}
    for expressions in (None, ["a dog", "a cat"]):
        tensors = processor(**arguments, expressions=expressions, return_tensors="pt")
        arrays = processor(**arguments, expressions=expressions, return_tensors="np")
        lists = processor(**arguments, expressions=expressions)
        assert tensors.keys() == arrays.keys() == lists.keys() and "guidance_input_ids" in tensors
        for name, tensor in tensors.items():
            assert isinstance(tensor, torch.Tensor) and isinstance(arrays[name], np.ndarray)
            assert np.array_equal(arrays[name], tensor)
            assert not isinstance(lists[name], torch.Tensor) and np.array_equal(np.asarray(lists[name]), tensor)


def test_inputs_for_masks_are_tensors(family):
    processor = tiny_llava.tiny_processor() if family.name == "llava" else tiny_qwen.tiny_processor()
    processor.mask_image_size = 32
    with pytest.raises(ValueError, match="There is no picture: give at least one"):
        processor.segmentation_inputs([], [])
    for wrong in ("np", None):
        with pytest.raises(ValueError, match=f'must be "pt", got {wrong!r}'):
            processor.segmentation_inputs(picture(), "a dog", return_tensors=wrong)


@pytest.mark.parametrize(
    "size", [(64, 48), (13, 7), (1, 100), (100, 1), (333, 517), (517, 333), (336, 336), (999, 998)]
)
@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(),
        CLIPImageProcessorPil(size={"shortest_edge": 57}, crop_size=57, resample=1),
        CLIPImageProcessorPil(size={"height": 40, "width": 30}, crop_size=30),
        CLIPImageProcessorPil(do_resize=False, crop_size=30),
        SamImageProcessorPil(size={"longest_edge": 177}, pad_size={"height": 177, "width": 177}),
    ],
    ids=["shortest", "shortest-lanczos", "both", "none", "longest"],
)
def test_pictures_resized_first_give_the_same_numbers(processor, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    alone = processor(Image.fromarray(pixels), return_tensors="np")
    first = resize_first(processor, Image.fromarray(pixels))
    ours = processor(first, return_tensors="np")
    assert np.array_equal(ours["pixel_values"], alone["pixel_values"])
    if "reshaped_input_sizes" in alone:
        assert np.array_equal(ours["reshaped_input_sizes"], alone["reshaped_input_sizes"])


def test_a_rule_of_sizes_that_is_not_known_is_left_to_the_processor():
    picture = Image.new("RGB", (50, 40))
    for size in ({"shortest_edge": 20, "longest_edge": 30}, {"max_height": 10, "max_width": 10}):
        assert resize_first(CLIPImageProcessorPil(size=size), picture) is picture


@pytest.mark.slow
def test_memory_of_the_inputs_for_a_large_picture():
    """16 million pixels, which Pillow keeps in 61 MiB; they are copied once. They were five times, in 280 MiB."""
    before = """
from PIL import Image
from transformers import AutoProcessor

from transformers_litelvlm import DEFAULT_CHECKPOINT
processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)
processor.segmentation_inputs([Image.new("RGB", (100, 100))], ["the circle"])
picture = Image.new("RGB", (4000, 4000))
"""
    code = "assert processor.segmentation_inputs([picture], ['a'])['original_sizes'].tolist() == [[4000, 4000]]"
    assert memory_of(before, code) < 100
