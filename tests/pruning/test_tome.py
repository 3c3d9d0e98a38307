"""ToMe against the released code: one step, whole towers, and schedules that meet a budget."""

import pytest
import torch

from tests.support.evidence import RandomEvidence
from tests.support.golden_methods import assert_close, load, tower_evidence
from transformers_litelvlm.pruning import ToMePruner, build_pruner
from transformers_litelvlm.pruning.schedules import capped_schedule, even_schedule
from transformers_litelvlm.pruning.selection import merge_tokens, one_hot
from transformers_litelvlm.pruning.tome import match_tokens


@pytest.mark.parametrize("case", range(5))
def test_golden_step(case):
    tensors, about = load("tome", case)
    target = match_tokens(tensors["metric"], about["r_effective"], about["class_token"])
    assert target.tolist() == tensors["source_group"].tolist()
    weights = one_hot(target, about["tokens_out"]).transpose(1, 2) * tensors["size"].transpose(1, 2)
    sizes = weights.sum(-1, keepdim=True)
    torch.testing.assert_close(sizes, tensors["merged_size"])
    assert_close(f"tome, case {case}", merge_tokens(weights / sizes, tensors["x"]), tensors["merged_x"])
    class_token = about["class_token"]
    assert capped_schedule([about["r_requested"]], about["tokens_in"] - class_token) == [about["r_effective"]]


@pytest.mark.parametrize("case", [5, 6, 7])
def test_golden_tower(case):
    tensors, about = load("tome", case)
    evidence = tower_evidence(tensors, about)
    budget = about["tokens_out_incl_cls"] - 1
    # Two of the schedules are what the budget gives; the third falls from layer to layer.
    schedule = tuple(about["schedule"][:-1]) if case == 7 else None
    pruner = ToMePruner(proportional_attention=about["prop_attn"], schedule=schedule)
    assert list(pruner.resolve_schedule(about["grid"] ** 2, budget, evidence.num_layers)) == about["schedule"][:-1]
    with torch.no_grad():
        selection = pruner.select(evidence, budget)
    assert (selection.indices + 1).tolist() == tensors["min_source_index"][:, 1:].tolist()
    assert_close(f"tome, case {case}", selection.features, tensors["output_tokens"][:, 1:])
    sizes = (selection.weights > 0).sum(dim=-1, keepdim=True)
    assert sizes.tolist() == tensors["output_size"][:, 1:].long().tolist()
    assert (selection.weights.argmax(dim=1) + 1).tolist() == tensors["source_group"][:, 1:].tolist()


@pytest.mark.parametrize(
    "budget, schedule",
    [
        (192, [17] * 16 + [16] * 7),
        (128, [20] * 11 + [19] * 12),
        (64, [23] * 6 + [22] * 17),
        (32, [24] * 15 + [23] * 8),
    ],
)
def test_schedules_of_the_usual_budgets(budget, schedule):
    assert list(even_schedule(576, budget, 23)) == schedule


@pytest.mark.parametrize("num_tokens, num_layers", [(576, 23), (30, 6), (17, 3), (16, 2), (5, 1)])
def test_every_reachable_budget_is_reached_exactly_and_the_others_are_named(num_tokens, num_layers):
    fewest = num_tokens
    for _ in range(num_layers):
        fewest -= fewest // 2
    for budget in range(1, num_tokens + 1):
        if budget < fewest:
            with pytest.raises(ValueError, match=rf"`budget` {budget} of {num_tokens}.* {fewest} to {num_tokens} are"):
                even_schedule(num_tokens, budget, num_layers)
            continue
        left = num_tokens
        for taken in even_schedule(num_tokens, budget, num_layers):
            assert taken <= left // 2
            left -= taken
        assert left == budget


def test_nothing_merged_is_the_tower_itself():
    tensors, about = load("tome", 5)
    evidence = tower_evidence(tensors, about)
    selection = ToMePruner().select(evidence, 144)
    torch.testing.assert_close(selection.features, evidence.features, atol=1e-5, rtol=1e-5)
    assert selection.indices.tolist() == [list(range(144))] * 2


@pytest.mark.parametrize("schedule", [(1, 2), (5, 5, 5, 5, 5, 5, 5)])
def test_a_schedule_that_does_not_give_the_budget(schedule):
    with pytest.raises(ValueError, match="`schedule` .* leaves .* of 30 visual tokens"):
        ToMePruner(schedule=schedule).select(RandomEvidence([1]), 7)


def test_a_schedule_from_json_is_a_tuple():
    assert build_pruner("tome", schedule=[10, 8, 6]) == ToMePruner(schedule=(10, 8, 6))


@pytest.mark.parametrize("schedule", [3, [1.0], [-1], "12"])
def test_a_schedule_that_is_none(schedule):
    with pytest.raises(ValueError, match="`schedule` must be None or non-negative integers"):
        ToMePruner(schedule=schedule)
