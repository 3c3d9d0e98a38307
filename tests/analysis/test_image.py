"""The scores of an image's visual tokens, their controls, and the choices that are compared."""

import numpy as np
import pytest
import torch

from tests.support.analysed_images import SENTENCES, two_objects
from transformers_litelvlm.analysis.arguments import AnalysisArguments
from transformers_litelvlm.analysis.image import EMPTY, OTHER_IMAGE, OTHER_OBJECT, OWN, AnalysedImage, soft_iou
from transformers_litelvlm.analysis.scores import evidence_of, guidance_of
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.models.auto import load_for_segmentation
from transformers_litelvlm.pruning import build_pruner


@pytest.fixture
def image(checkpoint, tmp_path):
    model, processor = load_for_segmentation(checkpoint)
    model.requires_grad_(False)
    args = AnalysisArguments(output_dir=str(tmp_path), seeds=[0, 1], leave_one_out=1)
    of_others = [("image", "never"), ("another", "a red sign"), ("a third", "a red sign")]
    return AnalysedImage(SweepSegmenter(model, processor), args, of_others, two_objects())


def test_controls_ask_about_something_else(image):
    texts, processor = image.texts, image.processor
    own = [processor.guidance_text(sentence) for sentence in SENTENCES]
    assert texts[OWN] == own and texts[OTHER_OBJECT] == own[::-1]
    assert texts[OTHER_IMAGE] == [processor.guidance_text("a red sign")] * 2
    assert texts[EMPTY] == [processor.guidance_text("")] * 2
    dot = image.similarity["dot"]
    np.testing.assert_array_equal(dot[OTHER_OBJECT], dot[OWN][::-1])
    assert (dot[EMPTY][0] == dot[EMPTY][1]).all() and (dot[EMPTY] != dot[OWN]).any()


@torch.no_grad()
def test_a_choice_is_the_registered_method(image):
    methods = {
        "reversed": {},
        "forward": {"ranking": "forward"},
        "reversed cosine": {"similarity": "cosine"},
        "context": {"context_share": 1.0},
        "reversed + context": {"context_share": 0.5},
        "forward + context": {"context_share": 0.5, "ranking": "forward"},
    }
    for number, sentence in enumerate(SENTENCES):
        guidance = guidance_of(image.processor, [image.processor.guidance_text(sentence)])
        evidence = evidence_of(image.shared.encoded, guidance)
        for name, options in methods.items():
            for budget in (1, 5):
                chosen = image.choices[name].indices(budget, in_raster_order=False)[number]
                expected = build_pruner("litelvlm", **options).select(evidence, budget).indices[0]
                assert chosen.tolist() == expected.tolist(), (name, budget)


def test_the_oracle_keeps_what_the_mask_covers_then_what_is_nearest(image):
    coverage = image.coverage
    for number, indices in enumerate(image.choices["oracle"].indices(len(coverage[0]), in_raster_order=False)):
        # Filling comes first in the released order; here nothing is filled in, so ascending.
        assert indices.tolist() == list(range(len(coverage[0])))
        covered = int((coverage[number] > 0).sum())
        kept = image.choices["oracle"].indices(covered, True)[number].numpy()
        assert (coverage[number][kept] > 0).all()


def test_random_choices_differ_by_seed_and_sentence_alone(image, checkpoint, tmp_path):
    first, second = (image.choices[f"random#{seed}"].relevance for seed in (0, 1))
    assert (first != second).all() and (first[0] != first[1]).all()
    again = AnalysedImage(image.segmenter, image.args, image.of_others, two_objects())
    torch.testing.assert_close(again.choices["random#0"].relevance, first, rtol=0, atol=0)


def test_leave_one_out_of_the_first_sentences_alone(image):
    for name in ("leave_one_out_logits", "leave_one_out_iou"):
        signal = image.signals[name]
        assert np.isfinite(signal[0]).all() and np.isnan(signal[1]).all()
    assert (image.signals["leave_one_out_logits"][0] > 0).all()


def test_soft_iou():
    logits = torch.tensor([[[50.0, 50.0, -50.0, -50.0]], [[0.0, 0.0, 0.0, 0.0]]])
    target = torch.tensor([[True, False, False, False]])
    torch.testing.assert_close(soft_iou(logits, target), torch.tensor([1 / 2, 0.5 / 2.5]))
