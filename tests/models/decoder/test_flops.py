"""The formula against PyTorch's own counter, on tiny models."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaModel, Qwen3_5MoeTextModel, Qwen3_5TextModel, Qwen3VLMoeTextModel

from tests.support.tiny_qwen3_5 import QWEN3_5, QWEN3_5_MOE
from tests.support.tiny_qwen3_vl import QWEN3_VL_MOE
from transformers_litelvlm.models.decoder.flops import prefill_flops
from transformers_litelvlm.models.decoder.loop import prefill, whole_prompt
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.pruning import build_pruner


def decoder(heads=4, groups=2, head_dim=12):
    config = LlamaConfig(
        vocab_size=9,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        attn_implementation="eager",
    )
    return LlamaModel(config).eval()


def counted_in_layers(run) -> int:
    """What ran inside whole decoder layers: a method's own projections run outside of them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    # The counter names a layer by its place in the model, or by its class where it is called alone.
    names = counter.get_flop_counts()
    layers = [name for name in names if name == "LlamaDecoderLayer" or name.split(".")[-1].isdigit()]
    return sum(sum(counter.get_flop_counts()[name].values()) for name in layers)


@pytest.mark.parametrize("heads, groups, head_dim", [(4, 4, 12), (4, 2, 12), (3, 1, 20)])
def test_a_stock_decoder(heads, groups, head_dim):
    model = decoder(heads, groups, head_dim)
    counted = counted_in_layers(lambda: model(inputs_embeds=torch.randn(1, 21, 48), use_cache=False))
    # The counter also sees the rotary embedding's table, which is outside of the layers.
    assert counted == prefill_flops(model.config, [21] * 3)


def test_a_decoder_that_prunes():
    model, is_visual = decoder(), torch.arange(21)[None] < 16
    pruner = build_pruner("fastv", layer=1)
    embeds = torch.randn(1, 21, 48)
    settings, prompt = PruningSettings(pruner, 4, None, True, True), whole_prompt(embeds, is_visual, [16])
    counted = counted_in_layers(lambda: prefill(model, settings, prompt, [4]))
    per_layer = pruner.tokens_per_layer(16, 4, num_layers=3, num_tower_layers=2)
    assert counted == prefill_flops(model.config, [5 + count for count in per_layer])
    assert counted < prefill_flops(model.config, [21] * 3)


@pytest.mark.parametrize(
    "cls, tiny",
    [(Qwen3VLMoeTextModel, QWEN3_VL_MOE), (Qwen3_5TextModel, QWEN3_5), (Qwen3_5MoeTextModel, QWEN3_5_MOE)],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_experts_and_recurrent_layers(cls, tiny):
    """All that is no product of a token with weights is counted apart: attention, and what a recurrent layer does with
    its state, for which PyTorch runs an algorithm with chunks of 64 tokens."""
    config = tiny.tiny_config().text_config
    config._attn_implementation, config._experts_implementation = "eager", "eager"
    model, n = cls(config).eval(), 21
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs_embeds=torch.randn(1, n, config.hidden_size), use_cache=False)
    found = counter.get_flop_counts()["Global"]
    linear = sum(count for op, count in found.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    expected = prefill_flops(config, [n] * config.num_hidden_layers)
    for kind in config.to_dict().get("layer_types") or ["full_attention"] * config.num_hidden_layers:
        if kind == "linear_attention":
            heads, key, value = 4, config.linear_key_head_dim, config.linear_value_head_dim
            expected -= 6 * n * heads * key * value
        else:
            expected -= 4 * n * n * config.num_attention_heads * config.head_dim
    assert linear == expected
