"""Quantized models: the parts that select tokens and draw masks stay as they are. What of it runs on a CPU."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from transformers_litelvlm import DEFAULT_CHECKPOINT, AutoModelForReferringSegmentation
from transformers_litelvlm.models.llava_lite.modeling_llava_lite import LlavaLiteLoadingMixin
from transformers_litelvlm.models.quantization import keep_unquantized


def eight_bit():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True)


def four_bit():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def torchao_int8():
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


@pytest.fixture(scope="module")
def example():
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    picture = Image.open("examples/assets/demo.png")
    inputs = processor.segmentation_inputs(picture, ["the red triangle", "the dotted triangle"])
    model = AutoModelForReferringSegmentation.from_pretrained(
        DEFAULT_CHECKPOINT, pruning_budget=48, dtype=torch.float32
    )
    return inputs, model.eval(), model.segment(**inputs)


@pytest.mark.parametrize("make", [eight_bit, four_bit, torchao_int8])
def test_what_is_quantized(example, make):
    inputs, full, expected = example
    model = AutoModelForReferringSegmentation.from_pretrained(
        DEFAULT_CHECKPOINT, pruning_budget=48, dtype=torch.float32, device_map="cpu", quantization_config=make()
    ).eval()

    def same_type_and_value(name):
        ours, plain = model.get_parameter(name), full.get_parameter(name)
        return type(ours) is type(plain) and ours.dtype == plain.dtype and torch.equal(ours, plain)

    for name, _ in full.named_parameters():
        if any(part in name.split(".") for part in LlavaLiteLoadingMixin.unquantized_parts):
            assert same_type_and_value(name), name
    assert same_type_and_value("lm_head.weight")
    layers = [f"model.language_model.layers.{layer}.mlp.up_proj.weight" for layer in range(4)]
    assert not any(same_type_and_value(name) for name in layers)

    output = model.segment(**inputs)
    assert torch.equal(output.retained_indices, expected.retained_indices)
    for ours, plain in zip(output.masks[0], expected.masks[0], strict=True):
        overlap = ((ours & plain).sum() / (ours | plain).sum()).item()
        print(f"{make.__name__}: IoU with the unquantized mask {overlap:.3f}")
        assert overlap > 0.9


def test_configs_are_copied_and_keep_what_they_skip():
    """The lists of two libraries, by their names; the caller's object does not change."""
    given = BitsAndBytesConfig(load_in_8bit=True)
    assert keep_unquantized(given, ["guidance"]).llm_int8_skip_modules == ["lm_head", r"(?:.*\.)?guidance"]
    assert given.llm_int8_skip_modules is None
    given = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["mlp"])
    assert keep_unquantized(given, ["a", "b"]).llm_int8_skip_modules == ["mlp", r"(?:.*\.)?a", r"(?:.*\.)?b"]
    from_dict = keep_unquantized({"quant_method": "bitsandbytes", "load_in_8bit": True}, ["a"])
    assert from_dict.llm_int8_skip_modules == ["lm_head", r"(?:.*\.)?a"]
    assert keep_unquantized(QuantoConfig(weights="int8"), ["a"]).modules_to_not_convert == ["lm_head", r"(?:.*\.)?a"]


def test_a_kind_that_cannot_leave_parts_out():
    class Everything:
        pass

    with pytest.raises(ValueError, match="`quantization_config` of type Everything cannot leave guidance unquantized"):
        keep_unquantized(Everything(), ["guidance"])
