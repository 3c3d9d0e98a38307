"""CLIP Surgery: its equations in float64, the text without words, and where it is not defined."""

import copy

import pytest
import torch

from tests.support.families import MODELS
from tests.support.random_weights import asymmetric_
from tests.support.tiny_llava import random_guidance, random_pixels, tiny_config
from tests.support.tiny_qwen2_5_vl import tiny_clip
from transformers_litelvlm import LlavaLiteForConditionalGeneration, PruningConfig
from transformers_litelvlm.models.guidance.clip import ClipTowerEvidence, SideClip, SideClipEvidence
from transformers_litelvlm.models.guidance.encoded import Guidance
from transformers_litelvlm.models.guidance.vision_tower import TowerStates
from transformers_litelvlm.pruning import build_pruner


OPTIONS = {"similarity": "surgery", "ranking": "forward"}


@pytest.fixture(scope="module")
def base():
    return asymmetric_(LlavaLiteForConditionalGeneration(tiny_config())).model


def evidence_of(base, count=2, num_expressions=2, **guidance):
    ids, mask = random_guidance(count, num_expressions)
    states = TowerStates.of(base.vision_tower, random_pixels(count), 2)
    return ClipTowerEvidence(states, base.guidance, None, Guidance(ids, mask, **guidance))


def by_the_equations(tower, guidance, pixels, texts, empty):
    """(T, N) of one picture, float64, head by head and token by token."""
    states = tower(pixels[None].double(), output_hidden_states=True).hidden_states[1][0]
    layer, norm, projection = tower.encoder.layers[1], tower.post_layernorm, guidance.visual_projection
    attention = layer.self_attn
    values = attention.v_proj(layer.layer_norm1(states))
    width = values.shape[-1] // 4
    mixed = torch.zeros_like(values)
    for head in range(4):
        columns = slice(head * width, (head + 1) * width)
        own = values[:, columns]
        for token in range(len(own)):
            weights = torch.exp(own @ own[token] / width**0.5)
            mixed[token, columns] = (weights / weights.sum()) @ own
    tokens = projection(norm(states + attention.out_proj(mixed)))[1:]
    unit = lambda vector: vector.double() / vector.double().norm()  # noqa: E731
    return torch.stack(
        [
            torch.stack([(unit(token) * unit(text) - unit(token) * unit(nothing)).sum() for token in tokens])
            for text, nothing in zip(texts, empty)
        ]
    )


@torch.no_grad()
def test_scores_are_those_of_the_equations(base):
    evidence = evidence_of(base)
    selection = build_pruner("litelvlm", **OPTIONS).select(evidence, 5)
    texts, _ = evidence.text_embeds()
    # [BOS] 61, [EOS] 62 and nothing between.
    pixels = random_pixels(2)
    nothing = base.guidance.encode_text(torch.tensor([[[61, 62]]]))[0, 0]
    twin = copy.deepcopy(base).double()
    for image in range(2):
        expected = by_the_equations(twin.vision_tower, twin.guidance, pixels[image], texts[image], [nothing] * 2)
        torch.testing.assert_close(selection.similarity[image].double(), expected, atol=1e-5, rtol=1e-4)
        marked = {index for row in expected for index in row.argsort(descending=True)[:2].tolist()}
        assert marked <= set(selection.indices[image].tolist())
    plain = build_pruner("litelvlm", similarity="cosine").select(evidence, 5).similarity
    assert (selection.similarity - plain).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("end", [62, 2])
def test_the_text_without_words_of_new_and_old_checkpoints(end):
    """Old configurations say that the end is 2, and transformers then reads the state of the largest id."""
    base = asymmetric_(LlavaLiteForConditionalGeneration(tiny_config())).model
    expected = base.guidance.encode_text(torch.tensor([[[61, 62]]])).expand(2, 3, -1)
    text_model = base.guidance.text_model
    text_model.config.eos_token_id = text_model.eos_token_id = end
    ids, _ = random_guidance(2, 3)
    torch.testing.assert_close(base.guidance.encode_empty_text(ids), expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_embeddings_of_the_text_that_are_known_change_nothing(base):
    plain = evidence_of(base)
    known = evidence_of(base, text_embeds=plain.text_embeds()[0])
    for ours, theirs in zip(known.surgery_embeds(), plain.surgery_embeds()):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_other_sentences_about_the_picture_change_no_score(base):
    def scores(*sentences):
        states = TowerStates.of(base.vision_tower, random_pixels(1), 2)
        evidence = ClipTowerEvidence(states, base.guidance, None, Guidance(torch.tensor([sentences])))
        return build_pruner("litelvlm", **OPTIONS).select(evidence, 5).similarity[0]

    one, other = [61, 5, 6, 62], [61, 7, 8, 62]
    assert (scores(one, other)[0] - scores(one, other)[1]).abs().max() > 0.01
    torch.testing.assert_close(scores(one, other)[:1], scores(one), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_clip_beside_the_model_resamples_what_it_says():
    whole = tiny_clip()
    clip = SideClip(whole.config)
    clip.load_state_dict({name: value for name, value in whole.state_dict().items() if name != "logit_scale"})
    pictures = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[[512, 7, 8, 513]]])
    own = ClipTowerEvidence(TowerStates.of(clip.vision_model, pictures, 2), clip, None, Guidance(ids))
    tokens, empty = own.surgery_embeds()
    states = clip.encode_pictures(pictures)
    same = SideClipEvidence(clip, states, torch.zeros(1, 16, 5), (4, 4), Guidance(ids))
    torch.testing.assert_close(same.surgery_embeds()[0], tokens)
    half = SideClipEvidence(clip, states, torch.zeros(1, 4, 5), (2, 2), Guidance(ids)).surgery_embeds()
    assert half[0].shape == (1, 4, 20) and torch.equal(half[1], empty)
    maps = torch.nn.functional.interpolate(tokens.mT.unflatten(-1, (4, 4)), (2, 2), mode="bilinear", antialias=True)
    torch.testing.assert_close(half[0], maps.flatten(2).mT, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", MODELS, ids=lambda family: family.name)
@torch.no_grad()
def test_every_family_works_or_says_what_to_do(family):
    model = family.model()
    model.config.pruning_config = PruningConfig(budget=5, method_options=OPTIONS)
    inputs = family.lite_inputs()
    if family.has_class_token:
        kept = model(**inputs).retained_indices
        model.config.pruning_config = PruningConfig(budget=5, method_options={"ranking": "forward"})
        assert kept.shape[1] == 5 and kept.tolist() != model(**inputs).retained_indices.tolist()
        return
    with pytest.raises(ValueError, match="CLIP Surgery .*'dot'` or `'cosine'`, or `guidance='clip'`"):
        model(**inputs)
