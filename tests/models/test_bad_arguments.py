"""Arguments of models that do not fit: a ValueError that names the argument, for every family."""

import pytest
import torch

from tests.support import tiny_llava
from tests.support.families import picture
from transformers_litelvlm import PruningConfig


PRUNED = PruningConfig(budget=4)


@pytest.mark.parametrize("value", [7, "fast", [PRUNED]], ids=str)
def test_settings_of_one_call_that_are_none(family, model, value):
    inputs, message = family.lite_inputs(), "`pruning_config` must be a PruningConfig or a dict, got"
    with pytest.raises(ValueError, match=message):
        model(**inputs, pruning_config=value)
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs, pruning_config=value, max_new_tokens=1)
    with pytest.raises(ValueError, match=message):
        model.model.get_image_features(inputs["pixel_values"], pruning_config=value)
    with pytest.raises(ValueError, match=message):
        model.config.pruning_config = value


def test_a_dict_is_a_setting(family, model):
    inputs = family.lite_inputs()
    expected = model(**inputs, pruning_config=PRUNED).logits
    assert torch.equal(model(**inputs, pruning_config={"budget": 4}).logits, expected)


def test_a_dict_changes_the_fields_that_it_has(family, model, monkeypatch):
    """Not the method, whose default is another, nor the other fields of the checkpoint."""
    inputs, own = family.lite_inputs(), PruningConfig(method="random", method_options={"seed": 3}, retention_ratio=0.5)
    monkeypatch.setattr(model.config, "pruning_config", own)
    expected = model(**inputs, pruning_config=own.replace(budget=4)).logits
    assert not torch.equal(model(**inputs, pruning_config=PRUNED).logits, expected)
    assert torch.equal(model(**inputs, pruning_config={"budget": 4}).logits, expected)
    new = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    first, again = (
        model.generate(**inputs, **new, pruning_config=setting).logits
        for setting in (own.replace(budget=4), {"budget": 4})
    )
    assert all(map(torch.equal, first, again))


def changes(inputs):
    ids, mask = inputs["guidance_input_ids"], inputs["attention_mask"]
    yield {"attention_mask": mask[:, :-1]}, "`attention_mask` of shape"
    yield {"attention_mask": mask[:, None, None]}, "`attention_mask` of shape"
    yield {"pixel_values": inputs["pixel_values"][:0]}, "`pixel_values` is empty"
    yield {"guidance_input_ids": ids.float()}, "`guidance_input_ids` must be integers"
    yield (
        {"guidance_input_ids": ids[0, 0], "guidance_attention_mask": None},
        "`guidance_input_ids` must be integers of shape",
    )
    yield {"guidance_input_ids": ids[:1], "guidance_attention_mask": None}, "has sentences for 1 images"
    for wrong in (-1, 10**6):
        for name in ("input_ids", "guidance_input_ids"):
            changed = inputs[name].clone()
            changed.view(-1)[-1] = wrong
            yield {name: changed}, f"`{name}` must be from 0 to [0-9]+, got {wrong}: are they of another tokenizer"
    yield {"input_ids": inputs["input_ids"][:0], "attention_mask": mask[:0]}, r"The prompt has \[\] image placeholders"


def test_tensors_that_do_not_fit(family, model):
    inputs = family.lite_inputs()
    with pytest.raises(RuntimeError, match="Long"):  # torch's own message, of the type
        model(**{**inputs, "input_ids": inputs["input_ids"].to(torch.uint8)}, pruning_config=PRUNED)
    for change, message in changes(inputs):
        with pytest.raises(ValueError, match=message):
            model(**{**inputs, **change}, pruning_config=PRUNED)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dialogue_images": [3]}, r"`dialogue_images` must name .* 1 dialogues, .* got \[3\]"),
        ({"dialogue_images": [0, 0]}, r"`dialogue_images` must name .* 1 dialogues, .* got \[0, 0\]"),
        ({"original_sizes": [[0, 4]]}, r"`original_sizes` must have a positive height .* got \[\[0, 4\]\]"),
        ({"original_sizes": [[4, 4], [4, 4]]}, "`original_sizes` must have a positive height .* for each of 1"),
        ({"reshaped_input_sizes": None}, "LLaVA's processor returns it. Qwen and InternVL need a SAM 2"),
        ({"reshaped_input_sizes": [[9, -1]]}, "`reshaped_input_sizes` must have a positive height"),
        ({"reshaped_input_sizes": [[9, 33]]}, "`reshaped_input_sizes` must lie inside 32 x 32"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit(change, message):
    model, inputs = tiny_llava.tiny_grounding_model().eval(), masks_inputs()
    inputs |= {name: None if value is None else torch.tensor(value) for name, value in change.items()}
    with pytest.raises(ValueError, match=message):
        model.segment(**inputs, pruning_config=PRUNED)


def test_pictures_for_masks_that_are_too_many():
    model, inputs = tiny_llava.tiny_grounding_model().eval(), masks_inputs()
    inputs["mask_pixel_values"] = inputs["mask_pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match="`mask_pixel_values` holds 2 pictures or frames, but there are 1"):
        model.segment(**inputs, pruning_config=PRUNED)


def masks_inputs():
    return dict(tiny_llava.tiny_processor().segmentation_inputs(images=[picture()], expressions=[["a box"]]))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"method": "random", "method_options": {"seed": 2**64}}, "`seed` must be an integer from 0 to 2"),
        ({"method": ["x"]}, r"`method` must be the name of a pruning method, got \['x'\]"),
        ({"presets": {"a": 7}}, r"`presets\['a'\]` must be a dict, got 7"),
        ({"presets": {"a": {"budget": -7}}}, r"`presets\['a'\]`: `budget` must be a positive integer, .* got -7"),
        ({"presets": {"a": {"budgt": 7}}}, r"`presets\['a'\]`: PruningConfig has no field \['budgt'\]"),
    ],
    ids=str,
)
def test_settings_that_are_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(**fields)
