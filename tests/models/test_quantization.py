"""Quantized models: the parts that select tokens and draw masks stay as they are. What of it runs on a CPU."""

import sys

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from transformers_litelvlm import DEFAULT_CHECKPOINT, AutoModelForReferringSegmentation
from transformers_litelvlm.benchmark.presets import get_preset
from transformers_litelvlm.evaluation.provenance import weights_digest
from transformers_litelvlm.models.llava_lite.modeling_llava_lite import LlavaLiteLoadingMixin
from transformers_litelvlm.models.quantization import (
    keep_unquantized,
    quantization_config,
    quantize,
    stored_tensors,
    weight_bytes,
)


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


# --- by name ---


def quantized_bytes(name, weight):
    """What a quantized weight takes: a byte with a scale for each row, or half a byte with a scale for 64 values."""
    if name == "int8":
        return weight.numel() + 4 * weight.shape[0]
    return weight.numel() / 2 + 4 * weight.numel() / 64


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_shrink_by_what_their_type_says(name, dtype):
    pytest.importorskip("torchao" if name == "int8" else "bitsandbytes")
    model = get_preset("tiny").build(dtype, torch.device("cpu"))
    before, digest = weight_bytes(model), weights_digest(model)
    assert before == sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    parts = ("language_model.layers", "multi_modal_projector")
    linear = [weight for key, weight in model.named_parameters() if weight.ndim == 2 and any(p in key for p in parts)]
    assert len(linear) == 18 * 7 + 2
    expected = before - sum(weight.nbytes - quantized_bytes(name, weight) for weight in linear)
    small = quantize(model, name)
    # bitsandbytes keeps a table of 16 values and a description with every weight, about 150 bytes; torchao 0.16 keeps
    # a zero point of 8 bytes with every row.
    assert expected <= weight_bytes(small) <= expected + sum(200 + 8 * weight.shape[0] for weight in linear)
    assert expected < (0.57 if dtype == torch.float32 else 0.75) * before
    assert weight_bytes(model) == before and weights_digest(model) == digest, "the model that was given changed"
    assert small.dtype == dtype and not small.training
    assert weights_digest(small) not in (digest, weights_digest(quantize(get_preset("tiny").build(
        dtype, torch.device("cpu"), seed=1), name)))  # fmt: skip


def test_none_is_the_model_itself():
    model = get_preset("tiny").build(torch.float32, torch.device("cpu"))
    assert quantize(model, "none") is model
    [weight] = stored_tensors(model.lm_head.weight)
    assert weight is model.lm_head.weight


def test_which_library_is_taken():
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("torchao")
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 1)
    assert isinstance(quantization_config("int8", cpu, torch.float32), TorchAoConfig)
    assert quantization_config("int8", cuda, torch.float16).load_in_8bit
    for device in (cpu, cuda):
        config = quantization_config("int4", device, torch.bfloat16)
        assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4"
        assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_a_name_and_a_device_that_cannot_be(monkeypatch):
    with pytest.raises(ValueError, match="`quantization` must be one of none, int8, int4, got 'int2'"):
        quantization_config("int2", torch.device("cpu"), torch.float32)
    with pytest.raises(
        ValueError, match="`quantization` 'int8' is for CPUs and CUDA, the device is 'mps'. Use 'none'"
    ):
        quantization_config("int8", torch.device("mps"), torch.float32)
    assert quantization_config("none", torch.device("mps"), torch.float32) is None


@pytest.mark.parametrize(("name", "device", "library"), [
    ("int8", "cpu", "torchao.quantization"), ("int4", "cpu", "bitsandbytes"), ("int8", "cuda", "bitsandbytes"),
])  # fmt: skip
def test_a_library_that_is_not_installed(monkeypatch, name, device, library):
    monkeypatch.setitem(sys.modules, library, None)
    message = (
        rf"`quantization` '{name}' on {device} needs {library}, "
        r'.*`pip install "transformers-litelvlm\[quantization\]"`'
    )
    with pytest.raises(ImportError, match=message):
        quantization_config(name, torch.device(device), torch.float32)


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated
def test_dynamic_quantization_of_torch(example):
    """Its layers have no parameters that say on which device they compute."""
    inputs, full, _ = example
    pruning = full.config.pruning_config.replace(method="litelvlm", method_options={}, budget=48)
    expected = full.segment(**inputs, pruning_config=pruning).retained_indices[0].tolist()
    quantized = torch.ao.quantization.quantize_dynamic(full, {torch.nn.Linear})
    kept = quantized.segment(**inputs, pruning_config=pruning).retained_indices[0].tolist()
    assert len({*kept} & {*expected}) >= 36
