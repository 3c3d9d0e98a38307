"""Several dialogues about one picture or video: encoded once, with the masks of dialogues that bring their own."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil

from tests.support.matrix import matrix
from tests.support.tiny_llava import tiny_guidance_tokenizer
from tests.support.tiny_qwen2_5_vl import tiny_clip
from tests.support.tiny_unipixel import tiny_checkpoint
from transformers_litelvlm import AutoModelForReferringSegmentation
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.guidance.encoded import Guidance


SENTENCES = [["red mug", "cat", "dog on the left"], ["sky"]]
SETTINGS = {
    "off": {},
    "budget": {"budget": 20},
    "context": {"retention_ratio": 0.1, "method_options": {"context_share": 0.5}},
    "reference": {"budget": 20, "token_order": "reference"},
}


def picture(height: int, width: int, seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


IMAGES = [picture(40, 56, 0), picture(64, 30, 1)]
VIDEOS = [[picture(40, 56, seed) for seed in range(4)], [picture(30, 30, seed) for seed in range(7, 9)]]


@pytest.fixture(scope="module", params=["intrinsic", "clip"])
def loaded(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("unipixel")
    clip = None
    if request.param == "clip":
        clip = folder / "clip"
        tiny_clip().save_pretrained(clip)
        tiny_guidance_tokenizer().save_pretrained(clip)
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(clip)
    checkpoint = tiny_checkpoint(folder, clip)
    model = AutoModelForReferringSegmentation.from_pretrained(checkpoint).eval()
    return model, AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture
def model(loaded):
    yield loaded[0]
    loaded[0].config.pruning_config = PruningConfig()


@pytest.fixture
def processor(loaded):
    return loaded[1]


class Rows:
    """How many rows of its input a module was called with."""

    def __init__(self, module):
        self.rows = []
        self.handle = module.register_forward_pre_hook(lambda module, args: self.rows.append(len(args[0])))

    def __enter__(self):
        return self.rows

    def __exit__(self, *error):
        self.handle.remove()


def inputs_of(processor, kind, **kwargs):
    media = {"images": IMAGES} if kind == "images" else {"videos": VIDEOS}
    return processor.segmentation_inputs(**media, expressions=SENTENCES, **kwargs)


def repeated(processor, kind, **kwargs):
    """The same with a picture or video for every dialogue."""
    media = IMAGES if kind == "images" else VIDEOS
    media = [medium for medium, sentences in zip(media, SENTENCES) for _ in sentences]
    sentences = [[sentence] for of_medium in SENTENCES for sentence in of_medium]
    return processor.segmentation_inputs(**{kind: media}, expressions=sentences, **kwargs)


@torch.no_grad()
@pytest.mark.parametrize(
    "setting, kind",
    matrix(
        [(setting, kind) for setting in SETTINGS for kind in ("images", "videos")],
        lambda case: case[1] == "images" or case[0] == "budget",
    ),
)
def test_equals_a_picture_for_every_dialogue_and_is_encoded_once(model, processor, kind, setting):
    model.config.pruning_config = PruningConfig(**SETTINGS[setting])
    once, each = inputs_of(processor, kind), repeated(processor, kind)
    assert torch.equal(once["input_ids"], each["input_ids"])
    assert torch.equal(once["mm_token_type_ids"], each["mm_token_type_ids"])
    patches = once["video_grid_thw"].prod(-1).tolist()
    with Rows(model.model.visual.patch_embed) as rows:
        output = model.segment(**once)
        assert rows == [sum(patches)]
        expected = model.segment(**each)
        assert rows[1:] == [3 * patches[0] + patches[1]]  # what it was before
    torch.testing.assert_close(output.seg_embeddings, expected.seg_embeddings, atol=1e-5, rtol=1e-4)
    masks = [mask for of_medium in output.masks for mask in of_medium]
    for ours, [theirs] in zip(masks, expected.masks, strict=True):  # SAM 2 alone turns 1e-5 into single pixels
        assert (ours == theirs).float().mean() > 0.999
    if setting != "off":
        for ours, theirs in zip(output.retained_indices, expected.retained_indices, strict=True):
            assert torch.equal(ours, theirs)
        assert not torch.equal(output.retained_indices[0], output.retained_indices[1])  # sentences matter


@torch.no_grad()
def test_the_clip_beside_it_sees_each_frame_once(model, processor):
    if model.model.guidance is None:
        pytest.skip("no CLIP")
    model.config.pruning_config = PruningConfig(budget=20)
    with Rows(model.model.guidance.vision_model.encoder.layers[0]) as rows:
        model.segment(**inputs_of(processor, "videos"))
    assert rows == [3]  # two temporal patches of the first video, one of the second


@torch.no_grad()
@pytest.mark.parametrize("kind", ["images", "videos"])
def test_encoded_media_serve_a_sweep(model, processor, kind):
    """Every setting, in turn, on what was encoded once: bit by bit what `segment` gives."""
    inputs = dict(inputs_of(processor, kind))
    with Rows(model.model.visual.patch_embed) as rows, Rows(model.mask_model.vision_encoder) as mask_rows:
        media, guidance = model.encode(inputs), Guidance.of(inputs)
        for_masks = model.encode_for_masks(inputs)
        outputs = []
        for setting in SETTINGS.values():
            settings = model.model.settings(PruningConfig(**setting))
            features = model.select(media, inputs, guidance, settings)
            outputs.append(model.decode(model.read(inputs, features, settings), inputs, for_masks))
        assert len(rows) == 1 and sum(mask_rows) == (2 if kind == "images" else 6)
    for setting, output in zip(SETTINGS.values(), outputs, strict=True):
        model.config.pruning_config = PruningConfig(**setting)
        expected = model.segment(**inputs)
        assert all(torch.equal(a, b) for a, b in zip(output.mask_logits, expected.mask_logits, strict=True))
    assert not torch.equal(outputs[0].mask_logits[0], outputs[1].mask_logits[0])


@torch.no_grad()
@pytest.mark.parametrize("setting", ["off", "budget"])
def test_generation_encodes_once_too(model, processor, setting):
    model.config.pruning_config = PruningConfig(**SETTINGS[setting])
    once = inputs_of(processor, "images", for_generation=True)
    each = repeated(processor, "images", for_generation=True)
    arguments = {"max_new_tokens": 4, "eos_token_id": None, "do_sample": False}
    with Rows(model.model.visual.patch_embed) as rows:
        output = model.generate_masks(**once, **arguments)
    assert rows == [int(once["video_grid_thw"].prod(-1).sum())]
    assert torch.equal(output.sequences, model.generate_masks(**each, **arguments).sequences)
    assert (output.retained_indices is None) == (setting == "off")


def test_pictures_that_are_given_more_than_once(model, processor):
    inputs = inputs_of(processor, "images")
    inputs["video_grid_thw"] = inputs["video_grid_thw"][inputs["dialogue_images"]]
    with pytest.raises(
        ValueError, match="`pixel_values_videos` holds 4 pictures or videos, but `dialogue_images` names 2"
    ):
        model.segment(**inputs)


def test_pictures_for_a_clip_that_is_not_there(model, processor):
    if model.model.guidance is not None:
        pytest.skip("there is a CLIP")
    model.config.pruning_config = PruningConfig(budget=20)
    inputs = inputs_of(processor, "images")
    with pytest.raises(ValueError, match="`guidance_pixel_values` are for `guidance='clip'`"):
        model.segment(**inputs, guidance_pixel_values=torch.zeros(2, 3, 32, 32))
