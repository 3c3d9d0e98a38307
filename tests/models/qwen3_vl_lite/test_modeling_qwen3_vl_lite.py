"""What is special in Qwen3-VL, dense and MoE: DeepStack, videos between timestamps, normalised heads, no windows."""

import copy

import pytest
import torch

from tests.support.families import QWEN3_VL, QWEN3_VL_MOE, family_params
from tests.support.qwen3_vl_media import GREEDY, MEDIA, VIDEOS, inputs_of, kept_columns
from tests.support.random_weights import asymmetric_
from tests.support.tiny_qwen2_5_vl import tiny_clip
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.models.outputs import MediaFeatures
from transformers_litelvlm.pruning import get_pruner, list_pruners


@pytest.fixture(scope="module", params=family_params([QWEN3_VL, QWEN3_VL_MOE]), ids=lambda family: family.name)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return family.model(4)


@pytest.fixture(scope="module")
def stock(family, model):
    return family.stock(model)


@pytest.fixture(autouse=True)
def pruning_off(model):
    model.config.pruning_config = PruningConfig()


# ---- all tokens kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("media", MEDIA)
@torch.no_grad()
def test_all_tokens_kept_is_upstream_bit_for_bit(model, stock, media, how):
    inputs = inputs_of(MEDIA[media], guided=False)
    expected = stock(**inputs).logits
    for budget in (None, 24):
        model.config.pruning_budget = budget
        own = inputs_of(MEDIA[media])
        assert torch.equal(model(**own).logits, expected)
        assert torch.equal(model.generate(**own, **GREEDY, **how), stock.generate(**inputs, **GREEDY, **how))


@torch.no_grad()
def test_a_call_has_its_own_settings_for_videos_too(model, stock):
    """Upstream's `get_video_features` calls `get_image_features`, which asks the config of ours."""
    inputs, off, on = inputs_of(VIDEOS["a video"]), PruningConfig(), PruningConfig(budget=5)
    plain = inputs_of(VIDEOS["a video"], guided=False)
    expected = model(**inputs, pruning_config=on).logits
    model.config.pruning_config = PruningConfig(budget=3, method="random")
    assert torch.equal(model(**inputs, pruning_config=off).logits, stock(**plain).logits)
    assert torch.equal(model(**inputs, pruning_config=on).logits, expected)
    media = {n: inputs[n] for n in ("pixel_values_videos", "video_grid_thw")}
    assert [len(tokens) for tokens in model.get_video_features(**media).pooler_output] == [3]
    assert [len(tokens) for tokens in model.model.get_video_features(**media, pruning_config=off).pooler_output] == [
        24
    ]


# ---- DeepStack ------------------------------------------------------------------------------------------------------


def added_after_layers(model, inputs):
    """What is added to the states between decoder layers, for layers 0 and 1: what enters a layer less what left the
    one before, where both have as many columns."""
    left, added = [], []
    layers = model.model.language_model.layers
    handles = [layer.register_forward_hook(lambda module, args, out: left.append(out)) for layer in layers[:2]]
    handles += [
        layer.register_forward_pre_hook(lambda module, args: added.append(args[0] - left[-1])) for layer in layers[1:3]
    ]
    try:
        output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return output, added


@pytest.mark.parametrize("method", ["litelvlm", "visionzip", "divprune"])
@pytest.mark.parametrize("media", MEDIA)
@torch.no_grad()
def test_deepstack_follows_the_selection(model, stock, media, method):
    """Gathered by the retained indices, or merged by the same weights; nothing is added to text."""
    model.config.pruning_config = PruningConfig(method=method, budget=4)
    inputs = inputs_of(MEDIA[media])
    output, added = added_after_layers(model, inputs)
    order = kept_order(inputs["input_ids"], output)
    for layer in (0, 1):
        expected = {}
        for modality, suffix, token in (("image", "", 5), ("video", "_videos", 6)):
            features = getattr(output, f"{modality}_outputs")
            if features is None:
                continue
            grid = inputs[f"{modality}_grid_thw"]
            # Upstream's for videos: the method for images.
            whole = stock.model.get_image_features(inputs[f"pixel_values{suffix}"], grid).deepstack_features[layer]
            weights = [None] * len(whole) if features.merge_weights is None else features.merge_weights
            rows = [
                of_medium[indices] if merge is None else merge @ of_medium
                for of_medium, indices, merge in zip(whole, features.retained_indices, weights, strict=True)
            ]
            expected[token] = torch.cat(rows)
            torch.testing.assert_close(torch.cat(features.deepstack_features[layer]), expected[token])
        # The shortened prompt has the kept tokens in reading order.
        is_added = added[layer].abs().sum(-1) > 0
        assert is_added.sum() == len(order) > 0
        for token, rows in expected.items():
            where = torch.tensor([each == token for each in order])
            torch.testing.assert_close(added[layer][is_added][where], rows, atol=1e-5, rtol=1e-5)


def kept_order(ids, output):
    """Placeholders that are kept, in reading order."""
    found = [(row, c, token) for row, columns, token in kept_columns(ids, output) for c in columns.tolist()]
    return [token for _, _, token in sorted(found)]


@torch.no_grad()
def test_deepstack_follows_a_method_inside_the_language_model(model, stock):
    """`fastv` after layer 0: the kept tokens get their rows of the features after layers 0 and 1."""
    model.config.pruning_config = PruningConfig(method="fastv", budget=4, method_options={"layer": 1})
    inputs = inputs_of([[(3, 2, 4)]], guided=False)
    entered, left = [], []
    layers = model.model.language_model.layers
    handles = [layers[1].register_forward_hook(lambda module, args, out: left.append(out))]
    handles += [layers[2].register_forward_pre_hook(lambda module, args: entered.append(args[0]))]
    output = model(**inputs)
    for handle in handles:
        handle.remove()
    added = (entered[0] - left[0])[0]
    [whole] = stock.model.get_image_features(
        inputs["pixel_values_videos"], inputs["video_grid_thw"]
    ).deepstack_features[1]
    [kept] = output.retained_video_indices
    torch.testing.assert_close(added[added.abs().sum(-1) > 0], whole[kept], atol=1e-5, rtol=1e-5)
    # As upstream, `hidden_states` are those that leave the layers, before anything is added.
    states = model(**inputs, output_hidden_states=True).hidden_states
    of_stock = stock(**inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[0], of_stock[0])
    alive = states[1].abs().sum(-1) > 0
    assert alive.sum() < alive.numel()
    torch.testing.assert_close(states[1][alive], of_stock[1][alive], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method, options", [("litelvlm", {}), ("fastv", {"layer": 1})])
def test_features_without_those_of_deepstack_are_refused(model, method, options):
    pruning = PruningConfig(method=method, budget=4, method_options=options)
    inputs = inputs_of([[(0, 4, 4)]])
    given = {n: inputs.pop(n) for n in ("pixel_values", "guidance_input_ids", "guidance_attention_mask")}
    features = model.get_image_features(image_grid_thw=inputs["image_grid_thw"], **given, pruning_config=pruning)
    features = MediaFeatures(**features) if method == "fastv" else features
    features.deepstack_features = features.deepstack_features[:1]
    with pytest.raises(ValueError, match="`deepstack_features` for 1 layers, and this model needs them for 2"):
        model(**inputs, mm_encoder_outputs={"image": features}, pruning_config=pruning)


@pytest.mark.parametrize("indexes", [[], [0, 1, 2]])
@torch.no_grad()
def test_other_numbers_of_deepstack_layers(family, indexes):
    """None at all, and more than there are decoder layers but one."""
    config = family.config()
    config.vision_config.deepstack_visual_indexes = indexes
    model = asymmetric_(family.model_class(config))
    inputs, plain = inputs_of([[(0, 2, 3), (2, 2, 2)]]), inputs_of([[(0, 2, 3), (2, 2, 2)]], guided=False)
    upstream = family.stock(model)
    if indexes:
        assert torch.equal(model(**inputs, pruning_config=PruningConfig(budget=8)).logits, upstream(**plain).logits)
    for pruning in (PruningConfig(budget=3), PruningConfig(method="fastv", budget=3, method_options={"layer": 1})):
        output = model(**inputs, pruning_config=pruning)
        assert output.logits.isfinite().all() and [len(rows) for rows in output.retained_video_indices] == [3]


# ---- budgets and positions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 2, 5, 7, 11])
@torch.no_grad()
def test_positions_are_those_of_the_unpruned_prompt(model, stock, budget):
    """Of kept tokens and of text, the timestamps between the frames of a video among it; decoding goes on behind."""
    model.config.pruning_budget = budget
    inputs, received = inputs_of(VIDEOS["of two lengths"]), []
    lm = model.model.language_model
    handle = lm.register_forward_pre_hook(lambda m, a, kw: received.append(kw["position_ids"]), with_kwargs=True)
    model.generate(**inputs, **GREEDY)
    handle.remove()
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
    full, deltas = stock.model.get_rope_index(**{name: inputs.get(name) for name in names})
    output = model(**inputs)
    kept = kept_columns(inputs["input_ids"], output)
    for row, ids in enumerate(inputs["input_ids"]):
        columns = [c for c in range(len(ids)) if inputs["attention_mask"][row, c] and ids[c] not in (5, 6)]
        columns += [c for other, own, _ in kept if other == row for c in own.tolist()]
        columns = sorted(columns)
        prefill = received[0][-3:, row]
        assert torch.equal(prefill[:, -len(columns) :], full[:, row, columns])
        steps = torch.stack([step[-3:, row, 0] for step in received[1:]], dim=1)
        following = len(ids) - int((1 - inputs["attention_mask"][row]).sum()) + int(deltas[row])
        assert torch.equal(steps, torch.arange(following, following + steps.shape[1]).expand(3, -1))


@torch.no_grad()
def test_any_budget_and_one_token(model):
    for budget in range(1, 16):
        model.config.pruning_budget = budget
        kept = model(**inputs_of([[(0, 4, 4)], [(4, 2, 2)]]))
        [image], [video] = kept.retained_indices, kept.retained_video_indices
        counts = torch.bincount(video // 4, minlength=4)
        assert len(image) == len(video) == budget and counts.max() - counts.min() <= 1
    model.config.pruning_config = {"retention_ratio": 0.001}
    output = model(**inputs_of([[(0, 4, 4), (0, 1, 1)], [(4, 2, 2)]]))
    assert [len(rows) for rows in (*output.retained_indices, *output.retained_video_indices)] == [1, 1, 1]


@pytest.mark.parametrize("name", list_pruners())
@torch.no_grad()
def test_every_method_runs_or_says_which_do(model, name):
    pruner = get_pruner(name)
    options = {"layers": [0, 1], "keep": [9, 6]} if name == "sparsevlm" else {}
    options = {"layer": 2} if name in ("fastv", "ivc_prune") else options
    model.config.pruning_config = PruningConfig(method=name, budget=7, method_options=options)
    inputs = inputs_of([[(0, 4, 4), (4, 2, 2)]])
    if pruner.needs_class_token:
        with pytest.raises(ValueError, match=f"{name!r} is not defined for Qwen3-VL.*divprune"):
            model(**inputs)
        return
    assert model(**inputs).logits.isfinite().all()
    assert model.generate(**inputs, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 5


def test_settings_that_are_not_defined(model):
    model.config.pruning_config = PruningConfig(token_order="reference", budget=4)
    with pytest.raises(
        ValueError, match="`token_order='reference'` is not defined for Qwen3-VL.* with the method 'fastv'"
    ):
        model.config.pruning_method = "fastv"
    with pytest.raises(ValueError, match="`position_ids='compact'` is not defined for Qwen3-VL"):
        model.config.pruning_position_ids = "compact"
    with pytest.raises(ValueError, match="`guidance` must be one of 'intrinsic', 'clip', got 'none'"):
        model.config.guidance = "none"


# ---- guidance -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_context_is_the_attention_received_in_the_last_block(model, stock):
    """Of every frame, from what upstream's own last block is called with."""
    inputs = inputs_of([[(3, 2, 4)]])
    seen, block = [], stock.model.visual.blocks[-1]
    handle = block.attn.register_forward_pre_hook(lambda m, a, kw: seen.append((a, kw)), with_kwargs=True)
    stock.model.get_image_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    handle.remove()
    [((states,), how)] = seen
    query, key, _ = block.attn.qkv(states).view(len(states), 3, 4, 8).permute(1, 2, 0, 3)
    cos, sin = how["position_embeddings"]

    def turned(x):
        return x * cos + torch.cat((-x[..., 4:], x[..., :4]), dim=-1) * sin

    expected = []
    for first in range(0, len(states), 32):
        frame = slice(first, first + 32)
        attention = (turned(query)[:, frame] @ turned(key)[:, frame].transpose(1, 2) / 8**0.5).softmax(-1)
        expected.append(attention.mean(dim=(0, 1)).view(8, 4).sum(-1))
    model.config.pruning_config = PruningConfig(budget=6, method_options={"context_share": 1.0})
    features = model.get_video_features(**{n: v for n, v in inputs.items() if "video" in n or "guidance" in n})
    torch.testing.assert_close(features.context_scores[0], torch.cat(expected), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_clip_beside_the_model(model, tmp_path):
    tiny_clip().save_pretrained(tmp_path)
    guided = copy.deepcopy(model)
    guided.config.guidance = "clip"
    with pytest.raises(ValueError, match="needs a CLIP beside the model"):
        guided(**inputs_of([[(0, 4, 4)]]), pruning_config=PruningConfig(budget=5))
    guided.base_model.load_guidance(str(tmp_path))
    inputs = inputs_of([[(0, 4, 4), (2, 2, 2)]])
    inputs["guidance_input_ids"][..., -1] = 513
    inputs["guidance_attention_mask"] = torch.ones_like(inputs["guidance_input_ids"])
    inputs["guidance_pixel_values"] = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    output = guided(**inputs, pruning_config=PruningConfig(budget=5))
    other = guided(
        **{**inputs, "guidance_pixel_values": -inputs["guidance_pixel_values"]}, pruning_config=PruningConfig(budget=5)
    )
    kept = [[rows.tolist() for rows in each.retained_indices] for each in (output, other)]
    assert kept[0] != kept[1] and len(kept[0][0]) == 5 and len(output.retained_video_indices[0]) == 5


# ---- experts --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_routers_and_the_loss_that_balances_experts_see_the_kept_tokens():
    model = QWEN3_VL_MOE.model(4)
    stock = QWEN3_VL_MOE.stock(model)
    inputs, plain = inputs_of([[(0, 4, 4)]]), inputs_of([[(0, 4, 4)]], guided=False)
    wanted = {"labels": inputs["input_ids"], "output_router_logits": True}
    expected = stock(**plain, **wanted)
    for budget in (None, 16):
        output = model(**inputs, **wanted, pruning_config=PruningConfig(budget=budget))
        assert torch.equal(output.loss, expected.loss) and torch.equal(output.aux_loss, expected.aux_loss)
    pruning = PruningConfig(budget=5)
    output = model(**inputs, **wanted, pruning_config=pruning)
    length = inputs["input_ids"].shape[1] - 11
    assert [each.shape for each in output.router_logits] == [(length, 6)] * 3  # layer 1 has no experts
    routed = torch.cat(output.router_logits).softmax(-1)
    chosen = torch.zeros_like(routed).scatter(1, routed.topk(2).indices, 1.0)
    torch.testing.assert_close(output.aux_loss, 6 * (chosen.mean(0) * routed.mean(0)).sum())
    without = model(**inputs, labels=wanted["labels"], pruning_config=pruning).loss
    torch.testing.assert_close(output.loss, without + 0.001 * output.aux_loss)
    inside = PruningConfig(method="fastv", budget=5, method_options={"layer": 1})
    with pytest.raises(ValueError, match="`output_router_logits` is not available if a method prunes inside"):
        model(**inputs, **wanted, pruning_config=inside)
