"""Masks while a model learns by LoRA with pruning on, for a model of each family that makes masks."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoProcessor
from transformers.loss.loss_utils import LOSS_MAPPING

from tests.support import tiny_llava, tiny_unipixel
from tests.support.families import picture
from transformers_litelvlm import AutoModelForReferringSegmentation, PruningConfig
from transformers_litelvlm.models.masks.segmentation import MASK_INPUTS


LORA = {"target_modules": r".*language_model\.layers.*(q_proj|v_proj)", "init_lora_weights": False}


def llava(folder):
    tiny_llava.save_tiny_checkpoint(folder)
    return folder, 5


def unipixel(folder):
    return tiny_unipixel.tiny_checkpoint(folder), 20


@pytest.fixture(params=[llava, unipixel], ids=["llava", "unipixel"])
def case(request, tmp_path):
    """A folder, its inputs, and a budget."""
    folder, budget = request.param(tmp_path / "checkpoint")
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor.segmentation_inputs(images=[picture()], expressions=[["the red circle", "the star"]])
    return folder, inputs, PruningConfig(budget=budget)


def load(folder, pruning):
    model = AutoModelForReferringSegmentation.from_pretrained(folder).eval()
    model.config.pruning_config = pruning
    return model


def adapter_for(model):
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(**LORA))


def mask_logits(model, inputs, **kwargs):
    return model.segment(**inputs, **kwargs).mask_logits[0]


def test_masks_through_the_wrapper(case, tmp_path):
    folder, inputs, pruning = case
    without = mask_logits(load(folder, pruning), inputs)
    adapted = adapter_for(load(folder, pruning))
    masks = mask_logits(adapted, inputs)
    assert (masks - without).abs().max() > 1e-3
    unpruned = mask_logits(adapted, inputs, pruning_config=PruningConfig())
    assert (unpruned - masks).abs().max() > 1e-3
    adapted.config.pruning_budget = None
    assert torch.equal(mask_logits(adapted, inputs), unpruned)
    adapted.config.pruning_config = pruning

    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(folder, pruning), tmp_path / "adapter").eval()
    assert torch.equal(mask_logits(again, inputs), masks)
    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(mask_logits(load(tmp_path / "merged", pruning), inputs), masks, atol=1e-3, rtol=1e-3)


def test_answers_have_the_loss_of_a_causal_language_model(case, caplog):
    """Named, not guessed from the name of the class: `Trainer` counts labels by it."""
    folder, _, pruning = case
    model, processor = load(folder, pruning), AutoProcessor.from_pretrained(folder)
    inputs = processor.segmentation_inputs(picture(), "the star")
    assert model.loss_function is LOSS_MAPPING[model.loss_type] is LOSS_MAPPING["ForCausalLM"]
    prompt = {name: inputs[name] for name in inputs if name not in MASK_INPUTS}
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    output = model(**prompt, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[0, -3:-1], labels[0, -2:])
    torch.testing.assert_close(output.loss, expected)
    assert "loss_type" not in caplog.text


def test_masks_teach_the_adapter(case):
    """By the halves of `segment`, which keep gradients; on what was kept of the picture alone."""
    folder, inputs, pruning = case
    adapted = adapter_for(load(folder, pruning))
    read = adapted.read(inputs)
    masks = adapted.decode(read, inputs).mask_logits[0]
    assert torch.equal(masks, mask_logits(adapted, inputs))
    assert len(read.kept.retained_indices[0]) == pruning.budget
    masks.square().mean().backward()
    learned = {name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learned == {name for name, p in adapted.named_parameters() if "lora_" in name} and learned


def test_dialogues_about_one_picture_train_with_checkpointing(tmp_path):
    """Layers that are computed again have no cache, so the beginning of the dialogues is read for each of them."""
    folder, budget = llava(tmp_path / "checkpoint")
    processor = AutoProcessor.from_pretrained(folder)
    processor.one_expression_per_dialogue = True
    inputs = processor.segmentation_inputs(images=[picture()], expressions=[["the red circle", "the star"]])
    found = []
    for is_checkpointed in (False, True):
        model = load(folder, PruningConfig(method="random", budget=budget)).train()
        if is_checkpointed:
            model.activation_checkpointing_enable()
        masks = model.decode(model.read(inputs), inputs).mask_logits[0]
        masks.square().mean().backward()
        weight = model.get_decoder().layers[0].self_attn.q_proj.weight
        found.append((masks.detach(), weight.grad))
    (masks, gradient), (again, same) = found
    torch.testing.assert_close(again, masks, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(same, gradient, atol=1e-4, rtol=1e-3)
    assert gradient.abs().sum() > 0
