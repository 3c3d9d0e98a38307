"""FastV: hand-computed cases, and the golden data of the released code."""

import pytest
import torch
from transformers import DynamicCache, LlamaModel

from tests.support.golden_methods import assert_close, llm_of, load, visual_mask
from tests.support.layer_evidence import RandomLayerEvidence
from transformers_litelvlm.models.decoder.loop import decode, prefill, whole_prompt
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.pruning import FastVPruner


def test_the_mean_over_heads_decides_and_order_is_raster():
    evidence = RandomLayerEvidence([2], 4)
    # Means 0.2, 0.35, 0.3, 0.35 of two heads: the best of a head alone would be 0, a tie goes to the lower index.
    evidence.last = torch.tensor([[[0.4, 0.2, 0.3, 0.5], [0.0, 0.5, 0.3, 0.2]]])
    pruner = FastVPruner(layer=1)
    assert pruner.select(evidence, 1).indices.tolist() == [[1]]
    assert pruner.select(evidence, 3).indices.tolist() == [[1, 2, 3]]
    torch.testing.assert_close(pruner.select(evidence, 1).context, torch.tensor([[0.2, 0.35, 0.3, 0.35]]))


@pytest.mark.parametrize("layer, budget, kept", [(2, 192, 166), (2, 128, 98), (2, 64, 30), (3, 192, 152), (3, 64, 11)])
def test_tokens_kept_for_an_average_over_32_layers(layer, budget, kept):
    pruner = FastVPruner(layer=layer, match="average")
    assert pruner.tokens_after(576, budget, 32) == {layer - 1: kept}
    average = sum(pruner.tokens_per_layer(576, budget, num_layers=32, num_tower_layers=23)) / 32
    assert abs(average - budget) < 0.5


def test_what_is_passed_to_each_layer():
    counts = FastVPruner().tokens_per_layer(576, 192, num_layers=32, num_tower_layers=23)
    assert counts == [576] * 2 + [192] * 30 and sum(counts) / 32 == 216


def test_out_of_reach():
    with pytest.raises(ValueError, match="`layer` must be below 2.*, got 2"):
        FastVPruner().tokens_after(576, 64, 2)
    with pytest.raises(ValueError, match="average of 32 of 576 .* 37 to 576 are"):
        FastVPruner(match="average").tokens_after(576, 32, 32)
    assert FastVPruner(match="average").tokens_after(576, 37, 32) == {1: 1}
    for options, message in (({"layer": 0}, "`layer`"), ({"layer": True}, "`layer`"), ({"match": "all"}, "`match`")):
        with pytest.raises(ValueError, match=message):
            FastVPruner(**options)


@pytest.mark.parametrize("case", [0, 1, 2, 3])
def test_golden_selection(case):
    tensors, about = load("fastv", case)
    start, number = about["image_start"], about["num_image_tokens"]
    evidence = RandomLayerEvidence([2], number, layer=about["attention_layer"])
    evidence.last = tensors["last_query_attention"][:, :, start : start + number]
    selection = FastVPruner(layer=about["prune_layer_K"]).select(evidence, about["num_keep"])
    kept = torch.cat(
        (torch.arange(start), selection.indices[0] + start, torch.arange(start + number, about["seq_len"]))
    )
    assert kept.tolist() == tensors["keep_indices"].tolist()
    order = selection.context.argsort(dim=-1, descending=True, stable=True)[0, : about["num_keep"]]
    assert order.tolist() == tensors["image_indices_score_order"].tolist()
    assert torch.equal(tensors["hidden_states"][:, kept], tensors["kept_hidden_states"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", [4, 5, 6])
@torch.no_grad()
def test_golden_decoder(case, attention):
    tensors, about = load("fastv", case)
    model: LlamaModel = llm_of(tensors, about, attention)
    cache = DynamicCache(config=model.config)
    output = prefill(
        model,
        PruningSettings(FastVPruner(layer=about["prune_layer_K"]), about["num_keep"], None, True, True),
        whole_prompt(tensors["inputs_embeds"], visual_mask(about), [about["num_image_tokens"]]),
        [about["num_keep"]],
        cache=cache,
    )
    kept = tensors["keep_indices"]
    of_image = kept[visual_mask(about)[0, kept]] - about["image_start"]
    assert output.stages[-1].indices[0].tolist() == of_image.tolist()
    assert_close(f"fastv {case} prefill", output.last_hidden_state[:, kept], tensors["last_hidden_state"])
    if "decode_inputs_embeds" in tensors:
        lengths = [layer.get_seq_length() for layer in cache.layers]
        assert lengths == tensors["cache_lengths_after_prefill"].tolist()
        steps = tensors["decode_inputs_embeds"].split(1, dim=1)
        states = [decode(model, inputs_embeds=step, cache=cache).last_hidden_state for step in steps]
        assert_close(f"fastv {case} decode", torch.cat(states, dim=1), tensors["decode_hidden_states"])
