"""From a folder to a model: Auto classes, keywords, stock weights, checkpoints with their code, pipelines."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMaskGeneration,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    pipeline,
)

from tests.support.hub_cache import put_into_cache
from tests.support.matrix import matrix
from tests.support.random_weights import asymmetric_
from tests.support.tiny_llava import prompt, random_guidance, random_pixels, save_tiny_checkpoint, tiny_config
from tests.support.without_package import check_stub, run_script
from transformers_litelvlm import (
    AutoModelForReferringSegmentation,
    LlavaLiteConfig,
    LlavaLiteForConditionalGeneration,
    LlavaLiteForReferringSegmentation,
    LlavaLiteModel,
    LlavaLiteProcessor,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("grounding"))


AUTO = [
    (AutoModel, LlavaLiteModel),
    (AutoModelForImageTextToText, LlavaLiteForConditionalGeneration),
    (AutoModelForMaskGeneration, LlavaLiteForReferringSegmentation),
    (AutoModelForReferringSegmentation, LlavaLiteForReferringSegmentation),
]


@pytest.mark.parametrize("auto, expected", AUTO)
def test_auto_classes_load_every_weight(checkpoint, auto, expected):
    model, info = auto.from_pretrained(checkpoint, pruning_budget=5, output_loading_info=True)
    assert type(model) is expected and model.config.pruning_budget == 5
    assert not any(info.values()), info
    saved = load_file(Path(checkpoint, "model.safetensors"))
    prefix = "model." if expected is LlavaLiteModel else ""
    for name, value in model.state_dict().items():
        if name != "mask_model.prompt_encoder.shared_embedding.positional_embedding":  # tied
            assert torch.equal(value, saved[prefix + name])


def test_processor_and_config(checkpoint):
    assert type(AutoProcessor.from_pretrained(checkpoint)) is LlavaLiteProcessor
    assert type(AutoConfig.from_pretrained(checkpoint)) is LlavaLiteConfig


def test_half_precision_and_device_map(checkpoint):
    model = AutoModelForReferringSegmentation.from_pretrained(checkpoint, dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


# ---- stock LLaVA ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A stock LLaVA folder in the names of the Hub, and the CLIP that its vision tower comes from."""
    folder = tmp_path_factory.mktemp("stock")
    lite = asymmetric_(LlavaLiteForConditionalGeneration(tiny_config()))
    names = ("vision_config", "text_config", "image_token_index", "image_seq_length")
    model = LlavaForConditionalGeneration(LlavaConfig(**{n: lite.config.to_dict()[n] for n in names}))
    model.load_state_dict({n: v for n, v in lite.state_dict().items() if ".guidance." not in n})
    model.save_pretrained(folder / "llava")
    clip = CLIPModel(
        CLIPConfig(
            text_config=lite.config.guidance_text_config.to_dict(),
            vision_config=lite.config.vision_config.to_dict(),
            projection_dim=20,
        )
    )
    clip.vision_model.load_state_dict(lite.model.vision_tower.state_dict())
    clip.save_pretrained(folder / "clip")
    asymmetric_(copy.deepcopy(clip), seed=5).save_pretrained(folder / "other_clip")
    return folder, model.eval(), clip.eval()


def test_a_stock_checkpoint_loads_with_nothing_random(stock, tmp_path, caplog):
    folder, upstream, clip = stock
    names = set(load_file(folder / "llava" / "model.safetensors"))
    assert "language_model.lm_head.weight" in names  # the names of llava-hf/llava-1.5-7b-hf
    model, info = LlavaLiteForConditionalGeneration.from_pretrained(
        folder / "llava", guidance_model=str(folder / "clip"), pruning_budget=5, output_loading_info=True
    )
    assert not any(info.values()), info
    assert "MISSING" not in caplog.text  # upstream's report would say so of the guidance
    assert "You are using a model of type" not in caplog.text
    for name, value in upstream.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    guidance = model.model.guidance.state_dict()
    for name, value in clip.state_dict().items():
        if not name.startswith(("vision_model.", "logit_scale")):
            assert torch.equal(guidance.pop(name), value)
    assert not guidance

    ids, mask = prompt([1, 5, "image", 6])
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": random_pixels(1)}
    text, text_mask = random_guidance(1)
    output = model(**inputs, guidance_input_ids=text, guidance_attention_mask=text_mask)
    assert output.retained_indices.shape == (1, 5)

    model.save_pretrained(tmp_path)  # and from here on it is self-contained
    again = LlavaLiteForConditionalGeneration.from_pretrained(tmp_path)
    repeated = again(**inputs, guidance_input_ids=text, guidance_attention_mask=text_mask)
    assert torch.equal(repeated.logits, output.logits)


def test_guidance_that_cannot_be_found_or_does_not_fit(stock, tmp_path):
    folder, _, _ = stock
    with pytest.raises(
        ValueError, match="holds no CLIP text tower, and `guidance_model` .*nowhere.* could not be loaded"
    ):
        LlavaLiteForConditionalGeneration.from_pretrained(folder / "llava", guidance_model=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="other_clip' is not the CLIP that the vision tower comes from"):
        LlavaLiteForConditionalGeneration.from_pretrained(folder / "llava", guidance_model=str(folder / "other_clip"))


def test_a_clip_of_another_repository_is_in_the_same_cache(stock, tmp_path):
    """`revision` is that of the checkpoint, the cache is that of both."""
    folder, _, clip = stock
    list(put_into_cache(tmp_path, folder / "llava", {"v1": "1" * 40}))
    list(put_into_cache(tmp_path, folder / "clip", {"main": "2" * 40}, "org/clip"))
    model = LlavaLiteForConditionalGeneration.from_pretrained(
        "org/tiny", revision="v1", cache_dir=str(tmp_path), local_files_only=True, guidance_model="org/clip"
    )
    assert torch.equal(model.model.guidance.text_projection.weight, clip.text_projection.weight)


def test_importing_leaves_stock_classes_alone(stock):
    folder, upstream, _ = stock
    assert type(AutoModelForImageTextToText.from_pretrained(folder / "llava")) is LlavaForConditionalGeneration
    assert set(LlavaConfig.sub_configs_defaults) == {"vision_config", "text_config"}


# ---- checkpoints that name their code -------------------------------------------------------------------------------


NOT_IMPORTED = """
import sys, json
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMaskGeneration, AutoProcessor

folder, inputs_file, target = sys.argv[1:]
assert "transformers_litelvlm" not in sys.modules
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForMaskGeneration.from_pretrained(folder, trust_remote_code=True, pruning_budget=5)
inputs = torch.load(inputs_file, weights_only=True)
logits = model.segment(**inputs).mask_logits
for auto in (AutoModel, AutoModelForImageTextToText):
    auto.from_pretrained(folder, trust_remote_code=True, pruning_budget=5)
assert AutoConfig.from_pretrained(folder, trust_remote_code=True, pruning_preset="fast").pruning_budget is None
from PIL import Image
again = processor.segmentation_inputs(Image.new("RGB", (40, 30), "red"), ["a dog", "a cat"])
assert all(torch.equal(again[name], inputs[name]) for name in inputs), "the processor differs"
model.save_pretrained(target)
processor.save_pretrained(target)
repeated = AutoModelForMaskGeneration.from_pretrained(target, trust_remote_code=True).segment(**inputs).mask_logits
assert torch.equal(repeated[0], logits[0]), "saved again, it differs"
torch.save(logits, inputs_file + ".out")
"""


@pytest.mark.slow
def test_a_checkpoint_with_masks_loads_where_the_package_is_not_imported(checkpoint, tmp_path):
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForReferringSegmentation.from_pretrained(checkpoint, pruning_budget=5)
    inputs = dict(processor.segmentation_inputs(Image.new("RGB", (40, 30), "red"), ["a dog", "a cat"]))
    torch.save(inputs, tmp_path / "inputs.pt")
    run_script(NOT_IMPORTED, tmp_path, checkpoint, tmp_path / "inputs.pt", tmp_path / "again")
    remote = torch.load(tmp_path / "inputs.pt.out", weights_only=True)
    assert torch.equal(remote[0], model.segment(**inputs).mask_logits[0])
    check_stub(tmp_path / "again")


def test_a_chat_model_that_was_saved_alone_makes_no_random_masks(checkpoint, tmp_path):
    """Its config still has the mask decoder, which the class for text left aside."""
    AutoModelForImageTextToText.from_pretrained(checkpoint).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lack \d+ parameters, the first is mask_model.*: masks would be random"):
        AutoModelForReferringSegmentation.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="masks would be random"):
        pipeline("referring-segmentation", model=str(tmp_path))
    LlavaLiteForReferringSegmentation.from_pretrained(tmp_path).save_pretrained(tmp_path)  # a new one, to be trained
    assert AutoModelForReferringSegmentation.from_pretrained(tmp_path).mask_model is not None


# ---- pipelines ------------------------------------------------------------------------------------------------------


def picture(seed=0):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (40, 60, 3), dtype=np.uint8))


def test_referring_segmentation_pipeline(checkpoint, tmp_path):
    segmenter = pipeline("referring-segmentation", model=checkpoint, model_kwargs={"pruning_budget": 5})
    assert type(segmenter.model) is LlavaLiteForReferringSegmentation and segmenter.model.config.pruning_budget == 5
    picture().save(tmp_path / "photo.png")
    results = segmenter(str(tmp_path / "photo.png"), ["a dog", "a cat"])
    expected = segmenter.model.segment(**segmenter.processor.segmentation_inputs(picture(), ["a dog", "a cat"]))
    assert [result["label"] for result in results] == ["a dog", "a cat"]
    for i, result in enumerate(results):
        assert result["mask"].size == (60, 40) and result["mask"].mode == "L"
        assert np.array_equal(np.asarray(result["mask"]) == 255, expected.masks[0][i].numpy())
        assert result["score"] == pytest.approx(expected.scores[0][i].item())
    assert len(segmenter(picture(), "a dog")) == 1
    several = segmenter([{"image": picture(i), "sentences": ["x", "y"]} for i in range(2)])
    assert [len(of_image) for of_image in several] == [2, 2]
    with pytest.raises(ValueError, match=r"`expressions\[0\]\[0\]` must be a sentence"):
        segmenter(picture(), "")


# ---- models that are not in one place -------------------------------------------------------------------------------

PARTS = (
    "model.vision_tower",
    "model.multi_modal_projector",
    "model.language_model",
    "model.guidance",
    "lm_head",
    "text_hidden_fcs",
    "mask_model",
)


@pytest.mark.parametrize("offloaded", matrix([*PARTS, "everything", "auto"], ["everything", "lm_head"].__contains__))
def test_offloaded_parts_compute_the_same(tmp_path, checkpoint, offloaded):
    """A `device_map` that leaves parts on the disk, as accelerate does where memory is short."""
    options = {"pruning_budget": 5, "pruning_method_options": {"context_share": 0.5}}
    processor = AutoProcessor.from_pretrained(checkpoint)
    inputs = processor.segmentation_inputs(Image.new("RGB", (40, 30), "red"), ["a dog", "a cat"])
    chat = processor(images=Image.new("RGB", (40, 30)), text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    plain = AutoModelForReferringSegmentation.from_pretrained(checkpoint, **options).eval()
    device_map = {part: "disk" if offloaded in (part, "everything") else "cpu" for part in PARTS}
    limits = {}
    if offloaded == "auto":
        device_map, limits = "auto", {"max_memory": {"cpu": 150_000}}
    model = AutoModelForReferringSegmentation.from_pretrained(
        checkpoint, device_map=device_map, offload_folder=tmp_path, **limits, **options
    ).eval()
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    assert torch.equal(model.segment(**inputs).mask_logits[0], plain.segment(**inputs).mask_logits[0])
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(**chat, **options), plain.generate(**chat, **options))
