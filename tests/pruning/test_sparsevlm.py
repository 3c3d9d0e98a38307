"""SparseVLM: hand-computed cases, and the golden data of the released code."""

import pytest
import torch
from transformers import DynamicCache

from tests.support.golden_methods import assert_close, llm_of, load, visual_mask
from tests.support.layer_evidence import RandomLayerEvidence
from transformers_litelvlm.models.decoder.loop import decode, prefill, whole_prompt
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.pruning import SparseVLMPruner
from transformers_litelvlm.pruning.clustering import density_peaks
from transformers_litelvlm.pruning.sparsevlm import counts, find_raters, rater_relevance


def test_raters_by_hand():
    """Each visual token prefers its own word; two of three prefer the first, none the third."""
    visual = torch.tensor([[[4.0, 0.0], [4.0, 0.0], [0.0, 4.0]]])
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [50.0, 50.0]]])
    is_text = torch.tensor([[True, True, True, False]])
    high, low, least = (torch.tensor([4.0, 0.0, -4.0]).softmax(0)).tolist()
    expected = [(2 * high + low) / 3, (high + 2 * low) / 3, least, 0.0]
    torch.testing.assert_close(rater_relevance(visual, text, is_text), torch.tensor([expected]))
    # The mean is a third: 0.66 is above it, 0.34 just so.
    assert find_raters(visual, text, is_text).tolist() == [[True, True, False, False]]
    only = torch.tensor([[True, False, False, False]])
    assert find_raters(visual, text, only).tolist() == only.tolist()


def test_clusters_by_hand():
    """Three tokens near 0, two near 10: a centre each, and of two equal ones the lower index is denser."""
    tokens = torch.tensor([[[0.0], [1.0], [10.0], [0.5], [10.4]]])
    centres, groups = density_peaks(tokens, 2)
    near_zero, near_ten = groups[0, 0].item(), groups[0, 2].item()
    assert groups.tolist() == [[near_zero, near_zero, near_ten, near_zero, near_ten]] and near_zero != near_ten
    assert centres[0, near_ten].item() == 2


def test_what_is_kept_recycled_and_in_which_order():
    """4 of 10: raters alone count. Of 6 removed, the best 2 become their mean, which stands where the denser was."""
    evidence = RandomLayerEvidence([2], 10, layer=0)
    evidence.visual = torch.ones(1, 10, 2)
    evidence.text = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]])  # the first word is the rater
    liked = torch.tensor([0.0, 0.5, 0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.05, 0.15])
    evidence.attention = torch.stack((liked, 1 - liked))[None, None].expand(1, 3, 2, 10)
    evidence.is_text = torch.ones(1, 2, dtype=torch.bool)
    pruner = SparseVLMPruner(layers=[0], keep=[4])
    selection = pruner.select(evidence, 5)
    assert selection.indices.tolist() == [[1, 3, 5, 7, 6]] and pruner.tokens_after(10, 5, 4) == {0: 5}
    expected = torch.zeros(10)
    expected[[6, 4]] = 0.5
    torch.testing.assert_close(selection.weights[0, 4], expected)
    torch.testing.assert_close(selection.features[0, 4], evidence.features[0, [6, 4]].mean(dim=0))
    assert selection.in_raster_order().indices.tolist() == [[1, 3, 5, 6, 7]]


@pytest.mark.parametrize(
    "budget, left, average",
    [
        (192, [309, 204, 113], 206.5),
        (128, [312, 117, 39], 145.4),
        (96, [249, 55, 27], 114.1),
        (64, [82, 32, 18], 82.2),
    ],
)
def test_tables(budget, left, average):
    pruner = SparseVLMPruner()
    assert pruner.tokens_after(576, budget, 32) == dict(zip((2, 6, 15), left))
    per_layer = pruner.tokens_per_layer(576, budget, num_layers=32, num_tower_layers=23)
    assert sum(per_layer) / 32 == pytest.approx(average, abs=0.06)


def test_tables_are_scaled_and_other_budgets_are_refused():
    assert SparseVLMPruner(layers=[0, 1, 2])._kept(144, 48) == (75, 50, 28)  # 27.5 up
    with pytest.raises(ValueError, match="`budget` 32 of 576 .* 192, 128, 96, 64 of 576 has"):
        SparseVLMPruner().tokens_after(576, 32, 32)
    with pytest.raises(ValueError, match="no number of 25 has"):
        SparseVLMPruner(layers=[0, 1, 2]).tokens_after(25, 8, 4)
    with pytest.raises(ValueError, match=r"`layers` must be below 4, .* got \[2, 6, 15\].*'layers': \[1, 2, 3\]\}`"):
        SparseVLMPruner().tokens_after(576, 192, 4)
    with pytest.raises(ValueError, match=r"`layers` \(2, 6, 15\) are more than the 2 layers .* set fewer"):
        SparseVLMPruner().tokens_after(576, 192, 2)
    with pytest.raises(ValueError, match=r"`keep` \[4\] leaves 5 tokens of 10, `budget` is 4"):
        SparseVLMPruner(layers=[0], keep=[4]).tokens_after(10, 4, 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": [6, 2, 15]}, "`layers` must ascend"),
        ({"layers": 3}, "`layers` must be integers"),
        ({"layers": [1]}, "`keep` needs a number for each"),
        ({"keep": [3, 0, 1]}, "`keep` must be integers of at least 1"),
        ({"layers": [], "keep": []}, "`layers` must ascend"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        SparseVLMPruner(**options)


def assert_same_centres(centres, expected, tokens, num_clusters):
    """Equal where densities differ. With two clusters mutual neighbours tie: the released code draws one of them."""
    if num_clusters > 2:
        assert centres.tolist() == expected.tolist()
    elif num_clusters == 2:  # with one cluster, which of its tokens is the centre means nothing
        distance = torch.cdist(tokens, tokens).fill_diagonal_(torch.inf)
        for centre, other in zip(centres.tolist(), expected.tolist(), strict=True):
            assert centre == other or (distance[centre].argmin() == other and distance[other].argmin() == centre)
            assert centre <= other


@pytest.mark.parametrize("case", [4, 6])
def test_golden_clusters(case):
    tensors, about = load("sparsevlm", case)
    centres, groups = density_peaks(tensors["tokens"], about["num_clusters"])
    assert groups[0].tolist() == tensors["cluster_assignment"].tolist()
    assert_same_centres(centres[0], tensors["cluster_centers"], tensors["tokens"][0], about["num_clusters"])
    means = torch.stack([tensors["tokens"][0, groups[0] == group].mean(dim=0) for group in range(centres.shape[1])])
    assert_close(f"sparsevlm {case} clusters", means[None], tensors["merged"])


@pytest.mark.parametrize("case", [0, 1, 2, 3])
def test_golden_selection(case):
    tensors, about = load("sparsevlm", case)
    number, start = about["num_image_tokens"], about["image_start"]
    evidence = RandomLayerEvidence([2], number, layer=about["prune_layer"], num_layers=32)
    evidence.num_tokens = 64 if about["table_patched"] else 576
    evidence.visual = tensors["inputs_embeds"][:, start : start + number]
    evidence.text = tensors["inputs_embeds"][:, start + number :]
    evidence.is_text = torch.ones(1, about["num_text_after"], dtype=torch.bool)
    evidence.attention = tensors["text_to_visual_attention"]
    evidence.features = tensors["layer_output"][:, start : start + number]
    pruner, budget = SparseVLMPruner(), about["budget"]
    if about["table_patched"]:
        pruner, budget = SparseVLMPruner(keep=about["keep_table"]), 7
    assert_close(
        f"sparsevlm {case} relevance",
        rater_relevance(evidence.visual, evidence.text, evidence.is_text)[0],
        tensors["rater_relevance"],
    )
    raters = find_raters(evidence.visual, evidence.text, evidence.is_text)[0].nonzero()[:, 0]
    assert raters.tolist() == tensors["rater_indices"].tolist()
    selection = pruner.select(evidence, budget)
    num_kept, num_candidates, num_clusters = counts(number, about["num_keep"])
    assert (num_candidates, num_clusters) == (about["num_recycle_candidates"], about["num_clusters"])
    assert_close(f"sparsevlm {case} scores", selection.context[0], tensors["scores"])
    assert selection.indices[0, :num_kept].tolist() == tensors["kept_indices"].tolist()
    candidates = tensors["recycle_candidates"]
    of_candidate = (selection.indices[0, num_kept:, None] == candidates).int().argmax(dim=1)
    assert torch.equal(candidates[of_candidate], selection.indices[0, num_kept:])
    assert_same_centres(
        of_candidate, tensors["cluster_centers"], evidence.features[0, candidates], about["num_clusters"]
    )
    members = (selection.weights[0, num_kept:] > 0)[:, candidates]
    assert members.int().argmax(dim=0).tolist() == tensors["cluster_assignment"].tolist()
    assert_close(f"sparsevlm {case} recycled", selection.features[0, num_kept:], tensors["recycled_tokens"])
    before, behind = tensors["layer_output"][:, :start], tensors["layer_output"][:, start + number :]
    sequence = torch.cat((before, selection.features, behind), dim=1)
    assert_close(f"sparsevlm {case} sequence", sequence, tensors["output_sequence"])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden_decoder(attention):
    tensors, about = load("sparsevlm", 5)
    model = llm_of(tensors, about, attention)
    cache, found = DynamicCache(config=model.config), []

    class Recording(SparseVLMPruner):
        def select(self, evidence, budget):
            found.append(super().select(evidence, budget))
            return found[-1]

    output = prefill(
        model,
        PruningSettings(Recording(), about["budget"], None, in_raster_order=False, keeps_positions=False),
        whole_prompt(tensors["inputs_embeds"], visual_mask(about), [about["num_image_tokens"]]),
        [about["budget"]],
        cache=cache,
    )
    for stage, selection in enumerate(found):
        stored = {name: tensors[f"stage{stage}.{name}"] for name in ("kept_indices", "scores", "recycled_tokens")}
        num_kept = len(stored["kept_indices"])
        assert_close(f"sparsevlm stage {stage} scores", selection.context[0], stored["scores"])
        assert selection.indices[0, :num_kept].tolist() == stored["kept_indices"].tolist()
        assert_close(f"sparsevlm stage {stage}", selection.features[0, num_kept:], stored["recycled_tokens"])
    assert [stage.indices.shape[1] for stage in output.stages] == about["visual_tokens_after"]
    # Recycled tokens follow the kept ones, but stand at the column of their centre here.
    start, end = about["image_start"], about["image_start"] + about["num_image_tokens"]
    columns = torch.cat(
        (torch.arange(start), start + output.stages[-1].indices[0], torch.arange(end, about["seq_len"]))
    )
    assert_close("sparsevlm prefill", output.last_hidden_state[:, columns], tensors["last_hidden_state"])
    lengths = [layer.get_seq_length() for layer in cache.layers]
    assert lengths == tensors["cache_lengths_after_prefill"].tolist()
    steps = tensors["decode_inputs_embeds"].split(1, dim=1)
    states = [decode(model, inputs_embeds=step, cache=cache).last_hidden_state for step in steps]
    assert_close("sparsevlm decode", torch.cat(states, dim=1), tensors["decode_hidden_states"])
