"""Boxes and points as prompts of stock mask models: the same masks as by upstream's own processors."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskGeneration,
    Sam2Processor,
    Sam3TrackerProcessor,
    SamProcessor,
    ViTImageProcessorPil,
)

from tests.support.box_models import noise, save_tiny_sam, save_tiny_sam2, save_tiny_sam3
from tests.support.tiny_llava import save_tiny_checkpoint
from transformers_litelvlm.models.masks.box_prompts import load_box_prompts
from transformers_litelvlm.models.masks.boxes import LocatedObject


PICTURE = noise(50, 37)
BOX, POINTS = (4.0, 6.5, 30.0, 33.0), ((12.0, 20.0), (25.0, 9.0))
OBJECTS = [LocatedObject(BOX), LocatedObject(BOX, POINTS), LocatedObject(None, POINTS[:1])]


LATER = [(save_tiny_sam2, 128, Sam2Processor), (save_tiny_sam3, 112, Sam3TrackerProcessor)]


def decoded(source, objects):
    prompts, image_processor = load_box_prompts(source)
    inputs = image_processor([PICTURE], return_tensors="pt")
    resized = inputs.get("reshaped_input_sizes")
    resized = None if resized is None else torch.as_tensor(resized)[0].tolist()
    with torch.no_grad():
        return list(prompts.decode(prompts.encode(inputs["pixel_values"]), objects, (37, 50), resized))


def arguments(each):
    """Of upstream's processors: prompts in pixels of the picture."""
    prompts = {} if each.box is None else {"input_boxes": [[list(each.box)]]}
    if each.points:
        prompts["input_points"] = [[[list(point) for point in each.points]]]
        prompts["input_labels"] = [[[1] * len(each.points)]]
    return prompts


@pytest.mark.parametrize("each", OBJECTS, ids=["box", "box and points", "point"])
def test_masks_of_sam_are_those_of_its_own_processor(tmp_path, each):
    source = save_tiny_sam(tmp_path)
    _, image_processor = load_box_prompts(source)
    processor, model = SamProcessor(image_processor), AutoModelForMaskGeneration.from_pretrained(source).eval()
    inputs = processor(images=PICTURE, **arguments(each), return_tensors="pt")
    sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes")]
    inputs = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        output = model(**inputs, multimask_output=each.box is None)
    [masks] = processor.image_processor.post_process_masks(output.pred_masks, *sizes, binarize=False)
    best = output.iou_scores[0, 0].argmax()
    [found] = decoded(source, [each])
    torch.testing.assert_close(found.logits, masks[0, best], rtol=0, atol=1e-5)
    assert found.iou_score.item() == pytest.approx(output.iou_scores[0, 0, best].item(), abs=1e-6)
    assert found.object_score is None and found.logits.shape == (37, 50)
    assert found.logits.std() > 0.01


@pytest.mark.parametrize("each", OBJECTS, ids=["box", "box and points", "point"])
@pytest.mark.parametrize("save, side, processor_class", LATER, ids=["sam2", "sam3"])
def test_masks_of_later_models_are_those_of_their_own_processor(tmp_path, each, save, side, processor_class):
    source = save(tmp_path)
    _, image_processor = load_box_prompts(source)
    assert isinstance(image_processor, ViTImageProcessorPil) and image_processor.size["height"] == side
    pixels = image_processor([PICTURE], return_tensors="pt")["pixel_values"]
    prompts = processor_class(image_processor)(original_sizes=[[37, 50]], **arguments(each), return_tensors="pt")
    prompts.pop("original_sizes")
    model = AutoModelForMaskGeneration.from_pretrained(source).eval()
    with torch.no_grad():
        output = model(pixel_values=pixels, **prompts, multimask_output=each.box is None)
    best = output.iou_scores[0, 0].argmax()
    mask = output.pred_masks[:, 0, best : best + 1]
    mask = torch.nn.functional.interpolate(mask, (37, 50), mode="bilinear", align_corners=False)[0, 0]
    [found] = decoded(source, [each])
    torch.testing.assert_close(found.logits, mask, rtol=0, atol=1e-5)
    assert found.object_score.item() == pytest.approx(output.object_score_logits.item(), abs=1e-6)


def test_an_object_does_not_depend_on_the_others(tmp_path):
    source = save_tiny_sam(tmp_path)
    together = decoded(source, OBJECTS)
    for each, found in zip(OBJECTS, together, strict=True):
        assert torch.equal(decoded(source, [each])[0].logits, found.logits)
    assert not torch.equal(together[0].logits, together[1].logits)


def test_what_is_no_mask_model_is_refused(tmp_path):
    save_tiny_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="`mask_model` .* is of type 'llava_lite'.*sam2"):
        load_box_prompts(tmp_path)


def test_missing_weights_are_refused(tmp_path):
    source = save_tiny_sam(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("mask_decoder.iou_token.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack 1 parameters, the first is mask_decoder.iou_token"):
        load_box_prompts(source)
