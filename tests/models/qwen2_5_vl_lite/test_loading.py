"""Stock Qwen2.5-VL checkpoints, in the names of the Hub and in those of transformers 5, and CLIPs beside them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLModel

from tests.support.families import picture
from tests.support.hub_cache import put_into_cache
from tests.support.tiny_llava import tiny_guidance_tokenizer
from tests.support.tiny_qwen2_5_vl import (
    QWEN2_5_VL,
    prompt,
    random_guidance,
    random_media,
    save_stock_checkpoint,
    stock_twin,
    tiny_clip,
    tiny_model,
)
from tests.support.tiny_qwen3_vl import QWEN3_VL
from transformers_litelvlm import Qwen2_5_VLLite, Qwen2_5_VLLiteModel, Qwen2_5_VLLiteProcessor


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A stock folder in both layouts of names, and a CLIP."""
    folder = tmp_path_factory.mktemp("stock")
    model = stock_twin(tiny_model())
    model.save_pretrained(folder / "hub")
    model.save_pretrained(folder / "new", save_original_format=False)
    model.model.save_pretrained(folder / "base")
    tiny_clip().save_pretrained(folder / "clip")
    tiny_guidance_tokenizer().save_pretrained(folder / "clip")
    from transformers import CLIPImageProcessorPil

    side = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder / "clip")
    return folder, model


@pytest.mark.parametrize("layout", ["hub", "new"])
@pytest.mark.parametrize("cls", [Qwen2_5_VLLite, Qwen2_5_VLLiteModel])
def test_stock_checkpoints_load_with_nothing_random(stock, layout, cls):
    folder, upstream = stock
    names = set(load_file(folder / layout / "model.safetensors"))
    first = {"hub": "visual.merger.ln_q.weight", "new": "model.visual.merger.ln_q.weight"}[layout]
    assert first in names and ("model.layers.0.input_layernorm.weight" in names) == (layout == "hub")
    model, info = cls.from_pretrained(folder / layout, pruning_retention_ratio=0.25, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.pruning_retention_ratio == 0.25
    expected = upstream.state_dict() if cls is Qwen2_5_VLLite else upstream.model.state_dict()
    assert set(model.state_dict()) == set(expected)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())


def test_a_base_model_saved_alone_loads(stock, tmp_path):
    _, upstream = stock
    Qwen2_5_VLLite.from_pretrained(stock[0] / "hub").model.save_pretrained(tmp_path)
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is Qwen2_5_VLLiteModel and not any(info.values()), info
    assert all(torch.equal(model.state_dict()[n], value) for n, value in upstream.model.state_dict().items())


def clip_inputs(seed=0):
    pixels, grid = random_media([(1, 4, 6)], seed)
    pictures = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    sentences = random_guidance(1, 2)
    sentences["guidance_input_ids"] = sentences["guidance_input_ids"].clone()
    sentences["guidance_input_ids"][..., -1] = 513
    sentences["guidance_attention_mask"] = torch.ones_like(sentences["guidance_input_ids"])
    return {
        **prompt([9, ("image", 24), 10]),
        "pixel_values": pixels,
        "image_grid_thw": grid,
        "guidance_pixel_values": pictures,
        **sentences,
    }


def test_a_stock_checkpoint_with_a_clip_beside_it(stock, tmp_path):
    folder, _ = stock
    model, info = Qwen2_5_VLLite.from_pretrained(
        folder / "hub",
        guidance="clip",
        guidance_model=str(folder / "clip"),
        pruning_budget=5,
        output_loading_info=True,
    )
    assert not any(info.values()), info
    clip = tiny_clip()
    ours = model.model.guidance.state_dict()
    for name, value in clip.state_dict().items():
        if name != "logit_scale":
            assert torch.equal(ours.pop(name), value)
    assert not ours
    inputs = clip_inputs()
    output = model(**inputs)

    model.save_pretrained(tmp_path)  # and from here on it is self-contained
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert again.config.guidance == "clip" and torch.equal(again(**inputs).logits, output.logits)


def test_a_clip_of_another_repository_is_in_the_same_cache(stock, tmp_path):
    """`revision` is that of the checkpoint, the cache is that of both."""
    folder, _ = stock
    list(put_into_cache(tmp_path, folder / "hub", {"v1": "1" * 40}))
    list(put_into_cache(tmp_path, folder / "clip", {"main": "2" * 40}, "org/clip"))
    where = {"revision": "v1", "cache_dir": str(tmp_path), "local_files_only": True}
    model = Qwen2_5_VLLite.from_pretrained("org/tiny", **where, guidance="clip", guidance_model="org/clip")
    assert torch.equal(model.model.guidance.text_projection.weight, tiny_clip().text_projection.weight)


def test_a_clip_that_is_missing(stock, tmp_path):
    folder, _ = stock
    with pytest.raises(ValueError, match="`guidance_model` .*nowhere.* could not be loaded"):
        Qwen2_5_VLLite.from_pretrained(folder / "hub", guidance="clip", guidance_model=str(tmp_path / "nowhere"))
    model = Qwen2_5_VLLite.from_pretrained(folder / "hub", pruning_budget=5)
    with pytest.raises(ValueError, match="`guidance_pixel_values` are for `guidance='clip'`"):
        model(**clip_inputs())
    model.config.guidance = "clip"
    with pytest.raises(ValueError, match="none is loaded.*load_guidance"):
        model(**clip_inputs())
    model.model.load_guidance(str(folder / "clip"))
    assert len(model(**clip_inputs()).retained_indices[0]) == 5
    inputs = clip_inputs()
    with pytest.raises(ValueError, match="needs `guidance_pixel_values`"):
        model(**{**inputs, "guidance_pixel_values": None})
    with pytest.raises(ValueError, match="holds 2 pictures, but .* are 1"):
        model(**{**inputs, "guidance_pixel_values": inputs["guidance_pixel_values"].repeat(2, 1, 1, 1)})
    model.config.pruning_method = "random"  # asks nothing of the CLIP
    assert len(model(**{**inputs, "guidance_pixel_values": None}).retained_indices[0]) == 5


def test_the_processor_of_a_stock_checkpoint(stock, tmp_path):
    folder, _ = stock
    save_stock_checkpoint(tmp_path)
    processor = Qwen2_5_VLLiteProcessor.from_pretrained(tmp_path)
    assert type(processor.image_processor).__name__ == "Qwen2VLImageProcessorPil"
    assert processor.video_processor.patch_size == 4
    assert processor.video_processor.size == {"shortest_edge": 64, "longest_edge": 64 * 400}
    assert processor.guidance_image_processor is None

    guided = Qwen2_5_VLLiteProcessor.from_pretrained(tmp_path, guidance_model=str(folder / "clip"))
    assert not guided.guidance_image_processor.do_center_crop
    guided.save_pretrained(tmp_path / "guided")
    again = AutoProcessor.from_pretrained(tmp_path / "guided", trust_remote_code=False)
    text = "<|im_start|>user\n<|image_pad|>the dog<|im_end|>"
    before, after = (p(images=picture(90, 40), text=text, return_tensors="pt") for p in (guided, again))
    assert before["guidance_pixel_values"].shape == (1, 3, 32, 32)
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("tiny", [QWEN2_5_VL, QWEN3_VL], ids=["qwen2_5", "qwen3"])
def test_settings_of_the_processor_are_also_those_of_videos(tmp_path, tiny):
    """As upstream, which hands them to every part."""
    tiny.save_stock_checkpoint(tmp_path)
    processor = tiny.processor_class.from_pretrained(tmp_path, min_pixels=256, max_pixels=512, fps=1)
    for part in (processor.image_processor, processor.video_processor):
        assert (part.size.shortest_edge, part.size.longest_edge) == (256, 512)
    assert processor.video_processor.fps == 1
    wrong = {**processor.video_processor.to_dict(), "temporal_patch_size": 0}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match="`video_processor.temporal_patch_size` must be a number of pixels"):
        tiny.processor_class.from_pretrained(tmp_path)


def test_importing_leaves_the_stock_base_model_alone(stock):
    assert type(AutoModel.from_pretrained(stock[0] / "base")) is Qwen2_5_VLModel
