"""Methods of the vision tower's attention on Qwen2.5-VL, against plain loops over its last block's whole matrix."""

import pytest
import torch

from tests.support.qwen2_5_vl_media import (
    LargestTensor,
    Received,
    columns_that_stay,
    inputs_of,
    without_guidance,
)
from tests.support.tiny_qwen2_5_vl import random_media, stock_twin, tiny_clip, tiny_model
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.models.guidance.intrinsic import QUERY_CHUNK
from transformers_litelvlm.models.guidance.qwen_tower import QwenTowerEvidence
from transformers_litelvlm.pruning import build_pruner


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def stock(model):
    stock = stock_twin(model)
    stock.set_attn_implementation("eager")
    return stock


def raster_of_windows(height, width, window=2):
    """Raster index of the visual tokens of a frame in the order in which the tower keeps them."""
    return [
        row * width + column
        for top in range(0, height, window)
        for left in range(0, width, window)
        for row in range(top, min(top + window, height))
        for column in range(left, min(left + window, width))
    ]


@torch.no_grad()
def dense(stock, pixels, grid, height, width):
    """Of one image, in raster order: attention received (N,), keys (N, d) and visual tokens (N, D), by the whole
    matrix of attention."""
    seen, last = {}, stock.model.visual.blocks[-1].attn
    record = lambda module, args, kwargs: seen.update(states=args[0], rotary=kwargs["position_embeddings"])  # noqa: E731
    handle = last.register_forward_pre_hook(record, with_kwargs=True)
    [tokens] = stock.model.get_image_features(pixels, grid).pooler_output
    handle.remove()
    patches = 4 * height * width
    query, key, _ = last.qkv(seen["states"]).view(patches, 3, 4, 8).unbind(1)
    cos, sin = (part.unsqueeze(1) for part in seen["rotary"])
    rotate = lambda x: x * cos + torch.cat((-x[..., 4:], x[..., :4]), dim=-1) * sin  # noqa: E731
    query, key = rotate(query), rotate(key)
    probabilities = torch.stack([(query[:, head] @ key[:, head].T / 8**0.5).softmax(-1) for head in range(4)])
    received = probabilities.mean(dim=0).sum(dim=0).view(-1, 4).mean(dim=1)
    keys = key.view(-1, 4, 4, 8).mean(dim=(1, 2))
    order = torch.tensor(raster_of_windows(height, width)).argsort()
    return received[order], keys[order], tokens


def visionzip(scores, keys, tokens, num_dominant, num_contextual):
    """The released rule for Qwen2.5-VL in plain loops: index and feature of what stays, in raster order."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index].item())
    kept = {index: tokens[index] for index in order[:num_dominant]}
    rest = sorted(order[num_dominant:])
    step = max(1, len(rest) // num_contextual)
    targets = [rest[place * step] for place in range(num_contextual)]
    assigned = {target: [] for target in targets}
    for index in rest:
        if index not in assigned:
            closest = max(targets, key=lambda target: torch.cosine_similarity(keys[index], keys[target], dim=0).item())
            assigned[closest].append(tokens[index])
    for target, members in assigned.items():
        kept[target] = tokens[target] + (torch.stack(members).mean(dim=0) if members else 0)
    return sorted(kept), torch.stack([kept[index] for index in sorted(kept)])


# Height and width, the released parts of all tokens that are dominant and contextual, and the share they come to.
CASES = [
    (5, 8, 0.45, 0.05, None),
    (6, 10, 0.45, 0.05, None),
    (5, 8, 0.65, 0.05, 1 / 14),
    (6, 10, 0.65, 0.05, 1 / 14),
    (3, 5, 0.4, 0.2, 1 / 3),
    (2, 2, 0.45, 0.05, None),
]


@pytest.mark.parametrize("height, width, dominant, contextual, share", CASES)
def test_visionzip_is_the_released_rule(model, stock, height, width, dominant, contextual, share):
    number = height * width
    num_dominant, num_contextual = int(dominant * number), max(int(contextual * number), 1)
    pixels, grid = random_media([(1, height, width)], seed=height)
    indices, expected = visionzip(*dense(stock, pixels, grid, height, width), num_dominant, num_contextual)
    model.config.pruning_config = PruningConfig(
        method="visionzip",
        budget=num_dominant + num_contextual,
        method_options={"contextual_share": share},
        token_order="reference",  # raster order is the released one here
    )
    output = model.get_image_features(pixels, grid)
    assert output.retained_indices[0].tolist() == indices
    assert (output.merge_weights[0].sum(dim=-1) > 1).sum() <= num_contextual
    torch.testing.assert_close(output.pooler_output[0], expected, atol=1e-5, rtol=1e-4)


def test_vispruner_ranks_by_the_attention_received(model, stock):
    pixels, grid = random_media([(1, 5, 8)])
    scores, _, tokens = dense(stock, pixels, grid, 5, 8)
    order = sorted(range(40), key=lambda index: -scores[index].item())
    model.config.pruning_config = PruningConfig(method="vispruner", budget=11)
    important, places = order[:5], order[5:]
    tokens = torch.nn.functional.normalize(tokens, dim=-1)
    while len(places) > 6:  # the released list: of its even places the closest to odd ones go, 8 at most
        even, odd = places[::2], places[1::2]
        closest = [max((tokens[a] @ tokens[b]).item() for b in odd) for a in even]
        rank = sorted(range(len(even)), key=lambda place: -closest[place])
        dropped = min(8, len(places) - 6, len(even))
        places = [even[place] for place in rank[dropped:]] + odd
    output = model.get_image_features(pixels, grid)
    assert output.retained_indices[0].tolist() == sorted(important + places)


@pytest.mark.parametrize("method", ["visionzip", "vispruner"])
def test_each_image_and_temporal_patch_is_chosen_from_by_itself(model, method):
    """The released softmax for several images runs over all of them: here a neighbour changes nothing."""
    model.config.pruning_config = PruningConfig(method=method, budget=6)
    pixels, grid = random_media([(1, 4, 5), (1, 3, 6), (1, 4, 5)])
    together = model.get_image_features(pixels, grid)
    for image, part in enumerate(pixels.split(grid.prod(-1).tolist())):
        alone = model.get_image_features(part, grid[image : image + 1])
        assert alone.retained_indices[0].tolist() == together.retained_indices[image].tolist()
        torch.testing.assert_close(alone.pooler_output[0], together.pooler_output[image], atol=1e-5, rtol=1e-5)
    pixels, grid = random_media([(2, 4, 5)])
    video = model.get_video_features(pixels, grid)
    model.config.pruning_budget = 3
    first = model.get_image_features(pixels[:80], torch.tensor([[1, 8, 10]]))
    assert video.retained_indices[0][:3].tolist() == first.retained_indices[0].tolist()


def test_contextual_tokens_take_the_place_of_their_target(model, stock):
    """With the M-RoPE position that the target has in the unpruned prompt, and decoding goes on behind that."""
    inputs = without_guidance(inputs_of([[(0, 4, 5), (0, 3, 4)], [(0, 3, 6)]]))
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    full, _ = stock.model.get_rope_index(**{name: inputs[name] for name in names})
    model.config.pruning_config = PruningConfig(method="visionzip", budget=9)
    with torch.no_grad(), Received(model) as forward:
        output = model(**inputs)
    with Received(model) as generate:
        model.generate(**inputs, max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert all((weights > 0).sum(dim=-1).max() > 1 for weights in output.merge_weights)
    for row, columns in enumerate(columns_that_stay(inputs, output)):
        assert columns == sorted(columns)
        assert torch.equal(forward.positions[0][:, row, -len(columns) :], full[:, row, columns])
        assert torch.equal(generate.positions[1][1:, row], full[:, row, -1:] + 1)


def test_memory_is_linear_in_the_number_of_patches(model):
    """The largest tensor is a chunk of rows of the attention: (heads, QUERY_CHUNK, patches)."""
    largest, heads = [], 4
    for height in (12, 25, 50):
        number = height * 20
        states = torch.randn(1, number, 4, 32)
        evidence = QwenTowerEvidence(model.model.visual, 2, states, None, torch.randn(1, number, 48), (height, 20))
        with LargestTensor() as mode, torch.no_grad():
            assert build_pruner("visionzip").select(evidence, 40).indices.shape == (1, 40)
        largest.append(mode.elements)
    assert largest == [heads * QUERY_CHUNK * 4 * number for number in (240, 500, 1000)]


def test_a_clip_beside_the_model_knows_nothing_of_its_tower(tmp_path, model):
    other = tiny_model()
    tiny_clip().save_pretrained(tmp_path)
    other.config.guidance = "clip"
    other.model.load_guidance(str(tmp_path))
    pixels, grid = random_media([(1, 4, 5)])
    guidance = {
        "guidance_input_ids": torch.tensor([[[512, 7, 513]]]),
        "guidance_pixel_values": torch.zeros(1, 3, 32, 32),
    }
    for method in ("visionzip", "vispruner", "anchorprune"):
        other.config.pruning_config = PruningConfig(method=method, budget=6)
        with pytest.raises(ValueError, match="set `guidance='intrinsic'`"):
            other.get_image_features(pixels, grid, **guidance)


@pytest.mark.parametrize(
    "budget, share, expected",
    [(500, None, 50), (700, 1 / 14, 50), (19, None, 1), (4, None, 1), (4, 0.0, 0), (1, None, 1), (10, 1.0, 10)],
)
def test_contextual_tokens_of_a_budget(budget, share, expected):
    assert build_pruner("visionzip", contextual_share=share).count_contextual(budget, False) == expected


@pytest.mark.parametrize("dominant, share", [(0.45, None), (0.65, 1 / 14)])
def test_released_counts_are_those_of_their_sum(dominant, share):
    pruner = build_pruner("visionzip", contextual_share=share)
    for number in range(2, 16385):
        contextual = max(int(0.05 * number), 1)
        assert pruner.count_contextual(int(dominant * number) + contextual, False) == contextual
