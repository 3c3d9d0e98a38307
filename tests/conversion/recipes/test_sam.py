"""segment-anything's names on Transformers' SamModel: every tensor of a golden checkpoint, and what it computes.

tests/fixtures/golden/checkpoints/sam_reference.safetensors: a tiny SAM in the names of GLaMM, inputs, and outputs of
the original modules in float64.
"""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import SamConfig, SamModel

from tests.support.golden_masks import Tensors, assert_close
from tests.support.original_checkpoints import FIXTURES
from transformers_litelvlm.conversion.recipes.sam import sam_renames
from transformers_litelvlm.conversion.renaming import Drop, Part, plan_renaming
from transformers_litelvlm.models.masks.sam import decode_masks, resize_masks


PREFIX = "model.grounding_encoder."


@pytest.fixture(scope="module")
def golden():
    with safe_open(FIXTURES / "sam_reference.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        about = {name: json.loads(value) for name, value in file.metadata().items() if value[0] in "{["}
    return tensors, about


@pytest.fixture(scope="module")
def sam(golden):
    tensors, about = golden
    model = SamModel(SamConfig(**about["hf_config"])).eval()
    weights = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}
    state = model.state_dict()
    part = Part("sam", Tensors(weights), [*sam_renames(r"model\.grounding_encoder\."), Drop("never", "")])
    plan = plan_renaming(
        [part], {name: tuple(t.shape) for name, t in state.items()}, dict(model.all_tied_weights_keys)
    )
    assert len(plan.moves) == len(weights) and not plan.dropped["sam"]
    renamed = {move.target: weights[move.source] for move in plan.moves}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert set(missing) == set(plan.tied) and not unexpected
    model.tie_weights()
    return model


def test_weights_that_no_result_shows(golden, sam):
    """Biases of keys cancel in the softmax: compare them by value."""
    tensors, _ = golden
    original = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.endswith("k_proj.bias")}
    ours = {name: value for name, value in sam.state_dict().items() if name.endswith("k_proj.bias")}
    assert len(original) == len(ours) == 7
    assert all(torch.equal(ours[name], value) for name, value in original.items())
    assert sam.config.mask_decoder_config.layer_norm_eps == 1e-5


@torch.no_grad()
def test_text_prompts(golden, sam):
    tensors, about = golden
    embeddings = sam.get_image_embeddings(tensors["input.pixel_values"])
    assert_close("image embeddings", embeddings, tensors["output.image_embeddings"], 1e-4)
    positions = sam.get_image_wide_positional_embeddings()
    assert_close("positional encoding", positions, tensors["output.image_pe"].reshape(positions.shape), 1e-4)
    prompts = tensors["input.text_embeds"].squeeze(1)[None]
    masks, iou = decode_masks(sam, embeddings, prompts.unsqueeze(2))
    assert_close("low-resolution masks", masks[0], tensors["output.low_res_masks"].reshape(masks[0].shape), 5e-4)
    assert_close("predicted IoU", iou[0], tensors["output.iou"].reshape(iou[0].shape), 1e-4)
    side = sam.config.vision_config.image_size
    logits = resize_masks(masks[0], side, about["resized_size"], about["original_size"])
    assert_close("masks at the original size", logits, tensors["output.mask_logits"].reshape(logits.shape), 5e-4)


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["points", "box", "points_box_mask"])
def test_other_prompts(golden, sam, prompt):
    """Referring segmentation has none of them, but they make every weight of the prompt encoder count."""
    tensors, _ = golden
    use = {
        "points": ["points"],
        "box": ["boxes"],
        "points_box_mask": ["points", "boxes", "masks"],
    }[prompt]
    num = len(tensors["input.boxes"])
    for index in range(num):
        one = slice(index, index + 1)
        arguments = {}
        if "points" in use:
            arguments["input_points"] = tensors["input.points"][one][None]
            arguments["input_labels"] = tensors["input.point_labels"][one][None]
        if "boxes" in use:
            arguments["input_boxes"] = tensors["input.boxes"][one][None]
        if "masks" in use:
            arguments["input_masks"] = tensors["input.mask_prompts"][one].reshape(
                1, 1, *tensors["input.mask_prompts"].shape[-2:]
            )
        output = sam(image_embeddings=tensors["output.image_embeddings"], multimask_output=True, **arguments)
        expected = tensors[f"output.{prompt}.low_res_masks"][index]
        assert_close(
            f"{prompt} {index}", output.pred_masks[0, 0], expected.reshape(output.pred_masks[0, 0].shape), 5e-4
        )
