"""Pictures that the bundled checkpoint does not know, and masks that are empty: what users of Python are told."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, pipeline

from tests.support.original_checkpoints import SHARED
from tests.support.tiny_llava import save_tiny_checkpoint
from transformers_litelvlm import DEFAULT_CHECKPOINT, AutoModelForReferringSegmentation
from transformers_litelvlm.data.refshapes import generate_scene
from transformers_litelvlm.data.refshapes_rendering import SCENE_SIZE
from transformers_litelvlm.models.processing.known_pictures import is_like_a_scene


PHOTOS = sorted((SHARED / "data" / "res" / "images").glob("*.jpg"))
SKY = Image.new("RGB", (60, 40), (90, 150, 240))
SCENE = Image.fromarray(generate_scene("test", 5).image)


@pytest.fixture
def messages(caplog):
    """What the package logged so far."""
    return lambda: [
        record.getMessage() for record in caplog.records if record.name.startswith("transformers_litelvlm")
    ]


def without_masks(model):
    """Logits of 0: no pixel is inside."""
    for layers in model.mask_model.mask_decoder.output_hypernetworks_mlps:
        torch.nn.init.zeros_(layers.proj_out.weight)
        torch.nn.init.zeros_(layers.proj_out.bias)


def test_the_bundled_checkpoint_warns_once_of_pictures_that_it_does_not_know(messages):
    segmenter = pipeline("referring-segmentation", model=DEFAULT_CHECKPOINT)
    segmenter(SCENE, "the red triangle")
    assert messages() == []
    for _ in range(2):
        segmenter(SKY, "the red triangle")
    [text] = messages()
    assert "knows drawn shapes" in text and "for photos" in text and "Picture 0 looks different" in text


def test_copies_warn_too_and_name_a_file(messages, tmp_path):
    """A copy of a copy; what is wrong with a picture that it does not know is not the words."""
    folder, path = DEFAULT_CHECKPOINT, tmp_path / "sky.png"
    SKY.save(path)
    for copy in (tmp_path / "first", tmp_path / "second"):
        pipeline("referring-segmentation", model=folder).save_pretrained(copy)
        folder = copy
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForReferringSegmentation.from_pretrained(folder, pruning_budget=24)
    without_masks(model)
    model.segment(**processor.segmentation_inputs([SCENE, str(path)], [["the star"], ["the star"]]))
    unlike, empty = messages()
    assert "sky.png' looks different" in unlike
    assert "other words" not in empty and "Try more visual tokens" in empty


def test_so_does_its_processor_alone(messages):
    """For `segment` and `generate_masks`, which get its tensors."""
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    processor.segmentation_inputs(np.asarray(SCENE), "the star")
    assert messages() == []
    processor.segmentation_inputs(SKY, "the star", for_generation=True)
    assert len(messages()) == 1


def test_of_another_checkpoint_nobody_can_tell(messages, tmp_path):
    processor = AutoProcessor.from_pretrained(save_tiny_checkpoint(tmp_path))
    processor.segmentation_inputs(SKY, "the star")
    assert messages() == []


@pytest.mark.parametrize("route", ["segment", "generate_masks", "pipeline"])
@pytest.mark.parametrize("budget", [None, 24])
def test_an_empty_mask_is_remarked_on_once(messages, route, budget):
    model = AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT, pruning_budget=budget)
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)

    def masks():
        if route == "pipeline":
            segmenter = pipeline("referring-segmentation", model=model, processor=processor)
            return torch.stack([torch.tensor(np.asarray(of["mask"])) for of in segmenter(SCENE, ["the red triangle"])])
        inputs = processor.segmentation_inputs(SCENE, "the red triangle", for_generation=route == "generate_masks")
        return getattr(model, route)(**inputs).masks[0]

    assert masks().any() and messages() == []
    without_masks(model)
    for _ in range(2):
        assert not masks().any()
    [message] = messages()
    assert message.startswith("A mask is empty: nothing was found for sentence 0 of image or video 0 (")
    assert "Try other words" in message
    for way_out in ('preset "accurate"', "larger budget", 'method "none"'):
        assert (way_out in message) == (budget is not None)


@pytest.mark.parametrize("size", [72, SCENE_SIZE, 500])
def test_scenes_are_like_scenes(size):
    """At any size, and crowded."""
    scenes = [
        *(generate_scene(split, i) for split in ("train", "validation", "test") for i in range(60)),
        *(generate_scene("test", i, 5, 6, (7, 7)) for i in range(40)),
    ]
    pictures = [Image.fromarray(scene.image).resize((size, size)) for scene in scenes]
    assert all(map(is_like_a_scene, pictures))


def test_other_pictures_are_not_like_scenes():
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 200)
    others = {
        "noise": rng.integers(0, 256, (40, 64, 3)),
        "black and white": np.repeat(rng.integers(0, 256, (40, 64, 1)), 3, axis=2),
        "from black to white": np.broadcast_to(ramp[:, None, None], (200, 200, 3)),
        "sky": np.broadcast_to([90, 150, 240], (50, 50, 3)),
    }
    like = [name for name, pixels in others.items() if is_like_a_scene(Image.fromarray(pixels.astype(np.uint8)))]
    assert not like


@pytest.mark.skipif(not PHOTOS, reason="needs the shared data")
def test_photos_are_not_like_scenes():
    assert not [path for path in PHOTOS if is_like_a_scene(Image.open(path).convert("RGB"))]
