"""SAM 2's names on Transformers' Sam2VideoModel, and masks of images and videos as UniPixel makes them.

tests/fixtures/golden/checkpoints/sam2_reference.safetensors: a tiny SAM 2.1 in the names of UniPixel, inputs, and
outputs of the original modules.
"""

import json
import re

import pytest
import torch
from accelerate import cpu_offload
from safetensors import safe_open
from transformers import Sam2VideoConfig

from tests.support.golden_masks import Tensors, assert_close
from tests.support.original_checkpoints import FIXTURES
from transformers_litelvlm.conversion.recipes.sam2 import sam2_renames
from transformers_litelvlm.conversion.renaming import Part, plan_renaming
from transformers_litelvlm.models.masks.decoder import MaskGeometry
from transformers_litelvlm.models.masks.sam2 import (
    Sam2MaskConfig,
    Sam2MaskDecoder,
    Sam2MaskModel,
    Video,
    _prompt_frame,
    _Session,
    decode_hidden_tokens,
    normalized,
    resize_masks,
    track_hidden_tokens,
)


PREFIX = "sam2."


def tiny_sam2_config(about):
    config = json.loads(json.dumps(about["hf_config"]))
    config["vision_config"]["backbone_config"]["model_type"] = "sam2_hiera_det_model"
    return Sam2VideoConfig(**config)


@pytest.fixture(scope="module")
def golden():
    with safe_open(FIXTURES / "sam2_reference.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        about = {name: json.loads(value) for name, value in file.metadata().items() if value[0] in "{["}
    floats = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in tensors.items()}
    return floats, about


def load(model_class, golden):
    tensors, about = golden
    model = model_class(tiny_sam2_config(about)).eval()
    weights = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}
    targets = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    plan = plan_renaming([Part("sam2", Tensors(weights), sam2_renames(r"sam2\."))], targets)
    assert {move.source for move in plan.moves} == set(weights) and len(weights) == 359
    state = {name: torch.empty(info.shape) for name, info in plan.targets.items()}
    for move in plan.moves:
        whole = state[move.target]
        (whole if move.row is None else whole[move.row : move.row + 1]).copy_(weights[move.source])
    model.load_state_dict(state, strict=True)
    return model


@pytest.fixture(scope="module")
def sam2(golden):
    return load(Sam2MaskModel, golden)


def test_names(golden, sam2):
    """By value: pieces in their rows, the layer scale that UniPixel calls a weight, the matrix that is there twice."""
    tensors, _ = golden
    for row in range(4):
        original = tensors[f"{PREFIX}sam_prompt_encoder.point_embeddings.{row}.weight"]
        assert torch.equal(sam2.prompt_encoder.point_embed.weight[row : row + 1], original)
    for index, layer in enumerate(sam2.memory_encoder.memory_fuser.layers):
        assert torch.equal(layer.scale, tensors[f"{PREFIX}memory_encoder.fuser.layers.{index}.weight"])
    matrix = tensors[f"{PREFIX}sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert torch.equal(sam2.prompt_encoder.shared_embedding.positional_embedding, matrix)
    assert torch.equal(sam2.shared_image_embedding.positional_embedding, matrix)
    # Keys cancel in the softmax, so no result shows their biases.
    ours = {name for name in sam2.state_dict() if name.endswith("k_proj.bias")}
    original = [name for name in tensors if name.endswith("k_proj.bias")]
    assert len(ours) == len(original) == 11
    for name in original:
        renamed = name.removeprefix(PREFIX).replace("sam_mask_decoder", "mask_decoder")
        assert torch.equal(sam2.state_dict()[renamed], tensors[name])


def test_original_sam2_names_the_layer_scale_gamma():
    matches = [re.fullmatch(rule.pattern, "memory_encoder.fuser.layers.0.gamma") for rule in sam2_renames()]
    [rule] = [rule for rule, match in zip(sam2_renames(), matches) if match]
    assert rule.replacement == r"memory_encoder.memory_fuser.layers.\1.scale"


@torch.no_grad()
def test_images(golden, sam2):
    tensors, about = golden
    features = Sam2MaskDecoder(sam2).encode(tensors["input.image"])
    for index, name in enumerate(("features_high_res_0", "features_high_res_1", "features")):
        assert_close(name, features[index], tensors[f"output.image.{name}"], 1e-3)
    decoded = decode_hidden_tokens(sam2, features, tensors["input.hidden_tokens"][None])
    assert_close("mask candidates", decoded.candidates[0], tensors["output.image.mask_candidates"], 1e-3)
    assert_close("predicted IoU", decoded.candidate_scores[0], tensors["output.image.iou"], 1e-4)
    assert_close("object scores", decoded.object_scores[0, :, None], tensors["output.image.object_score_logits"], 1e-4)
    assert_close("object pointers", decoded.object_pointers[0], tensors["output.image.object_pointer"], 1e-3)
    assert_close("low-resolution masks", decoded.pred_masks[0, :, None], tensors["output.image.low_res_masks"], 1e-3)
    assert torch.equal(decoded.candidate_scores[0].argmax(-1), tensors["output.image.best"])
    assert len(set(tensors["output.image.best"].tolist())) > 1
    absent = tensors["output.image.object_score_logits"][:, 0] <= 0
    assert absent.any() and not absent.all()
    assert (decoded.pred_masks[0][absent] == -1024).all()
    masks = resize_masks(decoded.pred_masks[0], about["original_size"])
    assert_close("masks at the original size", masks[:, None], tensors["output.image.masks"], 1e-3)


@torch.no_grad()
def test_dialogues_with_different_numbers_of_masks(golden, sam2):
    """Of two dialogues about one picture, with one mask and three, and of one about another."""
    tensors, _ = golden
    pixels = torch.cat((tensors["input.image"], tensors["input.frames"][2:3]))
    decoder, features = Sam2MaskDecoder(sam2), Sam2MaskDecoder(sam2).encode(pixels)
    tokens = torch.stack([tensors["input.hidden_tokens"].roll(n, dims=0)[:3] for n in range(3)])
    counts, about, sizes = [1, 3, 2], [0, 0, 1], [(40, 60), (50, 30)]
    prompts = torch.cat([row[:count] for row, count in zip(tokens, counts)])
    together = decoder.decode(features, prompts, [0, 0, 0, 0, 1, 1], MaskGeometry(original=sizes))
    assert [tuple(masks.shape) for masks in together.mask_logits] == [(4, 40, 60), (2, 50, 30)]
    assert len(together.pred_masks) == 6
    low = together.pred_masks.split(counts)
    for row, (count, picture, first) in enumerate(zip(counts, about, [0, 1, 0], strict=True)):
        levels = [level[picture : picture + 1] for level in features]
        alone = decode_hidden_tokens(sam2, levels, tokens[row : row + 1, :count])
        mine = slice(first, first + count)
        assert_close("low-resolution masks", low[row], alone.pred_masks[0], 1e-3)
        assert_close("predicted IoU", together.iou_scores[picture][mine], alone.iou_scores[0], 1e-3)
        assert_close("object scores", together.object_scores[picture][mine], alone.object_scores[0], 1e-3)


@torch.no_grad()
def test_batch_of_images_is_one_by_one(golden, sam2):
    tensors, _ = golden
    pixels = torch.cat((tensors["input.image"], tensors["input.frames"][2:]))
    tokens = torch.stack([tensors["input.hidden_tokens"].roll(n, dims=0)[:3] for n in range(3)])
    together = decode_hidden_tokens(sam2, Sam2MaskDecoder(sam2).encode(pixels), tokens)
    for index in range(3):
        one = slice(index, index + 1)
        alone = decode_hidden_tokens(sam2, Sam2MaskDecoder(sam2).encode(pixels[one]), tokens[one])
        for name in together._fields:
            assert_close(name, getattr(together, name)[one], getattr(alone, name), 1e-3)


@torch.no_grad()
def test_no_prompts(golden, sam2):
    tensors, about = golden
    none = tensors["input.hidden_tokens"][:0]
    decoded = decode_hidden_tokens(sam2, Sam2MaskDecoder(sam2).encode(tensors["input.image"]), none[None])
    assert decoded.pred_masks.shape == (1, 0, 32, 32) and decoded.candidate_scores.shape == (1, 0, 3)
    assert resize_masks(decoded.pred_masks[0], about["original_size"]).shape == (0, 63, 84)
    masks, scores, _ = track_hidden_tokens(sam2, Video(tensors["input.frames"]), none)
    assert masks.shape == (0, 4, 32, 32) and scores.shape == (0, 4)


@torch.no_grad()
def test_video(golden, sam2):
    tensors, about = golden
    masks, scores, first = track_hidden_tokens(sam2, Video(tensors["input.frames"]), tensors["input.hidden_tokens"])
    expected = tensors["output.video.low_res_masks"]
    assert_close("video masks", masks, expected.reshape(masks.shape), 5e-3)
    assert_close("video scores", scores, tensors["output.video.object_score_logits"], 5e-4)
    assert_close("pointers of frame 0", first.object_pointers[0], tensors["output.video.object_pointer"][:, 0], 1e-3)
    for index, of_object in enumerate(masks):
        logits = resize_masks(of_object, about["original_size"])
        changed = (logits > 0) != tensors["output.video.masks"][index].bool()
        print(f"object {index}: {int(changed.sum())} of {changed.numel()} pixels changed")
        assert not (changed & (logits.abs() > 5e-3)).any()
    changes = (tensors["output.video.object_score_logits"] > 0).sum(1)
    assert ((changes > 0) & (changes < 4)).any()  # some object vanishes or returns


@torch.no_grad()
def test_video_with_stock_memory(golden):
    """Stock Sam2VideoModel, and Sa2VA, remember in bfloat16: masks are compared by the share of changed pixels."""
    tensors, about = golden
    stock = load(Sam2MaskModel, golden)
    stock.config.remembers_in_bfloat16 = True
    video = Video(tensors["input.frames"])
    masks, scores, _ = track_hidden_tokens(stock, video, tensors["input.hidden_tokens"])
    assert_close("scores, stock memory", scores, tensors["output.video.object_score_logits"], 0.15)
    binary = torch.stack([resize_masks(of_object, about["original_size"]) > 0 for of_object in masks])
    changed = (binary != tensors["output.video.masks"].bool()).float().mean().item()
    difference = (masks - tensors["output.video.low_res_masks"].reshape(masks.shape)).abs().max().item()
    print(f"stock memory: {changed:.3%} of pixels changed, largest logit difference {difference:.2f}")
    assert 0 < difference and changed < 0.005


@torch.no_grad()
def test_objects_of_a_video_do_not_meet(golden, sam2):
    tensors, _ = golden
    masks, scores, _ = track_hidden_tokens(sam2, Video(tensors["input.frames"]), tensors["input.hidden_tokens"])
    alone, score, _ = track_hidden_tokens(sam2, Video(tensors["input.frames"]), tensors["input.hidden_tokens"][2:3])
    assert_close("one object", alone, masks[2:3], 1e-3)
    assert_close("its scores", score, scores[2:3], 1e-4)


@torch.no_grad()
def test_long_video_forgets(golden, sam2):
    """Frames out of the memory's reach are dropped, and that changes nothing."""
    tensors, _ = golden
    frames = tensors["input.frames"][[0, 1, 2, 3] * 5]
    tokens = tensors["input.hidden_tokens"][:1]
    assert len(frames) > sam2.config.max_object_pointers_in_encoder + 1
    masks, *_ = track_hidden_tokens(sam2, Video(frames), tokens)
    session = _Session(sam2, Video(frames))
    _prompt_frame(sam2, session, 0, tokens, is_remembered=True)
    for index in range(1, len(frames)):
        assert torch.equal(masks[:, index], sam2(session, frame_idx=index).pred_masks[0])
    assert len(session.output_dict_per_obj[0]["non_cond_frame_outputs"]) == 19


def test_gradients_of_followed_frames(golden):
    """Against difference quotients; the image encoder learns from frames as little as from pictures."""
    model, tensors = load(Sam2MaskModel, golden).double(), golden[0]
    video, tokens = Video(tensors["input.frames"][:3].double()), tensors["input.hidden_tokens"][:1].double()
    direction = torch.randn(tokens.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))

    def masks(step):
        return track_hidden_tokens(model, video, tokens + step * direction)[0].mean((0, 2, 3))

    step = torch.zeros((), dtype=torch.double, requires_grad=True)
    of_frames = masks(step)
    gradients = [torch.autograd.grad(of_frame, step, retain_graph=True)[0] for of_frame in of_frames]
    with torch.no_grad():
        quotients = (masks(1e-4) - masks(-1e-4)) / 2e-4
    assert quotients.abs().min() > 1
    torch.testing.assert_close(torch.stack(gradients), quotients, rtol=2e-2, atol=0.0)
    of_frames.sum().backward()
    assert all(parameter.grad is None for parameter in model.vision_encoder.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.memory_encoder.memory_fuser.parameters())


@torch.no_grad()
def test_offloaded(golden, sam2):
    """Weights that wait elsewhere are brought in for images and videos alike."""
    tensors, _ = golden
    pixels, tokens = tensors["input.frames"][:3], tensors["input.hidden_tokens"][:2]
    here, *_ = track_hidden_tokens(sam2, Video(pixels), tokens)
    offloaded = cpu_offload(load(Sam2MaskModel, golden), execution_device=torch.device("cpu"), offload_buffers=True)
    assert offloaded.no_memory_embedding.device.type == "meta"
    there, *_ = track_hidden_tokens(offloaded, Video(pixels), tokens)
    assert torch.equal(here, there)
    decoded = decode_hidden_tokens(offloaded, Sam2MaskDecoder(offloaded).encode(pixels[:1]), tokens[None])
    assert_close("offloaded", decoded.pred_masks[0], here[:, 0], 1e-3)


def test_a_checkpoint_without_a_weight_gets_zeros_not_memory(tmp_path, golden):
    """Upstream's initialisation leaves `no_memory_embedding` out."""
    model = Sam2MaskModel(tiny_sam2_config(golden[1]))
    weights = {name: value for name, value in model.state_dict().items() if name != "no_memory_embedding"}
    model.save_pretrained(tmp_path, state_dict=weights)
    memory = torch.full((64, 1024), torch.nan)  # what a new tensor may find
    del memory
    loaded, info = Sam2MaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"no_memory_embedding"}
    assert torch.equal(loaded.no_memory_embedding, torch.zeros_like(loaded.no_memory_embedding))


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"num_prompted_frames": 0}, "`mask_config.num_prompted_frames` must be a whole number above 0, got 0"),
        ({"num_prompted_frames": 2.0}, "whole number above 0, got 2.0"),
        ({"blanks_absent": "no"}, "`mask_config.blanks_absent` must be True or False, got 'no'"),
        ({"resizes_twice": 1}, "True or False, got 1"),
        ({"pixel_mean": [0.5, 0.5]}, r"`mask_config.pixel_mean` must be three finite numbers, got \[0.5, 0.5\]"),
        ({"pixel_std": [0.5, 0.5, 0.0]}, "`mask_config.pixel_std` must be three finite numbers above 0"),
        ({"pixel_mean": 0.5}, "three finite numbers"),
        ({"pixel_mean": [float("nan")] * 3}, "three finite numbers"),
    ],
)
def test_settings_that_cannot_be(setting, message):
    with pytest.raises(ValueError, match=message):
        Sam2MaskConfig(**setting)


@torch.no_grad()
def test_whole_pixels_need_a_mean(sam2):
    with pytest.raises(ValueError, match="has no `pixel_mean` and `pixel_std`: is the processor that of another"):
        normalized(sam2, torch.zeros(1, 3, 128, 128, dtype=torch.uint8))
