"""IVC-Prune: cases by hand, and plain loops over the value vectors of stock models."""

import pytest
import torch

from tests.support.families import INSIDE, TOY, family_params
from tests.support.layer_evidence import RandomLayerEvidence
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.configuration_pruning import Built
from transformers_litelvlm.pruning import IVCPrunePruner


def evidence_by_hand():
    """Four visual tokens, two question tokens behind two that are none, one head of size 2."""
    evidence = RandomLayerEvidence([4], 4)
    evidence.of_text = torch.tensor([[[[0.9, 0, 0, 0], [0.9, 0, 0, 0], [0, 0.4, 0.1, 0.1], [0, 0.2, 0.1, 0.1]]]])
    evidence.of_visual = torch.zeros(1, 1, 4, 4)
    evidence.of_visual[0, 0, 1] = torch.tensor([0.0, 0.1, 0.3, 0.6])  # what the seed, token 1, is similar to
    evidence.cos = torch.tensor([[[0.0, 0.2], [0.5, 0.1], [0.9, -0.9], [0.1, 0.2]]])
    evidence.sin = torch.tensor([[[0.7, 0.7], [0.5, 0.1], [0.1, 0.0], [0.1, 0.0]]])
    return evidence


def test_foreground_is_what_question_and_seeds_are_similar_to():
    separate = IVCPrunePruner(position_share=0.0).rank_foreground(evidence_by_hand())
    torch.testing.assert_close(separate, torch.tensor([[0.0, (0.3 + 0.1) / 2, (0.1 + 0.3) / 2, (0.1 + 0.6) / 2]]))
    joint = IVCPrunePruner(position_share=0.0, foreground="joint").rank_foreground(evidence_by_hand())
    torch.testing.assert_close(joint, torch.tensor([[0.0, 0.7 / 3, 0.5 / 3, 0.8 / 3]]))


@pytest.mark.parametrize(
    "share, budget, kept",
    [(0.0, 1, [3]), (0.0, 2, [1, 3]), (0.5, 2, [0, 1]), (0.5, 1, [3]), (0.34, 3, [0, 1, 3])],
)
def test_positions_come_first_and_the_foreground_fills_the_budget(share, budget, kept):
    """Token 1 has the largest mean cosine, token 0 the largest mean sine; of 1 no two halves can be had."""
    selection = IVCPrunePruner(position_share=share).select(evidence_by_hand(), budget)
    assert selection.indices.tolist() == [kept]


def test_a_token_that_is_largest_in_both_counts_once():
    evidence = evidence_by_hand()
    evidence.sin = evidence.cos
    assert IVCPrunePruner(position_share=0.5).select(evidence, 2).indices.tolist() == [[1, 3]]


def test_a_short_text_is_all_question():
    evidence = evidence_by_hand()
    evidence.is_text = torch.tensor([[True, True, False, False]])
    evidence.of_text[0, 0, 2:] = 1e3
    evidence.of_visual[0, 0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    torch.testing.assert_close(IVCPrunePruner().rank_foreground(evidence), torch.tensor([[0.5, 0.1, 0.15, 0.2]]))


def test_released_counts():
    """Half of 576 tokens as in the file for Qwen, 31 % as in that for Llama: 58 and 29 for each table."""
    evidence = RandomLayerEvidence([5], 576)
    for share, budget, each in ((0.2, 288, 58), (5 / 31, 179, 29)):
        kept = set(IVCPrunePruner(position_share=share).select(evidence, budget).indices[0].tolist())
        for table in (evidence.cos, evidence.sin):
            order = table[0].mean(dim=-1).argsort(descending=True, stable=True).tolist()
            assert set(order[:each]) <= kept
        without = IVCPrunePruner(position_share=0.0).select(evidence, budget).indices[0].tolist()
        assert not kept <= set(without)
    assert IVCPrunePruner().tokens_per_layer(576, 288, num_layers=32, num_tower_layers=23) == [576] * 16 + [288] * 16


@torch.no_grad()
def dense(stock, family, inputs, layer, position_share, foreground, budget):
    """What stays of every image of a prompt alone, by plain loops: indices by modality."""
    decoder = stock.model.language_model
    block, entered = decoder.layers[layer - 1], []
    handle = block.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    stock(**inputs)
    handle.remove()
    [[states]] = entered
    values = block.self_attn.v_proj(block.input_layernorm(states)).view(len(states), 2, 12).transpose(0, 1)
    similarity = torch.stack([(v @ v.T / 12**0.5).softmax(-1) for v in values]).mean(dim=0)
    positions = family.full_positions(stock, inputs)
    cos, sin = decoder.rotary_emb(states[None], family.shape_positions(positions))
    ids, kept = inputs["input_ids"][0].tolist(), {}
    tokens = {getattr(stock.config, f"{modality}_token_id"): modality for modality in family.modalities}
    sizes = {modality: [len(t) for t in found] for modality, found in family.all_tokens(stock, inputs).items()}
    for token, modality in tokens.items():
        columns = [column for column, value in enumerate(ids) if value == token]
        kept[modality] = []
        for size in sizes.get(modality, []):
            image, columns = columns[:size], columns[size:]
            text = [c for c in range(image[-1] + 1, len(ids)) if ids[c] not in tokens]
            question = text[2:] or text
            score = {c: sum(similarity[q, c].item() for q in question) for c in image}
            seeds = sorted(image, key=lambda c: -score[c])[: max(1, round(0.01 * size))]
            of_seeds = {c: sum(similarity[s, c].item() for s in seeds) for c in image}
            joint = {c: score[c] + of_seeds[c] for c in image}
            separate = {c: score[c] / len(question) + of_seeds[c] / len(seeds) for c in image}
            ranked = sorted(image, key=lambda c: -(joint if foreground == "joint" else separate)[c])
            each = min(int(position_share * budget + 0.5), budget // 2)
            chosen = {
                c for table in (cos, sin) for c in sorted(image, key=lambda c: -table[0, c].mean().item())[:each]
            }
            chosen |= set([c for c in ranked if c not in chosen][: budget - len(chosen)])
            kept[modality].append(sorted(image.index(c) for c in chosen) if budget < size else list(range(size)))
    return kept


@pytest.mark.parametrize("foreground", ["separate", "joint"])
@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize(
    "family", family_params([family for family in INSIDE if family is not TOY]), ids=lambda family: family.name
)
@torch.no_grad()
def test_what_stays_is_that_of_plain_loops(family, layer, foreground):
    model = family.model(4)
    stock = family.stock(model)
    model.config.pruning_config = PruningConfig(
        method="ivc_prune", budget=7, method_options={"layer": layer, "foreground": foreground}
    )
    together = model(**family.unguided_inputs())  # a padded batch
    counts = dict.fromkeys(family.modalities, 0)
    for row in range(2):
        inputs = {name: value for name, value in family.row(row).items() if not name.startswith("guidance_")}
        expected = dense(stock, family, inputs, layer, 0.2, foreground, 7)
        for modality, images in expected.items():
            name = "retained_indices" if modality == "image" else "retained_video_indices"
            start = counts[modality]
            counts[modality] += len(images)
            assert [kept.tolist() for kept in getattr(together, name)[start : counts[modality]]] == images
            if images:
                assert [kept.tolist() for kept in getattr(model(**inputs), name)] == images


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "family", family_params([family for family in INSIDE if family is not TOY]), ids=lambda family: family.name
)
@torch.no_grad()
def test_scores_do_not_depend_on_padding(monkeypatch, family, side):
    scores = {}

    class Recording(IVCPrunePruner):
        def select(self, evidence, budget):
            selection = super().select(evidence, budget)
            scores.setdefault(evidence.num_tokens, []).extend(selection.context)
            return selection

    monkeypatch.setattr(PruningConfig, "build", lambda config: Built(Recording(layer=2), None, ({}, None)))
    model = family.model(4)
    model.config.pruning_config = PruningConfig(method="ivc_prune", budget=7)
    model(**family.unguided_inputs(side))
    together = dict(scores)
    scores.clear()
    for row in range(2):
        model(**family.row(row))
    assert together.keys() == scores.keys()
    for size, rows in together.items():
        torch.testing.assert_close(torch.stack(rows), torch.stack(scores[size]), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer": 0}, "`layer` must be a positive integer, got 0"),
        ({"layer": True}, "`layer`"),
        ({"position_share": 0.6}, r"`position_share` must be a number in \[0, 0.5\], got 0.6"),
        ({"position_share": "half"}, "`position_share`"),
        ({"seed_share": -0.1}, r"`seed_share` must be a number in \[0, 1\], got -0.1"),
        ({"foreground": "both"}, "`foreground` must be 'separate' or 'joint', got 'both'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        IVCPrunePruner(**options)


def test_too_few_layers():
    with pytest.raises(ValueError, match="`layer` must be below 4.*got 16"):
        IVCPrunePruner().tokens_after(576, 64, 4)
