"""What is special to Qwen2.5-VL: media of any size, video, M-RoPE positions. The rest is in test_families.py."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.support.qwen2_5_vl_media import (
    LargestTensor,
    Received,
    columns_that_stay,
    inputs_of,
    without_guidance,
)
from tests.support.random_weights import asymmetric_
from tests.support.tiny_qwen2_5_vl import (
    VISION_END,
    VISION_START,
    prompt,
    random_guidance,
    random_media,
    stock_twin,
    tiny_config,
    tiny_model,
)
from transformers_litelvlm import PruningConfig, Qwen2_5_VLLite
from transformers_litelvlm.models.guidance.encoded import Guidance
from transformers_litelvlm.models.guidance.frames import spread_budget
from transformers_litelvlm.models.guidance.intrinsic import QUERY_CHUNK, attention_received
from transformers_litelvlm.pruning import get_pruner, list_pruners
from transformers_litelvlm.pruning.layers import LayerPruner


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def stock(model):
    return stock_twin(model)


@pytest.fixture(autouse=True)
def pruning_off(model):
    model.config.pruning_config = PruningConfig()


# Rows of (t, h, w) visual tokens: images where t is 0.
MEDIA = {
    "image": [[(0, 4, 5)]],
    "several images": [[(0, 4, 5), (0, 2, 2), (0, 3, 6)]],
    "video": [[(4, 3, 4)]],
    "several videos": [[(4, 3, 4), (1, 2, 2), (2, 2, 3)]],
    "mixed": [[(0, 4, 5), (3, 2, 4), (0, 2, 3)]],
    "left-padded": [[(0, 4, 5), (3, 2, 4)], [(0, 2, 3)], [], [(2, 3, 3), (0, 5, 4)]],
}


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=["greedy", "beam", "static"]
)
@pytest.mark.parametrize("media", MEDIA)
def test_all_tokens_generate_what_upstream_generates(model, stock, media, how):
    inputs = inputs_of(MEDIA[media])
    arguments = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, **how}
    expected = stock.generate(**without_guidance(inputs), **arguments)
    for budget in (48, None):  # 48 is what the largest video has
        model.config.pruning_budget = budget
        assert torch.equal(model.generate(**inputs, **arguments), expected)


@pytest.mark.parametrize("pruning", [{"budget": 1}, {"budget": 7}, {"retention_ratio": 0.3}], ids=str)
@pytest.mark.parametrize("media", MEDIA)
def test_positions_are_those_of_the_unpruned_prompt(model, stock, media, pruning):
    inputs = inputs_of(MEDIA[media])
    names = (
        "input_ids",
        "mm_token_type_ids",
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
        "attention_mask",
    )
    full, deltas = stock.model.get_rope_index(**{name: inputs.get(name) for name in names})
    if media == "video":  # the positions do tell places and times apart: columns, rows, and 3 per temporal patch
        start = int(inputs["mm_token_type_ids"][0].argmax())
        place = start + 2 * 12 + 1 * 4 + 3
        assert full[:, 0, place].tolist() == [start + 6, start + 1, start + 3]

    model.config.pruning_config = PruningConfig(**pruning)
    with torch.no_grad(), Received(model) as forward:
        output = model(**inputs)
    with Received(model) as generate:
        new = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert torch.equal(new[:, : full.shape[-1]], inputs["input_ids"])

    rows = columns_that_stay(inputs, output)
    for row, columns in enumerate(rows):
        expected = full[:, row, columns]
        assert torch.equal(forward.positions[0][:, row, -len(columns) :], expected)
        assert torch.equal(generate.positions[0][1:, row, -len(columns) :], expected)
        # What the attention mask is made from counts without gaps.
        assert generate.positions[0][0, row, -len(columns) :].tolist() == list(range(len(columns)))
        # New tokens continue after the unpruned prompt, as upstream's would.
        for step in (1, 2):
            assert torch.equal(generate.positions[step][1:, row], full[:, row, -1:] + step)
    # `rope_deltas` is what upstream adds to the number of tokens in a cache, which holds the short prompt.
    short = torch.tensor([[len(columns)] for columns in rows])
    assert torch.equal(short + model.model.rope_deltas, inputs["attention_mask"].sum(1, keepdim=True) + deltas)


def test_decoding_by_hand_on_the_cache_of_forward(model):
    """Upstream derives positions from `rope_deltas` where a caller decodes without `generate`."""
    model.config.pruning_retention_ratio = 0.25
    inputs = inputs_of(MEDIA["mixed"])
    inputs.pop("attention_mask")
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)[0, -4:].tolist()
    with torch.no_grad():
        output, new = model(**inputs, use_cache=True), []
        for _ in range(4):
            new.append(int(output.logits[0, -1].argmax()))
            output = model(input_ids=torch.tensor([new[-1:]]), cache=output.cache)
    assert new == expected


@torch.no_grad()
def test_decoding_by_hand_while_another_thread_reads_another_prompt(model):
    """What upstream keeps of a prompt on the model, `rope_deltas`, is that of the thread."""
    model.config.pruning_retention_ratio = 0.25
    inputs, other = inputs_of(MEDIA["mixed"]), inputs_of(MEDIA["video"])
    inputs.pop("attention_mask"), other.pop("attention_mask")
    token = torch.tensor([[11]])

    def answer(between=lambda: None):
        cache = model(**inputs, use_cache=True).cache
        between()
        return model(input_ids=token, cache=cache).logits

    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(answer(lambda: pool.submit(lambda: model(**other)).result()), answer())
    assert model.model.rope_deltas is not None


# ---- budgets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "budget, num_frames, expected",
    [
        (8, 4, [2, 2, 2, 2]),
        (9, 4, [3, 2, 2, 2]),
        (10, 4, [3, 2, 3, 2]),
        (1, 4, [1, 0, 0, 0]),
        (2, 4, [1, 0, 1, 0]),
        (5, 1, [5]),
    ],
)
def test_a_video_budget_is_spread_over_its_temporal_patches(budget, num_frames, expected):
    assert spread_budget(budget, num_frames) == expected


@pytest.mark.parametrize("method_options", [{}, {"context_share": 1.0}])
def test_every_temporal_patch_keeps_its_share(model, method_options):
    model.config.pruning_config = PruningConfig(budget=10, method_options=method_options)
    output = model(**inputs_of([[(4, 3, 4)]]))
    [kept] = output.retained_video_indices
    assert [int((kept // 12 == frame).sum()) for frame in range(4)] == [3, 2, 3, 2]
    assert len(set(kept.tolist())) == 10


def test_a_video_is_selected_from_as_its_temporal_patches_would_be_alone(model):
    """Each temporal patch is ranked by itself: the same patches as single images keep the same tokens."""
    model.config.pruning_config = PruningConfig(budget=12, method_options={"context_share": 0.5})
    pixels, grid = random_media([(4, 3, 4)])
    sentence = random_guidance(1)
    video = model.get_video_features(pixels, grid, **sentence)
    model.config.pruning_config.budget = 3
    repeated = {name: value.expand(4, -1, -1) for name, value in sentence.items()}
    images = model.get_image_features(pixels, torch.tensor([[1, 6, 8]] * 4), **repeated)
    assert video.retained_indices[0].tolist() == [
        12 * i + k for i, rows in enumerate(images.retained_indices) for k in rows.tolist()
    ]
    torch.testing.assert_close(video.pooler_output[0], torch.cat(list(images.pooler_output)))
    torch.testing.assert_close(video.context_scores[0], torch.cat(list(images.context_scores)))
    assert video.similarity[0].shape == (1, 48)


def test_media_that_the_budget_does_not_cut_are_kept_whole(model):
    model.config.pruning_budget = 7
    output = model(**inputs_of([[(0, 4, 5), (0, 2, 2), (1, 2, 3)]]))
    assert [rows.tolist() for rows in output.retained_indices][1] == [0, 1, 2, 3]
    assert [len(rows) for rows in output.retained_indices] == [7, 4]
    assert output.retained_video_indices is None  # nothing of the video was cut: upstream's own output


@pytest.mark.parametrize("method", list_pruners())
def test_every_method_runs_or_says_which_do(model, method):
    """Images of two sizes and a video, with the method's own order; what reads a class token is not defined here."""
    one_stage = {"fastv": {"layer": 1}, "ivc_prune": {"layer": 1}, "sparsevlm": {"layers": [0], "keep": [4]}}
    options = one_stage.get(method)
    model.config.pruning_config = PruningConfig(
        method=method, budget=5, token_order="reference", method_options=options
    )
    inputs = inputs_of([[(0, 4, 5), (0, 3, 3), (2, 2, 4)]])
    if get_pruner(method).needs_class_token:
        with pytest.raises(
            ValueError, match=f"{method!r} is not defined for Qwen2.5-VL.*Methods that are: .*litelvlm"
        ):
            model(**inputs)
        return
    output = model(**inputs)
    if method == "none":
        assert output.retained_indices is None
        return
    if issubclass(get_pruner(method), LayerPruner):
        assert len(output.retained_stages) == 1
    for rows, num_tokens in zip([*output.retained_indices, *output.retained_video_indices], (20, 9, 16), strict=True):
        assert len(rows) == len(set(rows.tolist())) == 5 and 0 <= int(rows.min()) and int(rows.max()) < num_tokens
    # What is merged is what the weights say.
    encoded = model.model.encode("image", {name: inputs[name] for name in ("pixel_values", "image_grid_thw")})
    features = model.model.select(encoded, Guidance.of(inputs).rows(range(2)))
    if getattr(features, "merge_weights", None) is not None:
        for kept, weights, tokens in zip(features.pooler_output, features.merge_weights, encoded.all_tokens()):
            torch.testing.assert_close(kept, weights @ tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["litelvlm", "random"])
def test_the_smallest_ratio_leaves_one_token(model, method):
    model.config.pruning_config = PruningConfig(method=method, retention_ratio=1e-9)
    output = model(**inputs_of([[(0, 4, 5), (3, 2, 4), (0, 1, 1)]]))
    assert [len(rows) for rows in output.retained_indices] == [1, 1]
    assert [len(rows) for rows in output.retained_video_indices] == [1]


def test_pictures_of_very_different_size():
    """4 pictures from 56 x 56 to 1288 x 980 pixels, as Qwen2.5-VL cuts them: 28 pixels to a visual token."""
    config = tiny_config(pruning_retention_ratio=0.25)
    config.vision_config.patch_size, config.vision_config.window_size = 14, 112
    model = asymmetric_(Qwen2_5_VLLite(config))
    sizes = [(56, 56), (1288, 980), (364, 56), (644, 448)]
    grids = [(1, height // 28, width // 28) for height, width in sizes]
    counts = [1, 403, 7, 92]  # a quarter of 4, 1610, 26 and 368, halves rounded up
    generator = torch.Generator().manual_seed(0)
    grid_thw = torch.tensor([[1, h * 2, w * 2] for _, h, w in grids])
    pixels = torch.randn(int(grid_thw.prod(-1).sum()), 3 * 2 * 14**2, generator=generator)
    inputs = prompt(
        *[[9, VISION_START, ("image", h * w), VISION_END, 40 + i, 50] for i, (_, h, w) in enumerate(grids)]
    )
    guidance = random_guidance(4)
    arguments = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        together = model(**inputs, **guidance, pixel_values=pixels, image_grid_thw=grid_thw)
        new = model.generate(**inputs, **guidance, pixel_values=pixels, image_grid_thw=grid_thw, **arguments)[:, -3:]
    assert [len(rows) for rows in together.retained_indices] == counts
    for i, part in enumerate(pixels.split(grid_thw.prod(-1).tolist())):
        alone = prompt([9, VISION_START, ("image", grids[i][1] * grids[i][2]), VISION_END, 40 + i, 50])
        alone.update({name: value[i : i + 1] for name, value in guidance.items()})
        with torch.no_grad():
            output = model(**alone, pixel_values=part, image_grid_thw=grid_thw[i : i + 1])
            assert output.retained_indices[0].tolist() == together.retained_indices[i].tolist()
            torch.testing.assert_close(together.logits[i, -1], output.logits[0, -1], atol=1e-4, rtol=1e-4)
            single = model.generate(**alone, pixel_values=part, image_grid_thw=grid_thw[i : i + 1], **arguments)
        assert single[0, -3:].tolist() == new[i].tolist()


# ---- intrinsic guidance ---------------------------------------------------------------------------------------------


def test_context_is_the_attention_received_in_the_last_block(model, stock):
    """From the inputs of the stock tower's last attention, by plain matrix products, frame by frame."""
    pixels, grid = random_media([(2, 3, 4)])
    seen = {}
    last = stock.model.visual.blocks[-1].attn
    record = lambda module, args, kwargs: seen.update(states=args[0], rotary=kwargs["position_embeddings"])  # noqa: E731
    handle = last.register_forward_pre_hook(record, with_kwargs=True)
    with torch.no_grad():
        stock.model.get_video_features(pixels, grid)
        handle.remove()
        query, key, _ = last.qkv(seen["states"]).view(96, 3, 4, 8).unbind(1)
    cos, sin = (part.unsqueeze(1) for part in seen["rotary"])
    rotate = lambda x: x * cos + torch.cat((-x[..., 4:], x[..., :4]), dim=-1) * sin  # noqa: E731
    query, key = rotate(query), rotate(key)
    received = torch.zeros(96)
    for frame in (slice(0, 48), slice(48, 96)):
        for head in range(4):
            weights = (query[frame, head] @ key[frame, head].T / 8**0.5).softmax(-1)
            received[frame] += weights.sum(0) / (4 * 48)
    # The tower works window by window, 2 x 2 visual tokens each; the rows of a frame are these places of a 3 x 4 grid.
    in_windows = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]
    expected = torch.zeros(24)
    for frame in range(2):
        for index, place in enumerate(in_windows):
            start = 48 * frame + 4 * index
            expected[12 * frame + place] = received[start : start + 4].sum()

    model.config.pruning_config = PruningConfig(budget=4, method_options={"context_share": 0.5})
    [context] = model.get_video_features(pixels, grid, **random_guidance(1)).context_scores
    torch.testing.assert_close(context, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(context.view(2, 12).sum(1), torch.ones(2))


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_similarity_is_with_the_mean_of_the_sentence(model, stock, kind):
    pixels, grid = random_media([(1, 3, 4), (1, 2, 2)])
    guidance = random_guidance(2, num_expressions=2)
    model.config.pruning_config = PruningConfig(budget=2, method_options={"similarity": kind})
    output = model.get_image_features(pixels, grid, **guidance)
    table = model.get_input_embeddings().weight
    for image, tokens in enumerate(stock.model.get_image_features(pixels, grid).pooler_output):
        for expression in range(2):
            ids, mask = (guidance[f"guidance_{name}"][image, expression] for name in ("input_ids", "attention_mask"))
            sentence = table[ids[mask.bool()]].mean(0)
            if kind == "cosine":
                expected = torch.cosine_similarity(tokens, sentence[None], dim=-1)
            else:
                expected = tokens @ sentence
            torch.testing.assert_close(output.similarity[image][expression], expected, atol=1e-5, rtol=1e-4)
    # The method's own rule: the least similar tokens of each sentence, one each of a budget of two.
    for scores, kept in zip(output.similarity, output.retained_indices):
        least = set(scores.argmin(dim=-1).tolist())
        assert least <= set(kept.tolist())


def test_memory_of_the_context_score_is_linear():
    heads, size, largest = 2, 4, []
    for length in (1000, 2000, 4000):
        query, key = torch.randn(1, heads, length, size), torch.randn(1, heads, length, size)
        with LargestTensor() as mode:
            received = attention_received(query, key, 0.5)
        largest.append(mode.elements)
        assert received.shape == (1, length)
    assert largest == [heads * QUERY_CHUNK * length for length in (1000, 2000, 4000)]


def test_a_tower_without_a_class_token_says_so(model):
    from transformers_litelvlm.models.guidance.qwen_tower import QwenTowerEvidence

    evidence = QwenTowerEvidence(model.model.visual, 2, torch.zeros(1, 4, 4, 32), None, torch.zeros(1, 4, 48), (2, 2))
    with pytest.raises(ValueError, match="no class token"):
        evidence.class_attention()


# ---- settings and inputs that do not fit ----------------------------------------------------------------------------


def test_compact_positions_are_refused(model):
    with pytest.raises(ValueError, match="`position_ids='compact'` is not defined for Qwen2.5-VL"):
        model.config.pruning_position_ids = "compact"
    with pytest.raises(ValueError, match="`position_ids='compact'`"):
        model.config.pruning_preset = "faithful"
    with pytest.raises(ValueError, match="`position_ids='compact'`"):
        tiny_config(pruning_config={"position_ids": "compact"})
    assert model.config.pruning_position_ids is None
    model.config.pruning_budget = 3
    model.config.pruning_config.position_ids = "compact"  # in place: seen when it is used
    with pytest.raises(ValueError, match="`position_ids='compact'`"):
        model(**inputs_of(MEDIA["image"]))


def test_unknown_guidance(model):
    with pytest.raises(ValueError, match="`guidance` must be one of 'intrinsic', 'clip', got 'siglip'"):
        model.config.guidance = "siglip"


def test_sentences_that_do_not_fit_the_media(model):
    model.config.pruning_budget = 3
    inputs = inputs_of(MEDIA["mixed"])
    with pytest.raises(ValueError, match="sentences for 0 images or videos, but there are 1"):
        model(**{**inputs, **random_guidance(2)})
    with pytest.raises(ValueError, match="sentences for 2 images or videos, but there are 1"):
        model(**{**inputs, **random_guidance(4)})


def test_a_tower_without_full_attention_says_so():
    config = tiny_config(pruning_budget=2)
    config.vision_config.fullatt_block_indexes = [7]
    model = asymmetric_(Qwen2_5_VLLite(config))
    with pytest.raises(ValueError, match=r"`fullatt_block_indexes` \[7\] names none of the 3 blocks"):
        model(**inputs_of(MEDIA["image"]))
