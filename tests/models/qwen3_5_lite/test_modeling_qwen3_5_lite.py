"""What is special in Qwen3.5, dense and MoE: recurrent layers, which read the shortened prompt and nothing else."""

import numpy as np
import pytest
import torch

from tests.support.families import QWEN3_5, QWEN3_5_MOE, family_params, picture
from tests.support.qwen3_vl_media import GREEDY, MEDIA, VIDEOS, inputs_of, kept_columns
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.models.upstream import VideoMetadata
from transformers_litelvlm.pruning import get_pruner, list_pruners
from transformers_litelvlm.pruning.layers import LayerPruner


# More than the 64 tokens that a recurrent layer reads at once.
LONG = {"long": [[(0, 9, 9), (2, 5, 5)], [(0, 3, 4)]]}
NUM_LAYERS = 4
INSIDE = [name for name in list_pruners() if issubclass(get_pruner(name), LayerPruner)]


@pytest.fixture(scope="module", params=family_params([QWEN3_5, QWEN3_5_MOE]), ids=lambda family: family.name)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return family.model(NUM_LAYERS)


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


# ---- recurrent layers read what is kept -----------------------------------------------------------------------------


def states_of(cache, row):
    """Of each recurrent layer what it remembers of a row: its state, and the last inputs of its convolution."""
    layers = [layer for layer in cache.layers if hasattr(layer, "recurrent_states")]
    assert len(layers) == NUM_LAYERS // 2
    return [
        torch.cat([of[0][row].flatten() for of in (layer.recurrent_states, layer.conv_states)]) for layer in layers
    ]


def kept_row(stock, inputs, output, row):
    """Embeddings (1, n, D) and positions (3, 1, n) of what is left of a row, with upstream's own positions."""
    ids, mask = inputs["input_ids"][row], inputs["attention_mask"][row]
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
    positions, _ = stock.model.get_rope_index(**{name: inputs.get(name) for name in names})
    embeds = stock.get_input_embeddings()(ids)
    columns = [c for c in range(len(ids)) if mask[c] and ids[c] not in (5, 6)]
    tokens = {5: output.image_outputs, 6: output.video_outputs}
    places = dict.fromkeys(tokens, 0)
    for of_row, own, token in kept_columns(inputs["input_ids"], output):
        if not len(own):
            continue
        features = tokens[token].pooler_output[places[token]]
        places[token] += 1
        if of_row == row:
            embeds[own] = features
            columns += own.tolist()
    columns = sorted(columns)
    return embeds[columns][None], positions[:, row : row + 1, columns]


PADDED = [(media, side, "eager") for media in ("in two rows", "of two lengths") for side in ("left", "right")]
PADDED += [(media, "right", "sdpa") for media, *_ in PADDED[::2]]


@pytest.mark.parametrize("media, side, attention", [*((media, "left", "sdpa") for media in [*MEDIA, *LONG]), *PADDED])
@torch.no_grad()
def test_the_recurrent_state_is_that_of_the_kept_tokens_alone(model, stock, media, side, attention):
    """Of stock layers on each row by itself: neither a cut token nor padding is in it."""
    model.set_attn_implementation(attention)
    inputs = inputs_of((MEDIA | LONG)[media], side=side)
    model.config.pruning_budget = 3
    output = model(**inputs, use_cache=True)
    model.set_attn_implementation("sdpa")
    assert any(len(own) == 3 for _, own, _ in kept_columns(inputs["input_ids"], output))
    for row in range(len(inputs["input_ids"])):
        embeds, positions = kept_row(stock, inputs, output, row)
        expected = stock.model.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=True)
        logits = stock.lm_head(expected.last_hidden_state)[0]
        found = output.logits[row][output.logits[row].abs().sum(-1) > 0]
        found = found[-len(logits) :] if side == "left" else found[: len(logits)]
        torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)
        if side == "left":  # behind the text, padding lets the state fade, as upstream
            for own, theirs in zip(states_of(output.cache, row), states_of(expected.cache, 0), strict=True):
                torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_state_of_generate_is_the_same(model, stock):
    """Greedy decoding of a left-padded batch, one step and many, against a loop without a cache on the kept tokens."""
    model.config.pruning_budget = 3
    inputs = inputs_of(VIDEOS["of two lengths"])
    output = model(**inputs)
    length = inputs["input_ids"].shape[1]
    new = model.generate(**inputs, **{**GREEDY, "max_new_tokens": 8})[:, length:]
    assert len(set(new.flatten().tolist())) > 2
    for row in range(2):
        embeds, positions = kept_row(stock, inputs, output, row)
        found = []
        for _ in range(8):
            states = stock.model.language_model(inputs_embeds=embeds, position_ids=positions).last_hidden_state
            found.append(int(stock.lm_head(states)[0, -1].argmax()))
            embeds = torch.cat((embeds, stock.get_input_embeddings()(torch.tensor([[found[-1]]]))), dim=1)
            positions = torch.cat((positions, positions[..., -1:].amax(0, keepdim=True).expand(3, -1, -1) + 1), dim=-1)
        assert new[row].tolist() == found


@torch.no_grad()
def test_a_mask_of_ones_and_no_mask_are_one(model):
    model.config.pruning_budget = 5
    inputs = inputs_of([[(0, 4, 4), (2, 2, 3)]])
    expected = model(**inputs).logits
    del inputs["attention_mask"]
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=1e-5)


# ---- budgets, methods -----------------------------------------------------------------------------------------------


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
def test_every_method_runs_or_says_why_not(family, model, name):
    pruner = get_pruner(name)
    inputs = inputs_of([[(0, 4, 4), (4, 2, 2)]])
    if name in INSIDE:
        message = f"The method {name!r} takes tokens out inside the language model, .* recurrent .*'litelvlm'"
        for setting in (
            PruningConfig(method=name),
            PruningConfig(method="divprune", budget=7, then={"method": name, "budget": 5}),
        ):
            with pytest.raises(ValueError, match=message):
                model.config.pruning_config = setting
            with pytest.raises(ValueError, match=message):
                model(**inputs, pruning_config=setting)
            with pytest.raises(ValueError, match=message):
                model.generate(**inputs, pruning_config=setting)
        with pytest.raises(ValueError, match=message):
            family.config_class(pruning_method=name, pruning_budget=3)
        assert model.config.pruning_method == "litelvlm"
        return
    model.config.pruning_config = PruningConfig(method=name, budget=7)
    if pruner.needs_class_token:
        with pytest.raises(ValueError, match=f"{name!r} is not defined for Qwen3.5.*divprune"):
            model(**inputs)
        return
    assert model(**inputs).logits.isfinite().all()
    assert model.generate(**inputs, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 5


def test_there_are_methods_inside():
    assert {"fastv", "sparsevlm", "ivc_prune"} <= set(INSIDE)


# ---- from pictures to an answer -------------------------------------------------------------------------------------


@torch.no_grad()
def test_from_pictures_and_videos_to_an_answer(family, model, stock):
    processor = family.tiny.tiny_processor()
    text = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>"
        "Where is the cup?<|im_end|>\n<|im_start|>assistant\n"
    )
    frames = np.random.default_rng(0).integers(0, 255, (6, 24, 32, 3), dtype=np.uint8)
    inputs = processor(
        images=picture(5, 3), videos=[frames], text=text, expressions=[["the cup"], ["it"]], return_tensors="pt",
        video_metadata=[VideoMetadata(total_num_frames=6, fps=2)],
    )  # fmt: skip
    plain = {name: value for name, value in inputs.items() if not name.startswith("guidance_")}
    expected = stock.generate(**plain, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY), expected)
    pruning = PruningConfig(retention_ratio=0.001)
    output = model.generate(**inputs, **GREEDY, pruning_config=pruning, return_dict_in_generate=True)
    assert [len(rows) for rows in (*output.retained_indices, *output.retained_video_indices)] == [1, 1]
    assert output.sequences.shape == expected.shape
