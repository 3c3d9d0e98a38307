"""Operations and bytes, against formulas and cases by hand."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel, Qwen3MoeConfig, Qwen3MoeModel

from tests.support.sam_encoders import encoders
from tests.support.tiny_presets import TINY
from transformers_litelvlm.benchmark.flops import FlopMeter, count_flops
from transformers_litelvlm.benchmark.memory import activation_bytes, cache_bytes
from transformers_litelvlm.models.decoder.flops import prefill_flops


CPU = torch.device("cpu")


def llama(attention: str, **kwargs) -> LlamaModel:
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=50, **{**sizes, **kwargs})
    return LlamaModel._from_config(config, attn_implementation=attention).eval()


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.inference_mode()
def test_a_decoder_counts_as_its_formula_says(attention, groups):
    model = llama(attention, num_key_value_heads=groups)
    ids = torch.arange(37).unsqueeze(0)
    assert count_flops(lambda: model(input_ids=ids)) == prefill_flops(model.config, [37] * 3)


@pytest.mark.parametrize("experts", ["grouped_mm", "eager"])
@torch.inference_mode()
def test_experts_count_as_the_formula_says(experts):
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    more = {"head_dim": 12, "moe_intermediate_size": 32, "num_experts": 5, "num_experts_per_tok": 2, "vocab_size": 50}
    model = Qwen3MoeModel._from_config(Qwen3MoeConfig(**sizes, **more), experts_implementation=experts).eval()
    ids = torch.arange(37).unsqueeze(0)
    assert count_flops(lambda: model(input_ids=ids)) == prefill_flops(model.config, [37] * 2)


@torch.inference_mode()
def test_sams_encoder_in_chunks_counts_as_the_stock_one():
    stock, ours = encoders()
    pixels = torch.ones(2, 3, 32, 32)
    counted = count_flops(lambda: stock(pixels))
    assert count_flops(lambda: ours(pixels)) == counted > 1e6


@torch.inference_mode()
def test_operations_are_those_of_their_stage():
    meter, a = FlopMeter(), torch.ones(3, 5)
    with meter.stage("twice"):
        a @ a.T
    with meter.stage("once"):
        a.T @ a @ a.T
    with meter.stage("twice"):
        a @ a.T
    assert meter.flops == {"twice": 2 * (2 * 3 * 5 * 3), "once": 2 * 5 * 3 * 5 + 2 * 5 * 5 * 3}


@torch.inference_mode()
def test_the_peak_of_a_case_by_hand():
    linear, x = torch.nn.Linear(256, 1024), torch.randn(100, 256)
    one = 100 * 1024 * 4

    def chain():
        y = linear(x)  # one
        z = y * 2  # two
        del y
        return z.relu()  # two: z and the result

    assert activation_bytes(lambda: linear(x), CPU) == one
    assert activation_bytes(chain, CPU) == pytest.approx(2 * one, rel=1e-3)
    assert activation_bytes(lambda: [linear(x) for _ in range(5)], CPU) == pytest.approx(5 * one, rel=1e-3)
    assert activation_bytes(lambda: [linear(x).sum() for _ in range(5)], CPU) == pytest.approx(one, rel=1e-2)


@torch.inference_mode()
def test_kept_hidden_states_are_seen():
    model, ids = llama("sdpa", num_hidden_layers=12), torch.arange(40).unsqueeze(0)
    plain, keeping = (
        activation_bytes(lambda: model(input_ids=ids, use_cache=False, output_hidden_states=keep), CPU)  # noqa: B023
        for keep in (False, True)
    )
    state = 40 * 48 * 4
    assert keeping - plain == pytest.approx(11 * state, rel=0.2)


@torch.inference_mode()
def test_the_cache_has_the_size_of_its_shapes():
    model = llama("sdpa", num_key_value_heads=2)
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.arange(30).view(2, 15), cache=cache, use_cache=True)
    assert cache_bytes(cache) == 3 * 2 * (2 * 2 * 15 * 12) * 4  # layers, keys and values, their shape, bytes


@torch.inference_mode()
def test_the_cache_of_recurrent_layers_has_the_size_of_its_states():
    preset = TINY["qwen3_5"]
    model = preset.build(torch.float32, CPU)
    text, inputs = model.config.text_config, preset.workload(model.config, 1, 1).inputs
    stock = {name: value for name, value in inputs.items() if not name.startswith("guidance")}
    cache = model(**stock, use_cache=True).cache
    kinds = text.layer_types
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = text.linear_num_value_heads * text.linear_value_head_dim
    states = (2 * keys + values) * text.linear_conv_kernel_dim + values * text.linear_key_head_dim
    attended = 2 * inputs["input_ids"].shape[1] * text.num_key_value_heads * text.head_dim
    assert 0 < kinds.count("linear_attention") < len(kinds)
    numbers = kinds.count("linear_attention") * states + kinds.count("full_attention") * attended
    assert cache_bytes(cache) == 4 * numbers
