"""Scores find what is planted in a picture, from its pixels to the kept tokens, in every family of Qwen's.

The weights that know the planted colour know nothing of places (tests/support/planted_pictures.py), so these come from
the processor, the stock vision tower, and what we make of both.
"""

import pytest
import torch

from tests.support.families import QWEN2_5_VL, QWEN3_5, QWEN3_5_MOE, QWEN3_VL, QWEN3_VL_MOE
from tests.support.planted_pictures import Planted, auroc, plant_query, plant_texts, plant_word
from tests.support.random_weights import asymmetric_
from tests.support.tiny_qwen2_5_vl import tiny_clip
from transformers_litelvlm import PruningConfig


FAMILIES = [QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE, QWEN3_5, QWEN3_5_MOE]
# No grid is square, and a wrong order of rows, columns or pictures moves every region. An odd side leaves Qwen2.5-VL a
# window that is not full.
PICTURES = [
    Planted((5, 9), (0, 1), (2, 4)),
    Planted((5, 9), (1, 5), (3, 8)),
    Planted((4, 6), (1, 3), (3, 6)),
    Planted((5, 9), (3, 5), (5, 8)),
    Planted((9, 4), (6, 1), (9, 3)),
]
BUDGET = 6  # visual tokens of every region
# CLIP has 4 x 4 patches: each of them is one row, and three columns, of these visual tokens.
FOR_CLIP = [Planted((4, 12), first, (first[0] + 2, first[1] + 3)) for first in ((0, 0), (1, 6), (2, 3), (0, 9))]
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
BOTH_SCORES = {"ranking": "forward", "context_share": 0.5}


def inputs_of(family, processor, pictures):
    text, sentences = [family.prompt("Where?")] * len(pictures), ["x"] * len(pictures)
    pictures = [[planted.picture()] for planted in pictures]
    return processor(images=pictures, text=text, expressions=sentences, padding=True, return_tensors="pt")


def attention_received(visual, block, media, sizes):
    """Of the visual tokens of every picture (N,), in the tower's order, from upstream's own attention: what it puts
    out changes with a value as often as the value is attended to."""
    seen, attention = {}, visual.blocks[block].attn
    handles = [
        attention.qkv.register_forward_hook(lambda module, args, output: seen.update(qkv=output)),
        attention.proj.register_forward_pre_hook(lambda module, args: seen.update(mixed=args[0])),
    ]
    with torch.enable_grad():
        visual(media["pixel_values"], grid_thw=media["image_grid_thw"])
        [gradient] = torch.autograd.grad(seen["mixed"].sum(), seen["qkv"])
    for handle in handles:
        handle.remove()
    of_patches = gradient.chunk(3, dim=-1)[2].mean(dim=-1)
    return [of_one.view(-1, 4).sum(dim=-1) / len(of_one) for of_one in of_patches.split([4 * n for n in sizes])]


def assert_finds(scores, planted):
    """(N,) scores in raster order; to be sure that another order would show, also against the transposed picture."""
    assert scores.shape == (planted.mask.numel(),)
    assert auroc(scores, planted.mask) > 0.95
    assert auroc(scores, planted.mask.mT) < 0.9


@torch.no_grad()
@EVERY_FAMILY
def test_intrinsic_scores_find_the_region(family):
    model, processor = family.model(), family.tiny.tiny_processor()
    inputs, base = inputs_of(family, processor, PICTURES), model.model
    plant_query(base.visual, base.context_block, processor.image_processor, (5, 9))
    plant_word(base, int(inputs["guidance_input_ids"][0, 0, 0]), processor.image_processor, (5, 9))
    model.config.pruning_config = PruningConfig(budget=BUDGET, method_options=BOTH_SCORES)
    found = model(**inputs).image_outputs
    sizes = [planted.mask.numel() for planted in PICTURES]
    received = attention_received(base.visual, base.context_block, inputs, sizes)
    for planted, [similarity], context, expected in zip(
        PICTURES, found.similarity, found.context_scores, received, strict=True
    ):
        assert_finds(similarity, planted)
        assert_finds(context, planted)
        torch.testing.assert_close(context.sort().values, expected.sort().values, atol=1e-6, rtol=1e-4)

    for share in (0.0, 1.0):  # by similarity alone, and by context alone
        options = {"ranking": "forward", "context_share": share}
        model.config.pruning_config = PruningConfig(budget=BUDGET, method_options=options)
        for planted, kept in zip(PICTURES, model(**inputs).retained_indices, strict=True):
            assert planted.mask.flatten()[kept].sum() >= BUDGET - 1


@torch.no_grad()
@EVERY_FAMILY
def test_corrected_scores_find_the_region(family):
    """Those of CLIP Surgery, of a CLIP beside the model."""
    model = asymmetric_(family.model_class(family.config(guidance="clip", guidance_config=tiny_clip().config)))
    processor = family.tiny.tiny_processor(with_clip=True)
    inputs = inputs_of(family, processor, FOR_CLIP)
    sentence = inputs["guidance_input_ids"][0, 0]
    plant_texts(model.model.guidance, sentence, processor.guidance_image_processor)
    options = {"ranking": "forward", "similarity": "surgery"}
    model.config.pruning_config = PruningConfig(budget=BUDGET, method_options=options)
    found = model(**inputs).image_outputs
    for planted, similarity, kept in zip(FOR_CLIP, found.similarity, found.retained_indices, strict=True):
        assert_finds(similarity[0], planted)
        assert planted.mask.flatten()[kept].sum() >= BUDGET - 1
